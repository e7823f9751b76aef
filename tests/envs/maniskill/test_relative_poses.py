"""How tool and objects lie to each other, against SciPy's rotations."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from residual_rl.envs.maniskill.relative_poses import RELATIVE_POSES, RelativePoses
from residual_rl.envs.workers.shared_memory import ArraySpec

TOLD = {
    "tcp_pose": 7,
    "base_pose": 7,
    "peg_pose": 7,
    "goal_pos": 3,
    "box_pose": 7,
    "radius": 1,
    "other_pos": 2,
    "tcp_to_peg_pos": 3,
}
OBSERVATIONS = {name: ArraySpec((size,), "float32") for name, size in TOLD.items()}


def _drawn(seed: int, worlds: int) -> dict[str, Tensor]:
    """Random observations [worlds, n], poses with unit quaternions (w, x, y, z)."""
    generator = torch.Generator().manual_seed(seed)
    obs = {name: torch.randn(worlds, size, generator=generator) for name, size in TOLD.items()}
    for name, value in obs.items():
        if name.endswith("_pose"):
            value[:, 3:] /= value[:, 3:].norm(dim=1, keepdim=True)
    return obs


def _rotation(pose: Tensor) -> Rotation:
    w, x, y, z = pose[3:].double().tolist()
    return Rotation.from_quat([x, y, z, w])


@pytest.mark.parametrize("seed", range(5))
def test_relative_poses__match_scipy_rotations(seed: int) -> None:
    poses = RelativePoses(OBSERVATIONS)
    assert (poses.bodies, poses.points) == (("tcp_pose", "box_pose", "peg_pose"), ("goal_pos",))
    assert poses.size == 18 * 3 + 6 * 3
    obs = _drawn(seed, 3)
    seen = poses.add(obs)
    assert set(seen) == {*obs, RELATIVE_POSES}
    assert seen[RELATIVE_POSES].shape == (3, poses.size)
    pairs = [("tcp_pose", "box_pose"), ("tcp_pose", "peg_pose"), ("box_pose", "peg_pose")]
    points = [("tcp_pose", "goal_pos"), ("box_pose", "goal_pos"), ("peg_pose", "goal_pos")]
    for world in range(3):
        own = {name: value[world] for name, value in obs.items()}
        positions: list[float] = []
        for first, second in pairs + points:
            away = (own[second][:3] - own[first][:3]).double().numpy()
            positions += _rotation(own[first]).inv().apply(away).tolist()
        columns: list[float] = []
        for first, second in pairs:
            columns += (
                (_rotation(own[first]).inv() * _rotation(own[second])).as_matrix()[:, :2].T.flatten().tolist()
            )
        row = seen[RELATIVE_POSES][world].numpy()
        np.testing.assert_allclose(row[:36], positions + columns, atol=2e-6)
        near = np.array([0.001] * 18 + [0.01] * 18)
        np.testing.assert_allclose(row[36:], np.sign(row[:36]) * np.log1p(np.abs(row[:36]) / near), atol=1e-5)


def test_relative_poses__fine_scale_resolves_a_millimetre() -> None:
    upright = [1.0, 0.0, 0.0, 0.0]
    obs = {
        "tcp_pose": torch.tensor([[0.3, 0.0, 0.1, *upright]]),
        "cube_pose": torch.tensor([[0.3, 0.001, 0.0, *upright]]),
    }
    row = RelativePoses({name: ArraySpec((7,), "float32") for name in obs}).add(obs)[RELATIVE_POSES][0]
    np.testing.assert_allclose(row[:3].numpy(), [0.0, 0.001, -0.1], atol=1e-7)
    np.testing.assert_allclose(row[9:12].numpy(), [0.0, np.log(2.0), -np.log(101.0)], atol=1e-4)


def test_relative_poses__express_a_lone_goal_in_the_tool_frame() -> None:
    turned = [0.0, 0.0, 0.0, 1.0]  # by half a turn about the vertical
    obs = {
        "tcp_pose": torch.tensor([[0.1, 0.2, 0.3, *turned]]),
        "goal_pos": torch.tensor([[0.101, 0.2, 0.4]]),
    }
    row = RelativePoses({name: OBSERVATIONS[name] for name in obs}).add(obs)[RELATIVE_POSES][0]
    np.testing.assert_allclose(row.numpy(), [-0.001, 0.0, 0.1, -np.log(2.0), 0.0, np.log(101.0)], atol=1e-4)


def test_relative_poses__do_not_depend_on_the_rest_of_the_batch() -> None:
    poses, obs = RelativePoses(OBSERVATIONS), _drawn(7, 33)
    together = poses.add(obs)[RELATIVE_POSES]
    for world in range(33):
        alone = poses.add({name: value[world : world + 1] for name, value in obs.items()})[RELATIVE_POSES]
        assert torch.equal(alone[0], together[world])


def test_relative_poses__are_equal_for_a_quaternion_and_its_negative() -> None:
    poses, obs = RelativePoses(OBSERVATIONS), _drawn(8, 4)
    turned = dict(obs, peg_pose=torch.cat([obs["peg_pose"][:, :3], -obs["peg_pose"][:, 3:]], 1))
    assert torch.equal(poses.add(obs)[RELATIVE_POSES], poses.add(turned)[RELATIVE_POSES])


@pytest.mark.parametrize("names", [("peg_pose", "goal_pos"), ("tcp_pose", "base_pose", "radius")])
def test_relative_poses__are_absent_without_a_tool_or_an_object(names: tuple[str, ...]) -> None:
    obs = {name: value for name, value in _drawn(9, 2).items() if name in names}
    assert set(RelativePoses({name: OBSERVATIONS[name] for name in names}).add(obs)) == set(names)
