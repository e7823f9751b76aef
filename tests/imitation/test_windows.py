"""Training windows against values worked out by hand: observations, actions and their validity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.imitation.algorithms.base import masked_mse
from residual_rl.imitation.normalization import Statistics
from residual_rl.imitation.windows import Windows, make_windows, split_episodes

# Two episodes of 3 and 2 steps. Observations are 10, 11, 12, (13) and 20, 21, (22), actions 100 more.
FIRST = (
    {"x": np.array([[10.0], [11.0], [12.0], [13.0]]), "y": np.zeros((4, 2, 2))},
    np.array([[110.0], [111.0], [112.0]]),
)
SECOND = ({"x": np.array([[20.0], [21.0], [22.0]]), "y": np.ones((3, 2, 2))}, np.array([[120.0], [121.0]]))


def windows() -> Windows:
    return make_windows([FIRST, SECOND], ["x"])


def test_make_windows__gives_one_window_per_step() -> None:
    made = windows()
    assert len(made) == 5
    assert made.obs[:, 0].tolist() == [10, 11, 12, 20, 21]  # the last observation of an episode has no action
    assert made.first.tolist() == [0, 0, 0, 3, 3]
    assert made.last.tolist() == [2, 2, 2, 4, 4]


def test_windows_at__matches_values_worked_out_by_hand() -> None:
    obs, actions, valid = windows().at(torch.arange(5), num_obs_steps=3, chunk_size=4)
    assert obs[..., 0].tolist() == [[10, 10, 10], [10, 10, 11], [10, 11, 12], [20, 20, 20], [20, 20, 21]]
    assert actions[..., 0].tolist() == [
        [110, 111, 112, 112],
        [111, 112, 112, 112],
        [112, 112, 112, 112],
        [120, 121, 121, 121],
        [121, 121, 121, 121],
    ]
    assert valid.tolist() == [
        [True, True, True, False],
        [True, True, False, False],
        [True, False, False, False],
        [True, True, False, False],
        [True, False, False, False],
    ]


def test_windows_at__past_actions_match_values_worked_out_by_hand() -> None:
    _, actions, valid = windows().at(torch.arange(5), num_obs_steps=2, chunk_size=2, num_past_actions=1)
    assert actions[..., 0].tolist() == [
        [110, 110, 111],
        [110, 111, 112],
        [111, 112, 112],
        [120, 120, 121],
        [120, 121, 121],
    ]
    assert valid.tolist() == [
        [False, True, True],
        [True, True, True],
        [True, True, False],
        [False, True, True],
        [True, True, False],
    ]


def test_windows_at__single_step_gives_one_observation_and_one_action() -> None:
    obs, actions, valid = windows().at(torch.tensor([4, 1]), num_obs_steps=1, chunk_size=1)
    assert obs.tolist() == [[[21]], [[11]]]
    assert actions.tolist() == [[[121]], [[111]]]
    assert valid.all()


def test_make_windows__joins_observations_in_the_order_of_the_keys() -> None:
    made = make_windows([FIRST, SECOND], ["y", "x"])
    assert made.obs.shape == (5, 5)
    assert made.obs[:, 4].tolist() == [10, 11, 12, 20, 21]
    assert made.obs[3, :4].tolist() == [1, 1, 1, 1]


def test_make_windows__names_a_missing_observation_or_an_image() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown observation 'z'; .*known: x, y"):
        make_windows([FIRST], ["z"])
    image = ({"camera": np.zeros((3, 4, 4, 3), np.uint8)}, np.zeros((2, 1)))
    with pytest.raises(ConfigError, match=r"'camera' .* is an image"):
        make_windows([image], ["camera"])


def test_masked_mse__ignores_invalid_steps() -> None:
    prediction = torch.tensor([[[1.0, 2.0], [3.0, 50.0]], [[0.0, 1.0], [0.0, 2.0]]])
    target = torch.zeros(2, 2, 2)
    valid = torch.tensor([[True, False], [True, True]])
    # (1 + 4) / 2, (0 + 1) / 2 and (0 + 4) / 2; not the step with 50
    assert masked_mse(prediction, target, valid).item() == pytest.approx((2.5 + 0.5 + 2.0) / 3)


@pytest.mark.parametrize(
    ("count", "share", "train", "val"),
    [(10, 0.1, 9, 1), (20, 0.25, 15, 5), (3, 0.1, 2, 1), (1, 0.5, 1, 0), (7, 0.0, 7, 0), (2, 0.5, 1, 1)],
)
def test_split_episodes__splits_into_disjoint_sets_of_the_right_size(
    count: int, share: float, train: int, val: int
) -> None:
    learned, kept = split_episodes(count, share, seed=1)
    assert (len(learned), len(kept)) == (train, val)
    assert sorted([*learned, *kept]) == list(range(count))
    assert split_episodes(count, share, seed=1) == (learned, kept)


def test_split_episodes__validation_set_depends_on_the_seed() -> None:
    assert len({tuple(split_episodes(100, 0.1, seed)[1]) for seed in range(5)}) == 5


def test_statistics__match_values_worked_out_by_hand() -> None:
    obs = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    actions = torch.tensor([[-0.5, 0.2, 0.0], [0.7, 0.2, 0.0005]])
    made = Statistics.of(obs, actions)
    assert made.obs_mean.tolist() == [2.0, 5.0]
    assert made.obs_std.tolist() == pytest.approx([1.0, 0.0])
    # The constant observation is ignored.
    shifted = made.obs_mean + torch.tensor([2.0, 5.0])
    assert made.normalize_obs(shifted).tolist() == pytest.approx([2.0, 0.0])
    # From -0.5 … 0.7 to -1 … 1. A constant becomes 0, and a range below 0.002 is not stretched to -1 … 1.
    normalized = made.normalize_actions(actions)
    torch.testing.assert_close(normalized, torch.tensor([[-1.0, 0.0, -0.25], [1.0, 0.0, 0.25]]))
    torch.testing.assert_close(made.restore_actions(normalized), actions)
    torch.testing.assert_close(
        made.restore_actions(torch.tensor([7.0, -9.0, 0.0])), torch.tensor([0.7, 0.199, 0.00025])
    )
    assert made.normalize_obs(torch.tensor([[24.0, 6.0]])).tolist() == [[10.0, 0.0]]  # clipped


def test_windows_normalized__has_zero_mean_and_unit_deviation() -> None:
    raw = windows()
    made = raw.normalized(Statistics.of(raw.obs, raw.actions), torch.device("cpu"))
    assert made.actions[:, 0].tolist() == pytest.approx([-1.0, -9 / 11, -7 / 11, 9 / 11, 1.0])
    assert made.obs.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert made.obs.std(correction=0).item() == pytest.approx(1.0)
    assert torch.equal(made.last, raw.last)


@pytest.mark.parametrize("lost", ["obs_mean", "action_high", None])
def test_statistics_from_state__names_missing_entries(lost: str | None) -> None:
    state = Statistics.of(torch.randn(4, 3), torch.randn(4, 2)).state_dict()
    given = None if lost is None else {key: value for key, value in state.items() if key != lost}
    with pytest.raises(
        CheckpointError, match=r"m\.safetensors has no normalisation statistics \(.*missing\).*imitate"
    ) as caught:
        Statistics.from_state(given, 3, 2, "m.safetensors")
    assert lost is None or lost in str(caught.value)


def test_statistics_from_state__refuses_another_size() -> None:
    state = Statistics.of(torch.randn(4, 3), torch.randn(4, 2)).state_dict()
    with pytest.raises(CheckpointError, match=r"obs_mean has shape \[3\]; expected \[5\]"):
        Statistics.from_state(state, 5, 2, "m")
