"""robomimic's files, written by hand in the documented layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from demo_files import one_line_error
from foreign_demos import NORMALISED, robomimic

from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import CheckpointError


def test_robomimic_file__episodes_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    with Demonstrations.open(robomimic(tmp_path / "x.hdf5")) as demos:
        assert (demos.program, demos.names_task, len(demos)) == ("robomimic", False, 11)
        assert (demos.task_id, demos.task_settings) == ("Lift", {})
        assert demos.shapes == {
            "actions": (2,),
            "obs/state": (4,),
            "obs/object": (1,),
            "obs/robot0_eef_pos": (3,),
        }
        demo, other = demos.episode(10), demos.episode(1)
    # four observations, the last one from `next_obs`
    np.testing.assert_array_equal(demo.obs["object"], [[0], [1], [2], [3]])
    np.testing.assert_array_equal(demo.obs["state"], [[t, 10, t, 0] for t in range(4)])
    np.testing.assert_array_equal(demo.actions, NORMALISED)
    assert {value.dtype for value in demo.obs.values()} == {np.dtype("float32")}
    # success is a positive reward, and ends the episode
    assert demo.rewards is not None
    assert demo.success is not None
    assert demo.rewards.tolist() == [0.0, 0.0, 1.0]
    assert demo.success.tolist() == demo.terminated.tolist() == [False, False, True]
    assert (other.succeeded, other.truncated.tolist()) == (False, [False, False, True])
    assert not other.terminated.any()
    assert demo.seed is None


def test_robomimic_file__without_next_obs_the_last_action_is_left_out(tmp_path: Path) -> None:
    with Demonstrations.open(robomimic(tmp_path / "x.hdf5", next_obs=False)) as demos:
        demo = demos.episode(0)
    np.testing.assert_array_equal(demo.obs["object"], [[0], [1], [2]])
    np.testing.assert_array_equal(demo.actions, NORMALISED[:2])
    assert demo.truncated.tolist() == [False, True]


def test_robomimic_file__success_is_unknown_where_the_reward_is_shaped(tmp_path: Path) -> None:
    with Demonstrations.open(robomimic(tmp_path / "x.hdf5", shaped=True)) as demos:
        assert demos.episode(0).success is None


def test_robomimic_file__images_are_no_part_of_the_state(tmp_path: Path) -> None:
    obs = {"object": np.ones((4, 2)), "agentview_image": np.full((4, 8, 8, 3), 9, np.uint8)}
    with Demonstrations.open(robomimic(tmp_path / "x.hdf5", obs)) as demos:
        demo = demos.episode(0)
    assert (demo.obs["state"].shape, demo.obs["agentview_image"].shape) == ((4, 2), (4, 8, 8, 3))
    assert demo.obs["agentview_image"].dtype == np.uint8


def attribute(value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file["data"].attrs["env_args"] = value

    return change


def remove(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute("{"), "the attribute env_args of data cannot be read"),
        (attribute("{}"), "the attribute env_args of data cannot be read (KeyError('env_name'))"),
        (attribute("[" * 10**5), "the attribute env_args of data cannot be read"),
        (attribute(3), "the attribute env_args of data cannot be read"),
        (lambda f: [f.pop(f"data/{name}") for name in list(f["data"])], "has no episodes data/demo_0"),
        (remove("data/demo_0/actions"), "data/demo_0 cannot be read"),
        (remove("data/demo_1/obs/object"), "data/demo_1 cannot be read"),
        (remove("data/demo_1/obs"), "data/demo_1 cannot be read"),
    ],
)
def test_robomimic_file__defects_are_one_line_that_names_the_file(
    change: Callable[[h5py.File], Any], message: str, tmp_path: Path
) -> None:
    path = robomimic(tmp_path / "x.hdf5")
    with h5py.File(path, "r+") as file:
        change(file)
    with one_line_error(CheckpointError, message, str(path)), Demonstrations.open(path) as demos:
        list(demos)


def test_robomimic_file__actions_that_are_not_normalised_are_refused(tmp_path: Path) -> None:
    with (
        Demonstrations.open(robomimic(tmp_path / "x.hdf5", actions=2.0 * NORMALISED)) as demos,
        pytest.raises(CheckpointError, match=r"its actions are not in \[-1, 1\]"),
    ):
        demos.episode(0)
