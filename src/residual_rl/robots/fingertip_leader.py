"""Joint targets from a person's commands for the fingertip, as a keyboard or a gamepad gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from residual_rl.robots.kinematics import KinematicChain, finger_steps

_DAMPING = 0.02


class FingertipLeader:
    """Moves the fingertip of an arm in the frame of its base, at a constant pitch of the finger.

    Args:
        chain: the joints up to the fingertip, with the finger along the tool's x axis; the last one is the
            wrist's roll, which stays. A gripper's joint may follow them.
        joint_range: [J, 2] lower and upper limits [rad].
    """

    def __init__(self, chain: KinematicChain, joint_range: NDArray[np.float64]):
        self._chain = chain
        self._low, self._high = joint_range.T

    def joint_target(
        self, last: NDArray[np.float64], move: Sequence[float], grip: float = 0.0
    ) -> NDArray[np.float64]:
        """The joint targets [J] in [rad] after the targets `last` [J].

        Args:
            last: the joint targets so far.
            move: x, y and z by which to move the fingertip [m].
            grip: angle by which to open the gripper, the last joint [rad].
        """
        joints = self._chain.num_joints
        frames, tool = self._chain.forward(torch.from_numpy(last[None, :joints]).double())
        error = torch.tensor([[*move, 0.0]], dtype=torch.float64)
        target = np.array(last, np.float64)
        target[: joints - 1] += finger_steps(self._chain, frames, tool, error, _DAMPING)[0].numpy()
        if len(target) > joints:
            target[-1] += grip
        return np.clip(target, self._low, self._high)
