"""Named arrays of nested observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from residual_rl.envs.gymnasium.observations import Observations, space_of
from residual_rl.envs.spaces import BASE_OBS, EXPERT_ACTION


def numbers(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float64)


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def test_observations__flat_box_is_the_state() -> None:
    observations = Observations(numbers(2, 2))
    assert observations.layout() == {"state": ((4,), "float32")}
    named = observations(np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert named["state"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert named["state"].dtype == np.float32


def test_observations__entries_have_their_keys_as_names_and_state_has_all_numbers() -> None:
    space = spaces.Dict(
        {
            "goal": spaces.Tuple([numbers(), spaces.Discrete(3, start=5)]),
            "robot": spaces.Dict({"gripper": spaces.MultiBinary(2), "position": numbers(2)}),
        }
    )
    observations = Observations(space)
    layout = observations.layout()
    named = observations(
        {"robot": {"position": [1.0, 2.0], "gripper": np.int8([1, 0])}, "goal": (np.float64(9.0), 6)}
    )
    assert {name: value.tolist() for name, value in named.items()} == {
        "goal_0": [9.0],
        "goal_1": [0.0, 1.0, 0.0],
        "robot_gripper": [1.0, 0.0],
        "robot_position": [1.0, 2.0],
        "state": [9.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 2.0],
    }
    assert {name: (value.shape, str(value.dtype)) for name, value in named.items()} == layout


def test_observations__tuple_at_the_top_has_numbered_names() -> None:
    named = Observations(spaces.Tuple([numbers(1), image(2, 2, 3)]))(
        (np.array([4.0]), np.zeros((2, 2, 3), np.uint8))
    )
    assert {name: value.shape for name, value in named.items()} == {
        "obs_0": (1,),
        "obs_1": (2, 2, 3),
        "state": (1,),
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [((6, 7, 3), (6, 7, 3)), ((3, 6, 7), (6, 7, 3)), ((6, 7), (6, 7, 1)), ((4, 5, 3), (4, 5, 3))],
)
def test_observations__images_are_height_width_channels(
    given: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    observations = Observations(image(*given))
    assert observations.layout() == {"image": (expected, "uint8")}  # without numbers there is no state
    pixels = np.arange(np.prod(given), dtype=np.uint8).reshape(given)
    found = observations(pixels)["image"]
    assert found.shape == expected
    if given == (3, 6, 7):
        assert found[2, 5].tolist() == pixels[:, 2, 5].tolist()


def test_observations__bytes_that_are_no_image_are_numbers() -> None:
    assert Observations(image(128)).layout() == {"state": ((128,), "float32")}


def test_observations__names_with_a_meaning_elsewhere_get_a_prefix() -> None:
    names = ("state", EXPERT_ACTION, *BASE_OBS)
    space = spaces.Dict({name: numbers(1) for name in names})
    assert set(Observations(space).layout()) == {"state", *(f"env_{name}" for name in names)}


def test_observations__single_entry_named_state_is_the_state() -> None:
    space = spaces.Dict({"state": numbers(2), "pixels": image(4, 4, 3)})
    named = Observations(space)({"state": np.array([1.0, 2.0]), "pixels": np.zeros((4, 4, 3), np.uint8)})
    assert named["state"].tolist() == [1.0, 2.0]
    assert set(named) == {"state", "pixels"}


def test_observations_ignored__names_entries_without_a_fixed_size() -> None:
    space = spaces.Dict({"task": spaces.Text(9), "x": numbers(1), "points": spaces.Sequence(numbers(2))})
    observations = Observations(space)
    assert sorted(observations.ignored) == ["points", "task"]
    assert set(observations.layout()) == {"state", "x"}


def test_space_of__follows_the_values() -> None:
    value: Any = {"a": (1.5, np.zeros((2, 2, 3), np.uint8)), "b": [1, 2, 3]}
    assert Observations(space_of(value)).layout() == {
        "state": ((4,), "float32"),
        "a_0": ((1,), "float32"),
        "a_1": ((2, 2, 3), "uint8"),
        "b": ((3,), "float32"),
    }
