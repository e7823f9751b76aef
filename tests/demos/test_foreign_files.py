"""Intact files of ManiSkill that cannot be used as they are: the error names the reason and a fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from demo_files import maniskill, read

from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import CheckpointError


def change(path: Path, edit: Callable[[h5py.File], Any]) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def as_maniskill_2(file: h5py.File) -> None:
    """The layout of ManiSkill 2: no flags of ends, and the state as one array."""
    for trajectory in file.values():
        for name in ("terminated", "truncated", "env_states"):
            del trajectory[name]
        trajectory["env_states"] = np.zeros((4, 80), np.float32)
        trajectory["env_init_state"] = np.zeros(80, np.float32)


def test_demonstrations__recording_of_maniskill_2_is_named(tmp_path: Path) -> None:
    path = change(maniskill(tmp_path / "old.h5"), as_maniskill_2)
    with pytest.raises(CheckpointError) as caught:
        Demonstrations.open(path)
    assert f"{path} was recorded with ManiSkill 2" in str(caught.value)
    assert "python -m mani_skill.utils.download_demo" in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_demonstrations__several_robots_are_named(tmp_path: Path) -> None:
    def two_robots(file: h5py.File) -> None:
        for trajectory in file.values():
            actions = trajectory["actions"][()]
            del trajectory["actions"]
            trajectory["actions/panda-0"], trajectory["actions/panda-1"] = actions, actions

    path = change(maniskill(tmp_path / "two.h5"), two_robots)
    for use in (lambda demos: demos.shapes, lambda demos: demos.episode(0)):
        with Demonstrations.open(path) as demos, pytest.raises(CheckpointError) as caught:
            use(demos)
        assert str(caught.value) == (
            f"{path}: traj_0: actions is a group of panda-0, panda-1, as in tasks with several robots, which "
            "are not supported; use a task with one robot, whose actions are one array"
        )


@pytest.mark.parametrize("obs", ["an empty group", "nothing"])
def test_demonstrations__missing_observations_name_the_conversion_tool(tmp_path: Path, obs: str) -> None:
    path = maniskill(tmp_path / "none.h5", {})
    if obs == "nothing":
        change(path, lambda file: [trajectory.pop("obs") for trajectory in file.values()])
    with Demonstrations.open(path) as demos:
        assert demos.episode(0).obs == {}
        with pytest.raises(CheckpointError) as caught:
            demos.episode(1, ("state",))
    assert f"{path}: traj_1: the episode has no observations; record it with observations" in str(
        caught.value
    )
    assert "replay_trajectory --traj-path FILE --save-traj --obs-mode state" in str(caught.value)


def test_demonstrations__empty_trajectory_names_the_tool_that_removes_it(tmp_path: Path) -> None:
    path = maniskill(tmp_path / "empty.h5", steps=0)
    with pytest.raises(CheckpointError, match=r"traj_0: the episode has no steps; .*`clean_trajectories`"):
        read(path)


@pytest.mark.parametrize("entry", [{"elapsed_steps": None}, {"elapsed_steps": "70"}])
def test_demonstrations__unknown_length_is_read_from_the_actions(
    tmp_path: Path, entry: dict[str, Any]
) -> None:
    path = maniskill(tmp_path / "long.h5", steps=70, **entry)
    with Demonstrations.open(path) as demos:
        assert demos.task_settings["max_episode_steps"] == 70
        assert len(demos.episode(0)) == 70


def test_demonstrations__limit_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = maniskill(tmp_path / "x.h5")
    side = path.with_suffix(".json")
    document = json.loads(side.read_text())
    document["env_info"]["max_episode_steps"] = "fifty"
    side.write_text(json.dumps(document))
    with Demonstrations.open(path) as demos, pytest.raises(CheckpointError, match="trajectory settings"):
        _ = demos.task_settings
