"""Minari's datasets: a golden one that Minari 0.5.4 wrote, and others by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from demo_files import one_line_error
from foreign_demos import ACTIONS, BOX, NORMALISED, minari
from paths import DATA

from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError

GOLDEN = DATA / "golden_minari_v0_5_4"
"""Two episodes of an env with the observation {"agent": (t, -t), "goal": 1 of 3}, actions from (0, -1) to
(512, 1), the reward t, and success at t = 3, where it terminates; recorded with `minari.DataCollector`."""


@pytest.mark.parametrize("path", [GOLDEN, GOLDEN / "data", GOLDEN / "data" / "main_data.hdf5"])
def test_demonstrations__dataset_that_minari_wrote(path: Path) -> None:
    with Demonstrations.open(path) as demos:
        assert (demos.program, demos.own, demos.names_task) == ("Minari", False, False)
        assert (len(demos), demos.task_id, demos.task_settings) == (2, "Counter-v0", {"env_id": "Counter-v0"})
        assert demos.shapes == {"actions": (2,), "obs/state": (5,), "obs/agent": (2,), "obs/goal": (3,)}
        assert [demos.seed(i) for i in range(2)] == [5, 6]
        demo = demos.episode(1)
    np.testing.assert_array_equal(demo.actions, NORMALISED)
    t = np.arange(4.0, dtype=np.float32)
    goal = np.array([[0, 1, 0]] * 4, np.float32)
    np.testing.assert_array_equal(demo.obs["agent"], np.stack([t, -t], 1))
    np.testing.assert_array_equal(demo.obs["goal"], goal)
    np.testing.assert_array_equal(demo.obs["state"], np.concatenate([demo.obs["agent"], goal], 1))
    assert {value.dtype for value in demo.obs.values()} == {np.dtype("float32")}
    assert demo.rewards is not None
    assert demo.success is not None
    assert demo.rewards.tolist() == [1.0, 2.0, 3.0]
    assert demo.success.tolist() == demo.terminated.tolist() == [False, False, True]
    assert not demo.truncated.any()
    assert demo.seed == 6


def test_minari_file__one_array_is_the_state(tmp_path: Path) -> None:
    with Demonstrations.open(minari(tmp_path / "set")) as demos:
        first, second = demos
        assert demos.shapes == {"actions": (2,), "obs/state": (2,)}
    np.testing.assert_array_equal(second.obs["state"], [[0, 1], [1, 1], [2, 1], [3, 1]])
    assert (first.succeeded, second.succeeded) == (True, False)
    assert second.truncated.tolist() == [False, False, True]


def test_minari_file__nested_observations_have_the_names_of_the_env(tmp_path: Path) -> None:
    """As `envs.gymnasium.observations` names those of the env."""
    small = {"type": "Box", "dtype": "uint8", "shape": [2, 2, 3], "low": np.zeros((2, 2, 3)).tolist()}
    small["high"] = np.full((2, 2, 3), 255).tolist()
    large = {"type": "Box", "dtype": "uint8", "shape": [32, 32], "low": np.zeros((32, 32)).tolist()}
    large["high"] = np.full((32, 32), 255).tolist()
    pair = {"type": "Tuple", "subspaces": [large, BOX]}
    space = {
        "type": "Dict",
        "subspaces": {"z": BOX, "a": {"type": "Dict", "subspaces": {"b": pair}}, "eye": small},
    }
    space["subspaces"]["say"] = {"type": "Text", "max_length": 3, "min_length": 0, "charset": "abc"}
    values = {
        "z": np.full((4, 2), 1.0),
        "a": {"b": {"_index_0": np.zeros((4, 9), np.uint8), "_index_1": np.full((4, 2), 2.0)}},
        "eye": np.full((4, 2, 2, 3), 7, np.uint8),
    }
    with Demonstrations.open(minari(tmp_path / "set", values, space)) as demos:
        demo = demos.episode(0)
        assert demo.shapes == demos.shapes
        with pytest.raises(UnknownNameError, match=r"unknown observation of .*: 'a_b_0'"):
            demos.episode(0, ("a_b_0",))  # an encoded image
        assert set(demos.episode(0, ("eye",)).obs) == {"eye"}
    assert {name: value.shape for name, value in demo.obs.items()} == {
        "state": (4, 4),
        "z": (4, 2),
        "a_b_1": (4, 2),
        "eye": (4, 2, 2, 3),
    }
    assert demo.obs["state"][0].tolist() == [1.0, 1.0, 2.0, 2.0]  # in the order of the space
    assert demo.obs["eye"].dtype == np.uint8


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ({}, None),
        ({"other": [1.0, 2.0, 3.0]}, None),
        ({"is_success": [0.0, 1.0, 0.0]}, [False, True, False]),
        ({"goal_achieved": [[True], [False], [False], [True]]}, [False, False, True]),
    ],
)
def test_minari_file__success_of_infos(infos: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    with Demonstrations.open(minari(tmp_path / "set", infos=infos)) as demos:
        success = demos.episode(0).success
    assert (None if success is None else success.tolist()) == expected


def test_minari_file__actions_out_of_bounds_are_clipped_as_by_the_env(tmp_path: Path) -> None:
    narrow = json.dumps({**ACTIONS, "high": [256.0, 1.0]})
    with Demonstrations.open(minari(tmp_path / "set", action_space=narrow)) as demos:
        np.testing.assert_array_equal(demos.episode(0).actions, [[-1, 1], [0, 0], [1, -1]])


def edit(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
            change(file)

    return spoil


def replace(name: str, value: Any) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return edit(change)


@pytest.mark.parametrize(
    ("metadata", "spoil", "error", "message"),
    [
        ({"total_episodes": 3}, None, CheckpointError, "metadata.json lists 3 episodes, but"),
        ({"total_episodes": 10**12}, None, CheckpointError, "metadata.json lists 1000000000000 episodes"),
        (
            {"action_space": json.dumps({"type": "Discrete", "n": 2, "start": 0})},
            None,
            ConfigError,
            "Discrete(2)",
        ),
        (
            {"action_space": json.dumps({**ACTIONS, "low": [-np.inf, 0.0]})},
            None,
            ConfigError,
            "unbounded actions",
        ),
        ({"action_space": "{"}, None, CheckpointError, "metadata.json cannot be read"),
        ({"observation_space": '{"type": "Dict", "subspaces": 3}'}, None, CheckpointError, "cannot be read"),
        ({"observation_space": "[" * 10**5}, None, CheckpointError, "metadata.json cannot be read"),
        ({"env_spec": "[1]"}, None, CheckpointError, "metadata.json cannot be read"),
        (
            {},
            lambda f: (f / "data/metadata.json").unlink(),
            CheckpointError,
            "metadata.json is missing: Minari",
        ),
        ({}, lambda f: (f / "data/main_data.hdf5").unlink(), CheckpointError, "without data/main_data.hdf5"),
        ({}, edit(lambda f: f.pop("episode_1")), CheckpointError, "lists 2 episodes, but"),
        ({}, edit(lambda f: f.pop("episode_1/actions")), CheckpointError, "episode_1 cannot be read"),
        ({}, replace("episode_1/actions", np.ones((3, 3))), CheckpointError, "expected [T, 2]"),
        ({}, replace("episode_1/actions", np.array([b"x"])), CheckpointError, "expected numbers"),
        ({}, replace("episode_1/rewards", np.ones(2)), CheckpointError, "rewards has the shape [2]"),
        ({}, replace("episode_1/observations", np.ones((3, 2))), CheckpointError, "expected 4"),
        (
            {},
            replace("episode_1/observations", np.ones((4, 3))),
            CheckpointError,
            "observations has shape [4, 3]",
        ),
        ({}, replace("episode_1/infos/success", np.ones(9)), CheckpointError, "infos/success has shape [9]"),
    ],
)
def test_minari_file__defects_are_one_line_that_names_the_dataset(
    metadata: dict[str, Any], spoil: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = minari(tmp_path / "set", **metadata)
    if spoil is not None:
        spoil(folder)
    with one_line_error(error, message, str(folder)), Demonstrations.open(folder) as demos:
        list(demos)


def test_data_file__a_lerobot_dataset_names_the_command_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "set" / "meta").mkdir(parents=True)
    (tmp_path / "set" / "meta" / "info.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"set is a LeRobot dataset: .*`residual-rl demos from-lerobot .*set --task"
    ):
        Demonstrations.open(tmp_path / "set")


def test_task_cfg__names_the_command_that_adds_a_task(tmp_path: Path) -> None:
    with (
        Demonstrations.open(minari(tmp_path / "set")) as demos,
        pytest.raises(
            ConfigError, match=r"names no task: convert it with `residual-rl demos convert .*set --task"
        ),
    ):
        _ = demos.task_cfg
