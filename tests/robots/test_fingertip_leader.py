"""`FingertipLeader`: the fingertip moves as commanded, and the finger keeps its pitch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from residual_rl.factory import make_vec_env
from residual_rl.robots.fingertip_leader import FingertipLeader
from residual_rl.tasks.so101_paper.robot import HOME, LINKS

RANGE = np.array([link.range for link in LINKS if link.joint])


@pytest.mark.parametrize("move", [(0.004, 0.0, 0.0), (0.0, -0.004, 0.0), (0.0, 0.0, 0.004)])
def test_joint_target__moves_the_fingertip_and_keeps_the_fingers_pitch(move: tuple[float, ...]) -> None:
    chain = make_vec_env("so101-paper", 1, num_threads=1).kinematics
    assert chain is not None
    leader, joints = FingertipLeader(chain, RANGE), np.array(HOME)
    for _ in range(5):
        joints = leader.joint_target(joints, move)
    tools = [chain.forward(torch.tensor([list(at[:5])], dtype=torch.float64))[1][0] for at in (HOME, joints)]
    moved = (tools[1] - tools[0])[:3, 3].numpy()
    assert moved == pytest.approx(5 * np.array(move), abs=0.003)
    assert float(tools[1][2, 0]) == pytest.approx(float(tools[0][2, 0]), abs=0.02)
    assert joints[4:] == pytest.approx(HOME[4:])  # roll and gripper stay


def test_joint_target__the_gripper_opens_up_to_its_limit() -> None:
    chain = make_vec_env("so101-paper", 1, num_threads=1).kinematics
    assert chain is not None
    leader = FingertipLeader(chain, RANGE)
    assert leader.joint_target(np.array(HOME), (0, 0, 0), grip=0.1)[5] == pytest.approx(HOME[5] + 0.1)
    assert leader.joint_target(np.array(HOME), (0, 0, 0), grip=9.0)[5] == RANGE[5, 1]
