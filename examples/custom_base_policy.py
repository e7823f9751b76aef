"""A custom base policy: it turns the arm's first joint towards the sheet, and a residual learns the rest.

    python examples/custom_base_policy.py eval so101-paper --base-policy pan-to-sheet

In a package, this entry point lets `residual-rl` find it:

    [project.entry-points."residual_rl.base_policies"]
    pan-to-sheet = "my_package.custom_base_policy"
"""

import sys

import torch

from residual_rl import BasePolicy, BasePolicySpec, VecEnv, register_base_policy
from residual_rl.cli.main import main


class PanToSheet(BasePolicy):
    """A stateless policy with one action per chunk."""

    inputs = {"ee_position": (3,), "sheet_pose": (7,)}  # noqa: RUF012

    def __init__(self, cfg: None, env: VecEnv):
        self.action_unit = env.action_unit

    def predict_action_chunk(self, obs: dict[str, torch.Tensor], env_ids: torch.Tensor) -> torch.Tensor:
        sheet = torch.atan2(obs["sheet_pose"][:, 1], obs["sheet_pose"][:, 0])
        finger = torch.atan2(obs["ee_position"][:, 1], obs["ee_position"][:, 0])
        action = torch.zeros(len(env_ids), 1, len(self.action_unit))
        # The joint turns clockwise.
        action[:, 0, 0] = ((finger - sheet) / self.action_unit[0]).clamp(-1.0, 1.0)
        return action


register_base_policy(BasePolicySpec("pan-to-sheet", "turns towards the sheet", make=f"{__name__}:PanToSheet"))

if __name__ == "__main__":
    sys.exit(main())
