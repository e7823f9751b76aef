"""Two base policies and a custom switch: one drags the sheet, the other takes over to correct its yaw.

    python examples/hybrid_switch.py eval so101-paper --base-policy hybrid --base.policies jacobian
    jacobian-yaw \\
        --base.mode switch --base.switch hybrid_switch:by_yaw

The function is found because it is in the folder of the program; for another folder, set PYTHONPATH. Instead
of a function, a threshold can switch: `--base.switch-on goal --base.switch-below 0.05`.
"""

import sys

import torch

from residual_rl.cli.main import main


def by_yaw(obs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The index of the policy for each env [b]: 1 within 5 cm of the goal or with a yaw error above 0.1
    rad."""
    goal = obs["goal"]  # [b, 3]: x, y [m] and yaw [rad] to the goal
    return ((goal[:, :2].norm(dim=1) < 0.05) | (goal[:, 2].abs() > 0.1)).long()


if __name__ == "__main__":
    sys.exit(main())
