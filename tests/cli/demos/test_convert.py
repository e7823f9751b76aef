"""Demonstrations of Minari and robomimic in the commands: as they are, and converted for a task."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import gymnasium_toys
import h5py
import numpy as np
import pytest
from foreign_demos import ACTIONS, BOX, minari, robomimic
from tiny_runs import Fails

from residual_rl.cli.main import main
from residual_rl.demos.reader import Demonstrations

TOY = ["--env-id", "Toys/Point-v0", "--env-modules", gymnasium_toys.MODULE, "--env-kwargs", "habit=flat"]
EPISODES = 4


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of the toy env that go on after success, with actions at the goal, in Minari's layout."""
    folder = tmp_path_factory.mktemp("minari") / "set"
    minari(
        folder,
        np.zeros((4, 2, 2)),
        space={**BOX, "shape": [2, 2], "low": [[-np.inf] * 2] * 2, "high": [[np.inf] * 2] * 2},
        episodes=EPISODES,
        action_space=json.dumps({**ACTIONS, "low": [0.0, 0.0], "high": [512.0, 512.0]}),
        env_spec=json.dumps({"id": "Toys/Point-v0"}),
    )
    env = gymnasium.make("Toys/Point-v0", habit="flat")
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        for i in range(EPISODES):
            seed = file[f"episode_{i}"].attrs["seed"]
            obs, actions, rewards, success = [env.reset(seed=int(seed))[0]], [], [], [False]
            for _ in range(30):
                actions.append(obs[-1][1])
                after, reward, _, _, info = env.step(actions[-1])
                obs.append(after)
                rewards.append(reward)
                success.append(info["success"][0])
            del file[f"episode_{i}"]
            group = file.create_group(f"episode_{i}")
            group.attrs["seed"], group.attrs["total_steps"] = seed, 30
            group["observations"], group["actions"], group["rewards"] = obs, actions, rewards
            group["terminations"], group["truncations"] = np.zeros(30, bool), np.arange(30) == 29
            group["infos/success"] = success
    return folder


@pytest.mark.slow
def test_convert__the_result_replays_in_the_env(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.h5"
    assert main(["demos", "convert", str(recorded), "--task", "gymnasium", *TOY, "--output", str(out)]) == 0
    with Demonstrations.open(out) as demos, Demonstrations.open(recorded) as theirs:
        assert (demos.task_id, demos.task_settings["env_id"]) == ("gymnasium", "Toys/Point-v0")
        assert demos.info["action_centre"] == [256.0, 256.0]
        for mine, other in zip(demos, theirs, strict=True):
            # the task ends at success, and its reward is sparse
            steps = int(other.success.argmax()) + 1  # type: ignore[union-attr]
            np.testing.assert_array_equal(mine.actions, other.actions[:steps])
            np.testing.assert_array_equal(mine.obs["state"], other.obs["state"][: steps + 1])
            assert mine.rewards is not None
            assert mine.rewards.tolist() == [0.0] * (steps - 1) + [1.0]
            assert mine.terminated.tolist() == [False] * (steps - 1) + [True]
            assert mine.seed == other.seed
    # its seeds and actions give the same episodes
    assert main(["demos", "replay", str(out), "--num-threads", "1", "--num-envs", "2"]) == 0
    # and their success is evaluated in training
    run = tmp_path / "bc"
    imitate = [
        "imitate",
        str(out),
        "--algo",
        "bc",
        "--total-steps",
        "20",
        "--eval-freq",
        "20",
        "--eval-episodes",
        "2",
    ]
    assert main([*imitate, "--num-threads", "1", "--output-dir", str(run)]) == 0
    summary = json.loads((run / "training_summary.json").read_text())
    assert (summary["task"], summary["best_success_rate"] is None) == ("gymnasium", False)


@pytest.mark.slow
def test_train_demos__a_minari_dataset_as_it_is(
    recorded: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fails: Fails,
) -> None:
    base = tmp_path / "bc"
    imitate = ["imitate", str(recorded), "--algo", "bc", "--total-steps", "20", "--output-dir", str(base)]
    assert main(imitate) == 0
    assert "names no task, so success is not evaluated during training" in caplog.text
    assert f"eval TASK --base-policy il --il-checkpoint {base}" in capfd.readouterr().out
    train = [
        "train",
        "gymnasium",
        *TOY,
        "--base-policy",
        "il",
        "--il-checkpoint",
        str(base),
        "--demos",
        str(recorded),
    ]
    train += ["--demo-share", "0.5", "--num-envs", "2", "--total-timesteps", "64", "--warmup-steps", "32"]
    train += ["--eval-freq", "0", "--eval-episodes", "2", "--num-threads", "1"]
    assert main([*train, "--output-dir", str(tmp_path / "run")]) == 0
    # an env of another name is refused
    train[train.index("Toys/Point-v0")] = "Toys/PointWithoutLimit-v0"
    message = fails(*train, "--max-episode-steps", "30", "--output-dir", tmp_path / "other")
    assert "env_id 'Toys/Point-v0' (here 'Toys/PointWithoutLimit-v0')" in message


@pytest.mark.slow
def test_imitate__a_robomimic_file_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = robomimic(tmp_path / "x.hdf5")
    imitate = [
        "imitate",
        str(file),
        "--algo",
        "bc",
        "--total-steps",
        "5",
        "--obs-keys",
        "object",
        "robot0_eef_pos",
    ]
    assert main([*imitate, "--output-dir", str(tmp_path / "bc")]) == 0
    assert main(["demos", "info", str(file)]) == 0
    text = capfd.readouterr().out
    assert "Lift (as robomimic stores it)" in text
    assert "6 of 11 (54.5 %)" in text


def test_convert__errors_name_the_fix(tmp_path: Path, fails: Fails) -> None:
    dataset, file = minari(tmp_path / "set"), robomimic(tmp_path / "x.hdf5")
    convert = ["demos", "convert"]
    assert "demos convert needs a file of demonstrations" in fails(*convert)
    assert "name it with --task TASK" in fails(*convert, dataset)
    out = ["--output", tmp_path / "out.h5"]
    toy = ["--task", "gymnasium", *TOY, *out]
    assert "was recorded with env_id 'Counter-v0', but task 'gymnasium' is given 'Toys" in fails(
        *convert, dataset, *toy
    )
    assert "has 'state' of shape [4], but task 'so101-paper' observes [25]" in _shape(
        fails, file, out, tmp_path
    )
    assert "names no task: convert it with" in fails("demos", "replay", dataset)
    assert not (tmp_path / "out.h5").exists()


def _shape(fails: Fails, file: Path, out: list[object], tmp_path: Path) -> str:
    """The message for actions that fit the task so101-paper, and a state that does not."""
    other = robomimic(tmp_path / "six.hdf5", actions=np.zeros((3, 6)))
    assert "has actions of size 2, but those of task 'so101-paper' have size 6" in fails(
        "demos", "convert", file, "--task", "so101-paper", *out
    )
    return fails("demos", "convert", other, "--task", "so101-paper", *out)
