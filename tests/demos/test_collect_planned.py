"""Demonstrations of planners: failed episodes are reported and replaced, and planners are found by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_files import INFO, a_demo, read

from residual_rl.cli.flags import settings_as_flags
from residual_rl.cli.main import main
from residual_rl.demos.collect import CollectCfg, collect_planned
from residual_rl.demos.episode import Demo, FailedEpisode
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.writer import DemoWriter
from residual_rl.errors import ConfigError
from residual_rl.registry import TASKS


class EvenSeeds:
    """A planner that fails at odd seeds and solves the task at every fourth seed."""

    max_episode_steps, control_hz, action_unit, action_unit_name = 6, 10.0, (0.5, 0.5), "m"
    description = "every other one"

    def __init__(self, cfg: Any = None, num_workers: int = 1, time_limit: float = 1.0):
        self.task, self.made_with, self.closed = cfg, (num_workers, time_limit), False

    def episodes(self, seeds: Sequence[int], stopped: Callable[[], bool]) -> Iterator[Demo | FailedEpisode]:
        for seed in seeds:
            if stopped():
                return
            if seed % 2:
                yield FailedEpisode(seed, "odd")
            else:
                yield a_demo(seed, success=np.array([False, False, seed % 4 == 0]))

    def close(self) -> None:
        self.closed = True


def collected(tmp_path: Path, **settings: Any) -> tuple[Any, list[int | None]]:
    with DemoWriter(tmp_path / "x.h5", INFO) as writer:
        result = collect_planned(EvenSeeds(), CollectCfg(first_seed=0, **settings), writer)
    return result, [demo.seed for demo in read(tmp_path / "x.h5")]


def test_collect_planned__replaces_failed_episodes(tmp_path: Path) -> None:
    result, seeds = collected(tmp_path, n_episodes=3)
    assert seeds == [0, 2, 4]
    assert (result.ran, result.solved) == (5, 2)
    assert result.failed == [FailedEpisode(1, "odd"), FailedEpisode(3, "odd")]


def test_collect_planned__only_success_stores_successful_episodes(tmp_path: Path) -> None:
    result, seeds = collected(tmp_path, n_episodes=3, only_success=True)
    assert seeds == [0, 4, 8]
    assert (result.ran, result.solved, len(result.failed)) == (9, 3, 4)


def test_collect_planned__stops_after_consecutive_failures(tmp_path: Path) -> None:
    class OddSeeds(EvenSeeds):
        def episodes(
            self, seeds: Sequence[int], stopped: Callable[[], bool]
        ) -> Iterator[Demo | FailedEpisode]:
            yield from super().episodes([seeds[0], *(2 * seed + 1 for seed in seeds)], stopped)

    with (
        DemoWriter(tmp_path / "x.h5", INFO) as writer,
        pytest.raises(ConfigError, match=r"20 consecutive episodes failed.*seed 39: odd"),
    ):
        collect_planned(OddSeeds(), CollectCfg(first_seed=0, n_episodes=5), writer)
    assert [demo.seed for demo in read(tmp_path / "x.h5")] == [0]


def test_collect_planned__keeps_complete_episodes_when_stopped(tmp_path: Path) -> None:
    progress: list[tuple[int, float]] = []
    with DemoWriter(tmp_path / "x.h5", INFO) as writer:
        collect_planned(
            EvenSeeds(),
            CollectCfg(first_seed=0, n_episodes=9),
            writer,
            stopped=lambda: len(progress) == 3,
            on_progress=lambda *figures: progress.append(figures),
        )
    assert [demo.seed for demo in read(tmp_path / "x.h5")] == [0, 2]
    assert progress == [(1, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]


def test_demos_collect__runs_a_planner_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[EvenSeeds] = []

    def make(cfg: Any, num_workers: int, time_limit: float) -> EvenSeeds:
        made.append(EvenSeeds(dataclasses.replace(cfg, max_episode_steps=6), num_workers, time_limit))
        return made[0]

    spec = dataclasses.replace(
        TASKS.get("so101-paper"), planners={"by-hand": f"{__name__}:planner_under_test"}
    )
    monkeypatch.setitem(TASKS._specs, "so101-paper", spec)
    monkeypatch.setitem(globals(), "planner_under_test", make)
    path = tmp_path / "x.h5"
    flags = ["--policy", "by-hand", "--n-episodes", "2", "--first-seed", "0", "--tolerance", "0.03"]
    flags += ["--num-threads", "5", "--time-limit", "7"]
    assert main(["demos", "collect", "so101-paper", *flags, "--out", str(path)]) == 0
    assert made[0].made_with == (2, 7.0)  # no more processes than episodes
    assert made[0].closed
    output = capsys.readouterr()
    assert "2 episodes (" in output.out
    assert "1 of 3 episodes succeeded, 1 could not be planned" in output.out
    assert "the episode of seed 1 could not be planned: odd" in output.err
    with Demonstrations(path) as demos:
        assert [demo.seed for demo in demos] == [0, 2]
        settings, info = demos.task_settings, demos.info
    assert (settings["tolerance"], settings["max_episode_steps"]) == (0.03, 6)
    assert (info["source_type"], info["source_desc"], info["action_unit"]) == (
        "by-hand",
        "every other one",
        [0.5, 0.5],
    )
    assert settings_as_flags("so101-paper", settings) == "--tolerance 0.03 --max-episode-steps 6"
    assert main(["demos", "info", str(path)]) == 0
    assert "--tolerance 0.03 --max-episode-steps 6" in capsys.readouterr().out
    assert (
        main(["demos", "collect", "so101-paper", "--policy", "by-hand", "--noise", "0.1", "--num-envs", "4"])
        == 2
    )
    assert "leave out --noise, --num-envs" in capsys.readouterr().err
    assert main(["demos", "collect", "so101-paper", "--policy", "by-hand", "--time-limit", "0"]) == 2
    assert "time_limit must be above 0" in capsys.readouterr().err


def test_settings_as_flags__prints_settings_as_flags() -> None:
    settings = {"a_list": [1, 2], "yes": True, "no": False, "nothing": None, "name": "two words"}
    assert settings_as_flags("no-such-task", settings) == "--a-list 1 2 --yes --no-no --name 'two words'"
