"""LeRobot datasets of envs without an arm, written by hand in the format v2.1, as demonstrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium_toys
import numpy as np
import pandas as pd
import plain_env
import pytest
from tiny_runs import Fails

from residual_rl.cli.main import main
from residual_rl.demos.reader import Demonstrations

pytestmark = [pytest.mark.lerobot, pytest.mark.slow]

PUSHER = ["--task", "gymnasium", "--env-id", "Plain/Pusher-v0", "--env-modules", plain_env.MODULE]
FLAT = ["--task", "gymnasium", "--env-id", "Toys/Point-v0", "--env-modules", gymnasium_toys.MODULE]
FLAT += ["--env-kwargs", "habit=flat"]
POSITION = np.float32([[0, 512], [128, 256], [512, 0], [100, 100]])
ACTION = np.float32([[128, 256], [512, 0], [0, 600], [7, 7]])
GOAL = np.float32([[300, 400]] * 4)


def write_dataset(root: Path, columns: dict[str, Any], fps: int = 10) -> Path:
    """An episode of four frames."""
    frames = {
        **columns,
        "timestamp": np.arange(4, dtype=np.float32) / fps,
        "frame_index": np.arange(4),
        "episode_index": np.zeros(4, np.int64),
        "index": np.arange(4),
        "task_index": np.zeros(4, np.int64),
    }
    features = {
        name: {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}
        for name, values in frames.items()
    }
    info = {"codebase_version": "v2.1", "fps": fps, "total_episodes": 1, "features": features}
    (root / "meta").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / "meta" / "episodes.jsonl").write_text('{"episode_index": 0, "tasks": ["push"], "length": 4}\n')
    table = pd.DataFrame({name: list(values) for name, values in frames.items()})
    table.to_parquet(root / "data" / "chunk-000" / "episode_000000.parquet", index=False)
    return root


def pusher(root: Path, **more: Any) -> Path:
    columns = {"observation.state": POSITION, "observation.environment_state": GOAL, "action": ACTION}
    columns["next.reward"] = np.float32([0, 0.5, 1, 1])
    columns["next.success"] = np.array([False, False, True, True])
    return write_dataset(root, {**columns, **more})


def test_from_lerobot__observations_and_actions_of_an_env(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.h5"
    dataset = pusher(tmp_path / "set")
    assert main(["demos", "from-lerobot", str(dataset), *PUSHER, "--output", str(out)]) == 0
    assert "1 values were clipped to the range of actions" in capsys.readouterr().out
    with Demonstrations.open(out) as demos:
        (demo,) = demos
        assert (demos.task_id, demos.task_settings["env_id"]) == ("gymnasium", "Plain/Pusher-v0")
    # four frames are three steps; by hand: action / 256 - 1, of which 600 / 256 - 1 is clipped
    np.testing.assert_array_equal(demo.actions, [[-0.5, 0.0], [1.0, -1.0], [-1.0, 1.0]])
    np.testing.assert_array_equal(demo.obs["agent_pos"], POSITION)
    np.testing.assert_array_equal(demo.obs["environment_state"], GOAL)
    np.testing.assert_array_equal(demo.obs["state"], np.concatenate([GOAL, POSITION], 1))  # the env's order
    # the task ends at success, and its reward is sparse
    assert demo.rewards is not None
    assert demo.rewards.tolist() == [0.0, 0.0, 1.0]
    assert demo.terminated.tolist() == [False, False, True]


def test_from_lerobot__reward_of_the_env(tmp_path: Path) -> None:
    out = tmp_path / "x.h5"
    flags = [*PUSHER, "--reward-mode", "env", "--output", str(out)]
    assert main(["demos", "from-lerobot", str(pusher(tmp_path / "set")), *flags]) == 0
    with Demonstrations.open(out) as demos:
        rewards = demos.episode(0).rewards
    assert rewards is not None
    assert rewards.tolist() == [0.0, 0.5, 1.0]


def test_from_lerobot__an_env_that_observes_one_array(tmp_path: Path) -> None:
    columns = {"observation.state": np.concatenate([POSITION, GOAL], 1), "action": ACTION}
    dataset, out = write_dataset(tmp_path / "set", columns), tmp_path / "x.h5"
    flags = [*FLAT, "--reward-mode", "env", "--output", str(out)]
    assert main(["demos", "from-lerobot", str(dataset), *flags]) == 0
    with Demonstrations.open(out) as demos:
        np.testing.assert_array_equal(demos.episode(0).obs["state"], columns["observation.state"])


def test_from_lerobot__what_does_not_fit_an_env_is_named(tmp_path: Path, fails: Fails) -> None:
    def message(root: Path, *flags: Any) -> str:
        return fails("demos", "from-lerobot", root, *PUSHER, "--output", tmp_path / "x.h5", *flags)

    assert "joint_offsets applies to datasets of a robot arm only" in message(
        pusher(tmp_path / "a"), "--joint-offsets", "elbow=3"
    )
    three = np.zeros((4, 3), np.float32)
    assert "has action of size 3, but the action of task 'gymnasium' has shape [2]" in message(
        pusher(tmp_path / "b", action=three)
    )
    assert "observation.state of size 3, but agent_pos of task 'gymnasium' has shape [2]" in message(
        pusher(tmp_path / "c", **{"observation.state": three})
    )
    only = {"observation.state": three, "action": ACTION}
    assert "observation.state [3], of which the observations of task 'gymnasium' cannot be made: " in message(
        write_dataset(tmp_path / "d", only)
    )
    nan = np.full((4, 2), np.nan, np.float32)
    assert "episode 0: action is NaN or infinite" in message(pusher(tmp_path / "e", action=nan))
    columns = {"observation.state": POSITION, "observation.environment_state": GOAL, "action": ACTION}
    unknown = write_dataset(tmp_path / "f", columns)
    assert "success is not recorded, which the sparse reward is made of: choose --reward-mode env" in message(
        unknown
    )
