"""Relative poses of tool and objects, compared with SciPy's rotations."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from residual_rl.envs.maniskill.relative_poses import RELATIVE_POSES, RelativePoses
from residual_rl.envs.workers.shared_memory import ArraySpec

SIZES = {
    "tcp_pose": 7,
    "base_pose": 7,
    "peg_pose": 7,
    "goal_pos": 3,
    "box_pose": 7,
    "radius": 1,
    "other_pos": 2,
    "tcp_to_peg_pos": 3,
}
OBSERVATIONS = {name: ArraySpec((size,), "float32") for name, size in SIZES.items()}


def random_obs(seed: int, num_envs: int) -> dict[str, Tensor]:
    """Random observations [B, n]; poses have unit quaternions (w, x, y, z)."""
    generator = torch.Generator().manual_seed(seed)
    obs = {name: torch.randn(num_envs, size, generator=generator) for name, size in SIZES.items()}
    for name, value in obs.items():
        if name.endswith("_pose"):
            value[:, 3:] /= value[:, 3:].norm(dim=1, keepdim=True)
    return obs


def rotation(pose: Tensor) -> Rotation:
    w, x, y, z = pose[3:].double().tolist()
    return Rotation.from_quat([x, y, z, w])


@pytest.mark.parametrize("seed", range(5))
def test_relative_poses__match_scipy_rotations(seed: int) -> None:
    poses = RelativePoses(OBSERVATIONS)
    assert (poses.bodies, poses.points) == (("tcp_pose", "box_pose", "peg_pose"), ("goal_pos",))
    assert poses.size == 18 * 3 + 6 * 3
    obs = random_obs(seed, 3)
    added = poses.add(obs)
    assert set(added) == {*obs, RELATIVE_POSES}
    assert added[RELATIVE_POSES].shape == (3, poses.size)
    pairs = [("tcp_pose", "box_pose"), ("tcp_pose", "peg_pose"), ("box_pose", "peg_pose")]
    points = [("tcp_pose", "goal_pos"), ("box_pose", "goal_pos"), ("peg_pose", "goal_pos")]
    for env_id in range(3):
        own = {name: value[env_id] for name, value in obs.items()}
        positions: list[float] = []
        for first, second in pairs + points:
            offset = (own[second][:3] - own[first][:3]).double().numpy()
            positions += rotation(own[first]).inv().apply(offset).tolist()
        columns: list[float] = []
        for first, second in pairs:
            relative = rotation(own[first]).inv() * rotation(own[second])
            columns += relative.as_matrix()[:, :2].T.flatten().tolist()
        row = added[RELATIVE_POSES][env_id].numpy()
        np.testing.assert_allclose(row[:36], positions + columns, atol=2e-6)
        scale = np.array([0.001] * 18 + [0.01] * 18)
        fine = np.sign(row[:36]) * np.log1p(np.abs(row[:36]) / scale)
        np.testing.assert_allclose(row[36:], fine, atol=1e-5)


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
    turned = [0.0, 0.0, 0.0, 1.0]  # half a turn about the vertical
    obs = {
        "tcp_pose": torch.tensor([[0.1, 0.2, 0.3, *turned]]),
        "goal_pos": torch.tensor([[0.101, 0.2, 0.4]]),
    }
    row = RelativePoses({name: OBSERVATIONS[name] for name in obs}).add(obs)[RELATIVE_POSES][0]
    np.testing.assert_allclose(row.numpy(), [-0.001, 0.0, 0.1, -np.log(2.0), 0.0, np.log(101.0)], atol=1e-4)


def test_relative_poses__do_not_depend_on_the_rest_of_the_batch() -> None:
    poses, obs = RelativePoses(OBSERVATIONS), random_obs(7, 33)
    together = poses.add(obs)[RELATIVE_POSES]
    for i in range(33):
        alone = poses.add({name: value[i : i + 1] for name, value in obs.items()})[RELATIVE_POSES]
        assert torch.equal(alone[0], together[i])


def test_relative_poses__are_equal_for_a_quaternion_and_its_negative() -> None:
    poses, obs = RelativePoses(OBSERVATIONS), random_obs(8, 4)
    negated = dict(obs, peg_pose=torch.cat([obs["peg_pose"][:, :3], -obs["peg_pose"][:, 3:]], 1))
    assert torch.equal(poses.add(obs)[RELATIVE_POSES], poses.add(negated)[RELATIVE_POSES])


@pytest.mark.parametrize("names", [("peg_pose", "goal_pos"), ("tcp_pose", "base_pose", "radius")])
def test_relative_poses__are_absent_without_a_tool_or_an_object(names: tuple[str, ...]) -> None:
    obs = {name: value for name, value in random_obs(9, 2).items() if name in names}
    assert set(RelativePoses({name: OBSERVATIONS[name] for name in names}).add(obs)) == set(names)
