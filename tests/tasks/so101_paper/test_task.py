"""The task `so101-paper` as pure functions: values worked out by hand, and properties of the draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from residual_rl.envs.task import Quantities
from residual_rl.errors import ConfigError
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.task import STATE, SO101Paper, corners, wrap_half_turn, yaw_of

JOINT_RANGE = torch.tensor(
    [[-2.0, 2.0], [-1.7, 1.7], [-1.6, 1.6], [-1.5, 1.5], [-2.7, 2.8], [-0.2, 1.7]], dtype=torch.float64
)
ANGLES = st.floats(-20.0, 20.0)


def task(**settings: Any) -> SO101Paper:
    return SO101Paper(SO101PaperCfg(**settings), JOINT_RANGE)


def quat(yaw: Tensor | list[float]) -> Tensor:
    half = 0.5 * torch.as_tensor(yaw, dtype=torch.float64)
    zero = torch.zeros_like(half)
    return torch.stack([half.cos(), zero, zero, half.sin()], -1)


def quantities(
    position: list[list[float]], yaw: list[float], tolerance: float = 0.02, **more: Tensor
) -> Quantities:
    """The sheet at `position` [B, 3] with `yaw` [B]; the arm at zero."""
    n = len(yaw)
    zeros = torch.zeros(n, 6, dtype=torch.float64)
    q = {"joint_position": zeros, "joint_velocity": zeros, "joint_target": zeros, "action": zeros}
    q |= {
        "ee_position": torch.zeros(n, 3, dtype=torch.float64),
        "sheet_position": torch.tensor(position, dtype=torch.float64),
    }
    q |= {"sheet_quaternion": quat(yaw), "tolerance": torch.full((n,), tolerance, dtype=torch.float64)}
    return (
        q
        | {"success": torch.zeros(n, dtype=torch.bool), "hold_steps": torch.zeros(n, dtype=torch.int64)}
        | more
    )


# --- geometry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("angle", "expected"),
    [
        (0.0, 0.0),
        (0.3, 0.3),
        (-0.3, -0.3),
        (math.pi, 0.0),
        (math.pi - 0.1, -0.1),
        (-math.pi + 0.1, 0.1),
        (2 * math.pi + 0.2, 0.2),
        (1.8, 1.8 - math.pi),
    ],
)
def test_wrap_half_turn__is_modulo_half_a_turn(angle: float, expected: float) -> None:
    assert wrap_half_turn(torch.tensor([angle], dtype=torch.float64)).item() == pytest.approx(
        expected, abs=1e-12
    )


def test_wrap_half_turn__largest_error_is_a_quarter_turn() -> None:
    assert wrap_half_turn(
        torch.tensor([math.pi / 2, -math.pi / 2], dtype=torch.float64)
    ).abs().tolist() == pytest.approx([math.pi / 2] * 2)


@given(ANGLES, st.integers(-3, 3))
def test_wrap_half_turn__differs_from_the_angle_by_half_turns(angle: float, turns: int) -> None:
    wrapped = wrap_half_turn(torch.tensor([angle, angle + turns * math.pi], dtype=torch.float64))
    assert (wrapped.abs() <= math.pi / 2 + 1e-9).all()
    # the difference is a multiple of a quarter turn (sine), and of half a turn (cosine)
    assert math.sin(2 * (wrapped[0].item() - angle)) == pytest.approx(0.0, abs=1e-9)
    assert math.cos(2 * (wrapped[0].item() - angle)) == pytest.approx(1.0, abs=1e-9)
    assert math.sin(2 * (wrapped[1] - wrapped[0]).item()) == pytest.approx(0.0, abs=1e-9)


@given(st.tuples(ANGLES, st.floats(-1.5, 1.5), ANGLES))
def test_yaw_of__matches_scipy(angles: tuple[float, float, float]) -> None:
    rotation = Rotation.from_euler("ZYX", angles)
    x, y, z, w = rotation.as_quat()
    yaw = yaw_of(torch.tensor([w, x, y, z], dtype=torch.float64)).item()
    expected = math.atan2(rotation.as_matrix()[1, 0], rotation.as_matrix()[0, 0])
    assert math.remainder(yaw - expected, 2 * math.pi) == pytest.approx(0.0, abs=1e-6)


def test_corners__match_values_worked_out_by_hand() -> None:
    position = torch.tensor([[0.22, 0.0, 0.0], [0.3, 0.1, 0.0]], dtype=torch.float64)
    found = corners(position, torch.tensor([0.0, math.pi / 2], dtype=torch.float64))
    # A5 is 148 x 210 mm; turned by 90 degrees, (x, y) becomes (-y, x)
    np.testing.assert_allclose(
        found[0], [[0.294, 0.105], [0.294, -0.105], [0.146, -0.105], [0.146, 0.105]], atol=1e-12
    )
    np.testing.assert_allclose(
        found[1], [[0.195, 0.174], [0.405, 0.174], [0.405, 0.026], [0.195, 0.026]], atol=1e-12
    )


# --- success ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "yaw", "inside"),
    [
        ((0.0, 0.0), 0.0, True),
        ((0.0, 0.0), math.pi, True),  # half a turn gives the same sheet
        ((0.0199, 0.0199), 0.0, True),
        ((-0.0199, -0.0199), 0.0, True),
        ((0.0201, 0.0), 0.0, False),
        ((-0.0201, 0.0), 0.0, False),
        ((0.0, 0.0201), 0.0, False),
        ((0.0, -0.0201), 0.0, False),
        # half the extent along x is 0.074 cos + 0.105 sin: 0.09391 at 0.206 rad and 0.09409 at 0.208 rad, of
        # 0.094
        ((0.0, 0.0), 0.206, True),
        ((0.0, 0.0), -0.206, True),
        ((0.0, 0.0), 0.208, False),
        ((0.0, 0.0), -0.208, False),
        ((0.0, 0.0), math.pi / 2, False),
    ],
)
def test_so101_paper_holds__requires_all_four_corners_inside(
    offset: tuple[float, float], yaw: float, inside: bool
) -> None:
    q = quantities([[0.22 + offset[0], offset[1], 0.0]], [yaw])
    assert task().holds(q).tolist() == [inside]


@pytest.mark.parametrize("corner", range(4))
def test_so101_paper_holds__fails_for_a_single_corner_outside(corner: int) -> None:
    """One corner is 1 mm outside the tape's inner edge, and then 1 mm inside."""
    yaw = torch.tensor([0.05], dtype=torch.float64)
    at = corners(torch.zeros(1, 2, dtype=torch.float64), yaw)[0, corner]
    axis = int(
        at.abs()[0] - 0.074 < at.abs()[1] - 0.105
    )  # the axis along which this corner is closest to its limit
    limit, shift = (0.094, 0.125)[axis], [0.0, 0.0]
    results = []
    for beyond in (0.001, -0.001):
        shift[axis] = float(at[axis].sign() * (limit + beyond) - at[axis])
        position = torch.tensor([[0.22 + shift[0], shift[1], 0.0]], dtype=torch.float64)
        outside = (
            (corners(position, yaw)[0] - torch.tensor([0.22, 0.0])).abs() > torch.tensor([0.094, 0.125])
        ).any(1)
        assert outside.tolist() == [beyond > 0 and i == corner for i in range(4)]
        results += task().holds(quantities(position.tolist(), yaw.tolist())).tolist()
    assert results == [False, True]


def test_so101_paper_holds__uses_the_tolerance_of_each_episode() -> None:
    q = quantities([[0.23, 0.0, 0.0]] * 2, [0.0, 0.0])
    q["tolerance"] = torch.tensor([0.0099, 0.0101], dtype=torch.float64)
    assert task().holds(q).tolist() == [False, True]


def test_tape_center__moves_the_goal() -> None:
    q = quantities([[0.25, 0.03, 0.0], [0.22, 0.0, 0.0]], [0.0, 0.0])
    assert task(tape_center=(0.25, 0.03)).holds(q).tolist() == [True, False]


# --- reward -------------------------------------------------------------------------------------------------


def test_reward_terms__match_values_worked_out_by_hand() -> None:
    q = quantities([[0.22, 0.0, 0.0], [0.25, 0.04, 0.0], [0.22, -0.1, 0.0]], [0.0, 0.3, math.pi - 0.2])
    q["success"] = torch.tensor([True, False, False])
    terms = task().reward_terms(q)
    assert list(terms) == ["success", "distance", "yaw", "step"]
    # 10·success - 2·distance - 0.1·|yaw error| - 0.01; distances 0, 5 cm (3-4-5), 10 cm
    np.testing.assert_allclose(terms["success"], [10.0, 0.0, 0.0])
    np.testing.assert_allclose(terms["distance"], [0.0, -0.1, -0.2], atol=1e-9)
    np.testing.assert_allclose(terms["yaw"], [0.0, -0.03, -0.02], atol=1e-9)
    np.testing.assert_allclose(terms["step"], [-0.01, -0.01, -0.01])


def test_reward_terms__use_the_configured_weights() -> None:
    q = quantities(
        [[0.25, 0.04, 0.0]], [-0.3], ee_position=torch.tensor([[0.25, 0.04, 0.12]], dtype=torch.float64)
    )
    q["success"] = torch.tensor([True])
    terms = task(
        reward_success=1.0, reward_distance=-3.0, reward_yaw=-2.0, reward_step=0.5, reward_reach=-0.25
    ).reward_terms(q)
    found = {name: value.item() for name, value in terms.items()}
    assert found == pytest.approx(
        {"success": 1.0, "distance": -0.15, "yaw": -0.6, "step": 0.5, "reach": -0.03}
    )


def test_so101_paper_metrics__match_values_worked_out_by_hand() -> None:
    metrics = task().metrics(quantities([[0.25, 0.04, 0.0]], [-0.3]))
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {"dist_to_goal": 0.05, "yaw_error": 0.3}
    )


@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), ANGLES)
def test_reward_terms__are_equal_for_a_sheet_turned_by_half_a_turn(x: float, y: float, yaw: float) -> None:
    one, other = (task().reward_terms(quantities([[x, y, 0.0]], [angle])) for angle in (yaw, yaw + math.pi))
    for name, value in one.items():
        assert value.item() == pytest.approx(other[name].item(), abs=1e-9)
        assert value.item() <= 0


# --- commands -----------------------------------------------------------------------------------------------


def command(action: list[float], **settings: Any) -> list[float]:
    """Targets for `action`, from targets that differ from the measured positions."""
    q = quantities([[0.3, 0.0, 0.0]], [0.0])
    q["joint_target"] = torch.tensor([[0.1, 1.695, 0.19, -0.19, 0.0, -0.19]], dtype=torch.float64)
    q["joint_position"] = torch.tensor([[0.0, 1.69, 0.0, 0.0, 0.5, -0.2]], dtype=torch.float64)
    result: list[float] = (
        task(**settings).joint_target(torch.tensor([action], dtype=torch.float32), q)[0].tolist()
    )
    return result


def test_joint_target__changes_the_targets_not_the_measured_positions() -> None:
    # by hand: 0.1 + 0.02; 1.695 + 0.02 to the limit 1.7; 0.19 + 0.02 to 0.0 + 0.2; -0.19 - 0.02 to 0.0 - 0.2;
    # 0.0 is 0.5 from the measured position: to 0.5 - 0.2; -0.19 - 0.02 to the limit -0.2
    assert command([1, 1, 1, -1, 0, -1]) == pytest.approx([0.12, 1.7, 0.2, -0.2, 0.3, -0.2], abs=1e-7)
    assert command([0, 0, 0, 0, 0, 0]) == pytest.approx([0.1, 1.695, 0.19, -0.19, 0.3, -0.19], abs=1e-7)
    assert command([-0.5, -1, -1, 1, 1, 1]) == pytest.approx([0.09, 1.675, 0.17, -0.17, 0.3, -0.17], abs=1e-7)


def test_joint_target__uses_the_configured_limits() -> None:
    assert command([1, 0, 1, 0, 0, 0], action_scale=0.05, max_target_error=0.5) == pytest.approx(
        [0.15, 1.695, 0.24, -0.19, 0.0, -0.19], abs=1e-7
    )
    assert task(action_scale=0.05).action_unit.tolist() == pytest.approx([0.05] * 6)


@given(
    st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6),
    st.lists(st.floats(-3.0, 3.0), min_size=6, max_size=6),
    st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6),
)
def test_joint_target__stays_within_its_bounds(
    action: list[float], target: list[float], share: list[float]
) -> None:
    low, high = JOINT_RANGE.unbind(1)
    q = quantities([[0.3, 0.0, 0.0]], [0.0])
    position = low + torch.tensor(share, dtype=torch.float64) * (high - low)
    q["joint_target"], q["joint_position"] = torch.tensor([target], dtype=torch.float64), position[None]
    result = task().joint_target(torch.tensor([action]), q)[0]
    assert ((result >= low) & (result <= high)).all()
    assert ((result - position).abs() <= 0.2 + 1e-12).all()


# --- observation --------------------------------------------------------------------------------------------


def test_so101_paper_observe__state_has_the_documented_25_numbers() -> None:
    q = quantities([[0.25, 0.04, 0.001]], [0.3])
    q["joint_position"] = torch.arange(0, 6, dtype=torch.float64)[None]
    q["joint_velocity"] = torch.arange(10, 16, dtype=torch.float64)[None]
    q["joint_target"] = torch.arange(20, 26, dtype=torch.float64)[None]
    q["ee_position"] = torch.tensor([[0.2, 0.01, 0.08]], dtype=torch.float64)
    obs = task().observe(q)
    state = obs["state"][0].tolist()
    assert len(state) == 25
    assert state[0:6] == [0, 1, 2, 3, 4, 5]
    assert state[6:12] == [10, 11, 12, 13, 14, 15]
    assert state[12:15] == pytest.approx([0.25, 0.04, 0.001])
    assert state[15:19] == pytest.approx([math.cos(0.15), 0.0, 0.0, math.sin(0.15)])
    assert state[19:22] == pytest.approx([-0.03, -0.04, -0.3])  # to the goal, and the yaw to turn by
    assert state[22:25] == pytest.approx([0.2, 0.01, 0.08])
    assert obs["joint_target"][0].tolist() == [20, 21, 22, 23, 24, 25]
    assert torch.equal(torch.cat([obs[name] for name in STATE], 1), obs["state"])
    assert {value.dtype for value in obs.values()} == {torch.float32}


def test_obs_mode__selects_state_and_cameras() -> None:
    q = quantities([[0.25, 0.04, 0.001]], [0.3])
    named = {"joint_position", "joint_velocity", "joint_target", "sheet_pose", "goal", "ee_position"}
    for mode, names, cameras in (
        ("state", named | {"state"}, ()),
        ("rgb", named, ("top", "wrist")),
        ("rgb+state", named | {"state"}, ("top", "wrist")),
    ):
        one = task(obs_mode=mode)
        assert set(one.observe(q)) == set(one.observation_space()) == names
        assert one.obs_cameras == cameras


def test_observation_space__has_the_documented_bounds() -> None:
    space = task().observation_space()
    assert space["state"].shape == (25,)
    assert all(np.isfinite(box.low).all() and np.isfinite(box.high).all() for box in space.values())
    np.testing.assert_allclose(space["state"].low[:6], JOINT_RANGE[:, 0] - 0.2, rtol=1e-6)
    np.testing.assert_allclose(space["state"].high[:6], JOINT_RANGE[:, 1] + 0.2, rtol=1e-6)
    assert space["state"].high[21] == pytest.approx(math.pi / 2)
    np.testing.assert_allclose(space["joint_target"].high, JOINT_RANGE[:, 1], rtol=1e-6)


# --- randomisation ------------------------------------------------------------------------------------------

DRAWS = {
    "sheet_x": (0.20, 0.35),
    "sheet_y": (-0.15, 0.15),
    "sheet_yaw": (-0.4, 0.4),
    "friction_scale": (0.8, 1.2),
    "mass_scale": (0.9, 1.1),
}


def draws(one: SO101Paper, seeds: Tensor) -> dict[str, np.ndarray]:
    drawn = one.randomize(seeds)
    x, y = drawn["start_position"].unbind(1)
    named = {"sheet_x": x, "sheet_y": y, "sheet_yaw": drawn["start_yaw"]}
    return {
        name: value.numpy()
        for name, value in (named | {n: drawn[n] for n in ("friction_scale", "mass_scale")}).items()
    }


@pytest.mark.parametrize("first", [0, 10_000_000, (1 << 40) + (1 << 36)])
def test_randomize__draws_are_uniform_and_independent(first: int) -> None:
    n = 10_000
    drawn = draws(task(), torch.arange(first, first + n))
    assert set(drawn) == set(DRAWS)
    for name, (low, high) in DRAWS.items():
        assert low <= drawn[name].min() < low + 0.002 * (high - low)
        assert high - 0.002 * (high - low) < drawn[name].max() < high
        assert scipy.stats.kstest(drawn[name], "uniform", (low, high - low)).pvalue > 1e-4, name
    values = np.stack(list(drawn.values()))
    # the correlations of independent draws have a standard deviation of 1/√n = 0.01; there are 10 pairs, and
    # 25 pairs with the next seed
    assert np.abs(np.corrcoef(values) - np.eye(5)).max() < 0.045
    following = np.corrcoef(values[:, :-1], values[:, 1:])[:5, 5:]
    assert np.abs(following).max() < 0.045
    squares = np.corrcoef((values - values.mean(1, keepdims=True)) ** 2)
    assert np.abs(squares - np.eye(5)).max() < 0.045


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=5))
def test_randomize__depends_on_the_seed_of_the_episode_alone(seeds: list[int]) -> None:
    together = task().randomize(torch.tensor(seeds))
    for i, seed in enumerate(seeds):
        alone = task().randomize(torch.tensor([seed]))
        assert all(torch.equal(value[i], alone[name][0]) for name, value in together.items())


@given(
    st.lists(st.tuples(st.floats(0.5, 0.9), st.floats(0.0, 0.5)), min_size=5, max_size=5),
    st.integers(0, 2**62),
)
def test_randomize__stays_within_the_configured_ranges(ranges: list[tuple[float, float]], seed: int) -> None:
    chosen = {name: (low, low + width) for name, (low, width) in zip(DRAWS, ranges, strict=True)}
    drawn = draws(task(**chosen), torch.tensor([seed]))
    for name, (low, high) in chosen.items():
        assert low - 1e-12 <= drawn[name][0] <= high + 1e-12


def test_randomization__off_uses_the_middle_of_every_range() -> None:
    drawn = draws(task(randomization="off"), torch.arange(5))
    for name, (low, high) in DRAWS.items():
        np.testing.assert_allclose(drawn[name], [(low + high) / 2] * 5, atol=1e-12)


def test_randomize__narrowing_one_range_keeps_the_other_draws() -> None:
    seeds = torch.arange(50)
    usual, narrowed = draws(task(), seeds), draws(task(sheet_yaw=(0.0, 0.0)), seeds)
    assert not narrowed.pop("sheet_yaw").any()
    assert all(np.array_equal(usual[name], value) for name, value in narrowed.items())


# --- curriculum ---------------------------------------------------------------------------------------------


def tolerances(
    one: SO101Paper, progress: list[tuple[float, float]], episodes: Sequence[int] | None = None
) -> list[float]:
    """The tolerance of an episode that begins after each `(fraction, success_rate)`.

    By default, 100 episodes end between two of them.
    """
    found = []
    for (fraction, success_rate), ended in zip(
        progress, episodes or range(0, 100 * len(progress), 100), strict=True
    ):
        logged = one.set_training_progress(fraction, success_rate, ended)
        found.append(one.randomize(torch.tensor([1]))["tolerance"].item())
        assert logged.get("curriculum/tolerance", one.cfg.tolerance) == found[-1]
    return found


def test_curriculum__none_keeps_the_tolerance() -> None:
    one = task()
    assert tolerances(one, [(0.0, 0.0), (0.5, 1.0), (1.0, 1.0)]) == [0.02] * 3
    assert one.set_training_progress(0.5, 1.0, 500) == {}


def test_curriculum__schedule_narrows_over_time() -> None:
    one = task(curriculum="schedule", curriculum_tolerance=0.06, curriculum_fraction=0.5)
    # from 6 cm to 2 cm over the first half, at any success rate
    assert tolerances(one, [(0.0, 1.0), (0.125, 0.0), (0.25, 1.0), (0.5, 0.0), (1.0, 0.0)]) == pytest.approx(
        [0.06, 0.05, 0.04, 0.02, 0.02]
    )


def test_curriculum__success_narrows_by_a_tenth_of_the_range() -> None:
    one = task(curriculum="success", curriculum_tolerance=0.06)
    found = tolerances(one, [(0.0, 0.0), (0.1, 0.89), (0.2, 0.9), (0.3, 0.95), (0.4, 0.5)])
    assert found == pytest.approx([0.06, 0.06, 0.056, 0.052, 0.052])
    assert tolerances(one, [(0.5, 1.0)] * 20, range(1000, 3000, 100))[-1] == pytest.approx(0.02)


def test_curriculum__success_waits_for_a_hundred_episodes_between_changes() -> None:
    """The success rate covers the last 100 episodes, so it includes episodes with a wider tolerance before
    100 have ended."""
    one = task(curriculum="success", curriculum_tolerance=0.06)
    found = tolerances(one, [(0.0, 0.0)] + [(0.1, 1.0)] * 6, [0, 60, 99, 130, 229, 230, 300])
    assert found == pytest.approx([0.06, 0.06, 0.06, 0.056, 0.056, 0.052, 0.052])
    other = task(curriculum="success", curriculum_tolerance=0.06)
    other.load_state_dict(one.state_dict())
    assert tolerances(other, [(0.1, 1.0)] * 2, [329, 330]) == pytest.approx([0.052, 0.048])


@pytest.mark.parametrize("curriculum", ["schedule", "success"])
def test_curriculum__is_not_used_in_evaluation(curriculum: str) -> None:
    assert task(curriculum=curriculum).randomize(torch.tensor([1]))["tolerance"].item() == 0.02


def test_curriculum__resumes_from_the_saved_state() -> None:
    one = task(curriculum="success", curriculum_tolerance=0.06)
    tolerances(one, [(0.0, 0.0), (0.1, 1.0)])
    other = task(curriculum="success", curriculum_tolerance=0.06)
    other.load_state_dict(one.state_dict())
    assert tolerances(other, [(0.2, 0.0)]) == pytest.approx([0.056])


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"tolerance": 0.0},
        {"action_scale": -0.02},
        {"max_target_error": float("nan")},
        {"success_hold_steps": 0},
        {"max_episode_steps": 0},
        {"sheet_x": (0.3, 0.2)},
        {"sheet_yaw": (0.0, float("inf"))},
        {"friction_scale": (0.0, 1.0)},
        {"mass_scale": (-1.0, 1.0)},
        {"image_size": (0, 64)},
        {"obs_mode": "depth"},
        {"randomization": "yes"},
        {"servo": "new"},
        {"curriculum": "schedule", "curriculum_tolerance": 0.01},
        {"curriculum_fraction": 0.0},
        {"curriculum_fraction": 1.1},
        {"curriculum_success_rate": 0.0},
        {"curriculum_success_rate": 1.01},
    ],
    ids=str,
)
def test_so101_paper_cfg__invalid_value_names_the_field(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=list(change)[-1]):
        SO101PaperCfg(**change)


def test_so101_paper_cfg__is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SO101PaperCfg().tolerance = 0.1  # type: ignore[misc]
