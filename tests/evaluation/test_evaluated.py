"""Reading the episodes of a policy from our evaluation files and from LeRobot's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from eval_files import lerobots, ours, write

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.evaluation.evaluated import read_evaluated


def test_read_evaluated__takes_the_residual_of_a_run_folder(tmp_path: Path) -> None:
    write(tmp_path / "run" / "eval.json", ours({"base": [0, 0], "residual": [1, 0]}))
    found = read_evaluated(tmp_path / "run")
    assert found.name == f"{tmp_path / 'run'} (residual)"
    assert found.tasks["so101-paper"]["success_once"] == {1000: 1.0, 1001: 0.0}
    assert found.settings == {"tolerance": 0.02}
    base = read_evaluated(tmp_path / "run", "base")
    assert base.tasks["so101-paper"]["success_once"] == {1000: 0.0, 1001: 0.0}


def test_read_evaluated__a_run_without_an_evaluation_names_the_command(tmp_path: Path) -> None:
    write(tmp_path / "run" / "config.json", {})
    with pytest.raises(CheckpointError, match=r"no evaluation yet; make one: residual-rl eval .*run"):
        read_evaluated(tmp_path / "run")


def test_read_evaluated__unknown_policy_lists_those_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "e.json", ours({"residual": [1]}))
    with pytest.raises(ConfigError, match="no policy 'zero'; it has residual"):
        read_evaluated(file, "zero")


def test_read_evaluated__lerobot_episodes_have_the_seeds_from_the_first_on(tmp_path: Path) -> None:
    write(tmp_path / "eval_info.json", lerobots({("pusht", 0): [1, 0, 1]}))
    found = read_evaluated(tmp_path, lerobot_seed=42)
    assert found.tasks == {
        "pusht": {
            "success_once": {42: 1.0, 43: 0.0, 44: 1.0},
            "return": {42: 9.0, 43: -1.0, 44: 9.0},
        }
    }
    assert found.settings is None


def test_read_evaluated__lerobot_tasks_of_a_group_have_their_ids(tmp_path: Path) -> None:
    tasks = {("libero", 0): [1], ("libero", 3): [0], ("other", 0): [1]}
    file = write(tmp_path / "e.json", lerobots(tasks))
    assert list(read_evaluated(file, lerobot_seed=0).tasks) == ["libero/0", "libero/3", "other"]


def test_read_evaluated__lerobot_file_of_a_single_task_tells_its_seeds(tmp_path: Path) -> None:
    episodes = [
        {"episode_ix": i, "sum_reward": 2.0, "max_reward": 1.0, "success": i == 0, "seed": 7 + i}
        for i in (0, 1)
    ]
    file = write(tmp_path / "e.json", {"per_episode": episodes, "aggregated": {}})
    assert read_evaluated(file).tasks["task"]["success_once"] == {7: 1.0, 8: 0.0}
    with pytest.raises(ConfigError, match="tells its seeds"):
        read_evaluated(file, lerobot_seed=7)
    for episode in episodes:
        episode["seed"] = None  # type: ignore[assignment]
    write(file, {"per_episode": episodes, "aggregated": {}})
    with pytest.raises(ConfigError, match="episodes without a seed"):
        read_evaluated(file)
    assert read_evaluated(file, lerobot_seed=5).tasks["task"]["return"] == {5: 2.0, 6: 2.0}


def test_read_evaluated__unknown_seeds_of_lerobot_need_a_flag(tmp_path: Path) -> None:
    file = write(tmp_path / "e.json", lerobots({("pusht", 0): [1]}))
    with pytest.raises(ConfigError, match=r"does not tell the seeds.* --lerobot-seed 1000"):
        read_evaluated(file)
    with pytest.raises(ConfigError, match="has one policy, so that 'base' cannot be chosen"):
        read_evaluated(file, "base", 1000)


def test_refuse_repeated__same_seed_or_task_twice_is_refused(tmp_path: Path) -> None:
    content = ours({"residual": [1, 0]}, episode_seeds=[1000, 1001, 1000])
    with pytest.raises(ConfigError, match=r"more than one episode of 1 seed\(s\), e.g. 1000"):
        read_evaluated(write(tmp_path / "a.json", content))
    twice = ours({"residual": [1, 0]})
    twice["policies"]["residual"]["return"]["per_episode"]["01000"] = 2.0  # the same number
    with pytest.raises(CheckpointError, match=r"policies\.residual\.return are not those of episode_seeds"):
        read_evaluated(write(tmp_path / "b.json", twice))
    tasks = lerobots({("pusht", 0): [1]})
    tasks["per_task"] *= 2
    with pytest.raises(ConfigError, match="the task pusht/0 twice"):
        read_evaluated(write(tmp_path / "c.json", tasks), lerobot_seed=0)


def test_read_evaluated__missing_and_ambiguous_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"eval\.json does not exist; expected a run folder"):
        read_evaluated(tmp_path)
    write(tmp_path / "eval.json", ours({"residual": [1]}))
    write(tmp_path / "eval_info.json", lerobots({("pusht", 0): [1]}))
    with pytest.raises(ConfigError, match="name one of the two"):
        read_evaluated(tmp_path)


def damaged(change: str) -> Any:
    content = copy.deepcopy(lerobots({("pusht", 0): [1, 0]}))
    metrics = content["per_task"][0]["metrics"]
    changes: dict[str, Any] = {
        "no tasks": lambda: content.update(per_task=[]),
        "tasks by name": lambda: content.update(per_task={"pusht": 1}),
        "a group that is a number": lambda: content["per_task"][0].update(task_group=1),
        "a boolean id": lambda: content["per_task"][0].update(task_id=True),
        "no metrics": lambda: content["per_task"][0].update(metrics=None),
        "no successes": lambda: metrics.pop("successes"),
        "an outcome of 2": lambda: metrics.update(successes=[2, 0]),
        "a text": lambda: metrics.update(sum_rewards=["1", 0.0]),
        "a huge number": lambda: metrics.update(sum_rewards=[10**400, 0.0]),
        "lists of different lengths": lambda: metrics.update(sum_rewards=[1.0]),
        "no episodes": lambda: metrics.update(sum_rewards=[], successes=[]),
    }
    changes[change]()
    return content


@pytest.mark.parametrize(
    "change",
    [
        *(
            "no tasks",
            "tasks by name",
            "a group that is a number",
            "a boolean id",
            "no metrics",
            "no successes",
        ),
        *("an outcome of 2", "a text", "a huge number", "lists of different lengths", "no episodes"),
    ],
)
def test_lerobot_tasks__damaged_files_are_refused(change: str, tmp_path: Path) -> None:
    file = write(tmp_path / "e.json", damaged(change))
    with pytest.raises(CheckpointError, match="is no evaluation of lerobot-eval, or is damaged"):
        read_evaluated(file, lerobot_seed=0)


@pytest.mark.parametrize(
    "text", ["[1, 2", '{"per_task": NaN}', "[]", "{}", "[" * 100_000, b"\xff\xfe"], ids=range(6)
)
def test_read_evaluated__other_files_are_refused(text: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "e.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"e\.json"):
        read_evaluated(file, lerobot_seed=0)
