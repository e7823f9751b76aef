"""Padding of observations with the robot's base pose, by hand and as part of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import il_case
import pytest
import torch
from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.imitation.model import MODEL_FILE, ImitationModel
from residual_rl.imitation.normalization import Statistics
from residual_rl.imitation.obs_padding import ROBOT_BASE_POSE, ObsPadding, padding_to

POSE = [-0.615, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_padding_to__pads_43_numbers_to_50_as_worked_out_by_hand() -> None:
    padding = padding_to(50, 43)
    assert padding is not None
    obs = torch.stack([torch.arange(43.0), 100 + torch.arange(43.0)])
    expected = [[*range(18), *POSE, *range(18, 43)], [*range(100, 118), *POSE, *range(118, 143)]]
    torch.testing.assert_close(padding(obs), torch.tensor(expected))
    torch.testing.assert_close(
        padding(obs[:, None].double()),
        torch.tensor(expected, dtype=torch.float64)[:, None],
        atol=1e-7,
        rtol=0,
    )


def test_padding_to__appends_the_pose_to_the_smallest_observation() -> None:
    padding = padding_to(25, 18)
    assert padding is not None
    torch.testing.assert_close(padding(torch.zeros(18)), torch.tensor([0.0] * 18 + POSE))


def test_obs_padding__inserts_and_erases_its_values() -> None:
    assert ObsPadding(1, (7.0, 8.0))(torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 7.0, 8.0, 2.0]]
    assert ROBOT_BASE_POSE.erased(torch.ones(26)).tolist() == [1.0] * 18 + [0.0] * 7 + [1.0]
    assert padding_to(None, 43) is None


@pytest.mark.parametrize(("size", "given"), [(50, 42), (50, 50), (43, 50), (17, 10)])
def test_padding_to__refuses_sizes_that_do_not_differ_by_the_pose(size: int, given: int) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"pad_obs_to is {size}, but the observations have size {given}: .*7 numbers. at index 18",
    ):
        padding_to(size, given)


def padded_model(**values: Any) -> ImitationModel:
    """A model that reads the 25 numbers of `state` in so101-paper and pads them to 32."""
    settings = il_case.settings("bc", obs_padding=ROBOT_BASE_POSE, **values)
    return ImitationModel(settings, Statistics.identity(settings.obs_size, 6), name="the model")


def test_imitation_model__pads_observations_and_saves_the_padding(tmp_path: Path) -> None:
    model = padded_model()
    assert (model.settings.obs_size, model.settings.obs_dim) == (32, 64)
    model.save(tmp_path / MODEL_FILE)
    loaded = ImitationModel.load(tmp_path)
    assert loaded.settings.obs_padding == ROBOT_BASE_POSE
    seen: list[Tensor] = []

    def sample(network: Any, obs: Tensor, noise: Tensor, sampling_steps: int) -> Tensor:
        seen.append(obs)
        return torch.full((1, 8, 6), 0.25)

    loaded.algorithm.sample = sample  # type: ignore[method-assign]
    obs = torch.arange(50.0).reshape(1, 2, 25)
    assert loaded.sample(obs, torch.zeros(1, 8, 6)).unique().tolist() == [0.25]
    expected = [*range(18), *POSE, *range(18, 25), *range(25, 43), *POSE, *range(43, 50)]
    # The observations are unchanged, also beyond the usual clip of 10.
    torch.testing.assert_close(seen[0], torch.tensor([expected]))
