"""Two base policies and a switch of your own: one drags the sheet, the other takes over where only its yaw is left.

    python examples/hybrid_switch.py eval so101-paper --base-policy hybrid --base.policies jacobian jacobian-yaw \\
        --base.mode switch --base.switch hybrid_switch:by_yaw

The function is found because it lies beside the program that is run; for one anywhere else set PYTHONPATH. Without a function, a threshold
switches: `--base.switch-on goal --base.switch-below 0.05`.
"""

import sys

import torch

from residual_rl.cli.main import main


def by_yaw(obs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which policy acts in each world: 1 within 5 cm of the goal, or where the sheet lies more than 0.1 rad askew."""
    goal = obs["goal"]  # [b, 3]: x, y [m] and yaw [rad] to the goal
    return ((goal[:, :2].norm(dim=1) < 0.05) | (goal[:, 2].abs() > 0.1)).long()


if __name__ == "__main__":
    sys.exit(main())
