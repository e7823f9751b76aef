"""`residual-rl probe`, and `train --residual-scale auto`: files, choices, flags that win, and bad bases."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_files import INFO, write
from learned_point import LearnedCfg, register
from tiny_runs import Fails

from residual_rl.cli import auto_scale, train
from residual_rl.cli import probe as command
from residual_rl.cli.auto_scale import ResidualFlags, apply_advice
from residual_rl.cli.main import main
from residual_rl.config import ResidualCfg, TrainCfg
from residual_rl.demos.base_demos import training_demos
from residual_rl.demos.episode import Demo
from residual_rl.evaluation.probe_advice import Advice, Choice
from residual_rl.registry import TASKS

TINY = ["--hidden-sizes", "8", "--batch-size", "8", "--num-envs", "4", "--eval-episodes", "2"]
TINY += ["--total-timesteps", "64", "--eval-freq", "0", "--warmup-steps", "8", "--learning-starts", "8"]
TINY += ["--actor-starts", "8"]
SHORT = ["--max-episode-steps", "6"]
"""The point does not get to the origin from everywhere."""


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    monkeypatch.setattr(command, "N_EPISODES", 36)
    monkeypatch.setattr(command, "QUICK_EPISODES", 6)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- the command --------------------------------------------------------------------------------------------


def test_probe__writes_json_and_plot_and_prints_each_choice_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "probe"
    flags = ["--base-policy", "learned", "--learner", "sac", *SHORT, "--n-episodes", "12"]
    assert main(["probe", "point", *flags, "--output-dir", str(out)]) == 0
    written = read(out / "probe.json")
    assert written["task"] == "point"
    assert (written["success"]["n"], written["conditions"][0]["success"]["n"]) == (12, 4)
    assert (out / "probe.png").read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert "correlated noise" in text
    for choice in written["advice"]["choices"]:
        flag = f"--{choice['setting'].replace('_', '-')} {choice['value']}: {choice['reason']}."
        assert flag in text
    assert f"Probe: {out}" in text


def test_probe__gives_the_same_advice_again_and_needs_an_empty_folder(tmp_path: Path, fails: Fails) -> None:
    flags = ["probe", "point", "--base-policy", "learned", *SHORT, "--quick", "--output-dir"]
    first, second = tmp_path / "a", tmp_path / "b"
    assert main([*flags, str(first)]) == 0
    assert main([*flags, str(second), "--probe-envs", "2"]) == 0
    assert (first / "probe.json").read_bytes() == (second / "probe.json").read_bytes()
    assert "is not empty" in fails(*flags, first)


def test_probe__names_its_folder_after_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["probe", "point", *SHORT, "--quick"]) == 0
    (folder,) = (tmp_path / "probes").iterdir()
    assert folder.name.startswith("point-")
    assert sorted(path.name for path in folder.iterdir()) == ["probe.json", "probe.png"]


def test_probe__of_an_unknown_base_policy_leaves_no_folder(
    tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "unknown base policy 'lerned'; did you mean 'learned'" in fails(
        "probe", "point", "--base-policy", "lerned"
    )
    assert "no checkpoint given" in fails("probe", "so101-paper", "--base-policy", "il")
    assert not list(tmp_path.iterdir())


# --- train --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_train__over_a_learned_base_policy_measures_first_and_stores_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    flags = ["train", "point", "--base-policy", "learned", *SHORT, "--learner", "sac", *TINY]
    assert main([*flags, "--warmup-std", "0.3", "--output-dir", str(run)]) == 0
    config, written = read(run / "config.json"), read(run / "probe.json")
    assert (run / "probe.png").is_file()
    advised = {choice["setting"]: choice["value"] for choice in written["advice"]["choices"]}
    assert config["residual"]["residual_scale"] == advised["residual_scale"]
    assert config["learner"]["warmup_std"] == 0.3  # a flag wins
    assert f"--warmup-std {advised['warmup_std']} (you chose 0.3)" in capsys.readouterr().out
    # a resume does not measure again
    monkeypatch.setattr(command, "measure", None)
    assert main(["train", "--resume", str(run), "--total-timesteps", "96"]) == 0
    assert read(run / "config.json")["residual"] == config["residual"]
    assert read(run / "probe.json") == written


def auto(*flags: str) -> bool:
    return train.parse("point", flags).auto_scale


def test_residual_scale__is_auto_over_learned_base_policies_unless_a_number_is_given() -> None:
    learned = ("--base-policy", "learned")
    assert auto(*learned)
    assert auto(*learned, "--learner", "ppo")
    assert not auto(*learned, "--alpha", "0.3")
    assert not auto("--base-policy", "homing")
    assert auto("--base-policy", "homing", "--residual-scale", "auto")
    assert train.parse("point", [*learned, "--alpha", "0.3"]).cfg.residual.residual_scale == 0.3
    residual = train.parse("point", ["--residual-scale", "auto"]).cfg.residual
    assert (type(residual), residual.residual_scale) == (ResidualCfg, 0.6)


def test_residual_scale__of_published_settings_is_kept_over_learned_base_policies() -> None:
    assert not auto("--base-policy", "learned", "--learner", "policy-decorator")
    preset = TASKS.get("maniskill").presets[0]
    assert "residual_scale" in preset.settings
    flags = ["--preset", preset.name, "--base-policy", "il"]
    assert not train.parse("maniskill", flags).auto_scale


def test_residual_scale__is_a_number_within_bounds_or_auto(fails: Fails) -> None:
    assert "residual_scale must be from 0 to 2 or auto, not 3.0" in fails(
        "train", "point", "--residual-scale", "3"
    ).replace("one of auto", "auto")
    assert ResidualFlags.of(ResidualCfg(residual_scale=0.4), auto=False).resolve(1.0).residual_scale == 0.4
    assert ResidualFlags.of(ResidualCfg(residual_scale=0.4), auto=True).resolve(0.7).residual_scale == 0.7


def test_apply_advice__keeps_given_settings_and_needs_no_file_for_no_demonstrations() -> None:
    cfg = TrainCfg.default("point", "learned", "sac")
    choices = [
        ("residual_scale", 0.1),
        ("warmup_std", 0.2),
        ("demos", "d.h5"),
        ("demo_share", 0.5),
        ("demo_episodes", 3),
    ]
    advice = Advice(tuple(Choice(name, value, "") for name, value in choices), None, ())
    changed = apply_advice(cfg, advice, {"warmup_std"})
    assert (changed.residual.residual_scale, changed.learner.warmup_std) == (0.1, 0.5)
    assert (changed.learner.demos, changed.learner.demo_share) == ("d.h5", 0.5)
    without = apply_advice(cfg, advice, {"demo_share"})
    assert (without.learner.demos, without.learner.demo_share) == (None, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("speed", "steps", "message"),
    [
        (
            "-1.0",
            "6",
            "the base policy solved none of 36 episodes (95 % interval 0.0 to 9.6 %): nothing can be",
        ),
        ("1.0", "40", "the base policy solved all of 36 episodes (95 % interval 90.4 to 100.0 %): there is"),
    ],
)
def test_force__is_needed_over_a_base_policy_that_never_or_always_succeeds(
    speed: str, steps: str, message: str, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    flags = ["train", "point", "--base-policy", "learned", "--base.speed", speed, "--learner", "sac", *TINY]
    flags += ["--max-episode-steps", steps, "--output-dir", str(run)]
    text = fails(*flags)
    assert text.startswith(message)
    assert text.endswith("; to train anyway, add --force")
    assert not run.exists()
    assert main([*flags, "--force"]) == 0
    assert read(run / "probe.json")["advice"]["verdict"].startswith(message)


def test_train__warns_of_base_actions_at_the_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base-policy", "learned", "--base.speed", "1000.0", "--quick", "--max-episode-steps", "12"]
    assert main(["probe", "point", *flags, "--output-dir", str(tmp_path / "out")]) == 0
    assert (
        "of the entries of the base actions lie at the bounds of the action space" in capsys.readouterr().out
    )


def test_measure_first__finds_a_folder_in_use_before_measuring(
    tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure", None)
    (tmp_path / "file").touch()
    flags = ["train", "point", "--base-policy", "learned", "--learner", "sac", *TINY]
    assert "is not empty" in fails(*flags, "--output-dir", tmp_path)
    assert "cannot be used on this machine" in fails(
        *flags, "--output-dir", tmp_path / "new", "--device", "cuda:99"
    )
    assert auto_scale.AUTO == "auto"


# --- demonstrations -----------------------------------------------------------------------------------------


def demo(succeeds: bool, **fields: Any) -> Demo:
    flags = {"terminated": np.array([True]), "truncated": np.array([False]), "success": np.array([succeeds])}
    state = np.zeros((2, 5), np.float32)
    obs = {"state": state, "position": state[:, :2]}
    arrays = {"actions": np.zeros((1, 2), np.float32), "obs": obs, "rewards": np.ones(1, np.float32)}
    return Demo(**{**arrays, **flags, **fields})


def base_folder(tmp_path: Path, demos: Path, **config: Any) -> TrainCfg:
    """The settings of a training over a base policy whose folder records `demos`."""
    folder = tmp_path / "base"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"demos": str(demos), **config}), encoding="utf-8")
    (folder / "model.safetensors").touch()
    cfg = TrainCfg.default("point", "learned", "sac")
    return dataclasses.replace(cfg, base=LearnedCfg(checkpoint=str(folder / "model.safetensors")))


def test_training_demos__are_those_that_the_base_policys_folder_records(tmp_path: Path) -> None:
    path = write(tmp_path / "d.h5", [demo(False), demo(True)])
    found = training_demos(base_folder(tmp_path, path, n_episodes=1))
    assert (found.path, found.episodes) == (path, 1)
    assert training_demos(base_folder(tmp_path, path, n_episodes=None)).episodes is None
    given = base_folder(tmp_path, path)
    given = dataclasses.replace(
        given, learner=dataclasses.replace(given.learner, demos="other.h5", demo_share=0.5)
    )
    assert training_demos(given).path == Path("other.h5")


@pytest.mark.parametrize(
    ("episodes", "why_not"),
    [
        ([demo(False)], "has no successful episode"),
        ([demo(True, rewards=None)], "has no rewards"),
        ([demo(True, success=None)], "has no successes"),
        ([demo(True, obs={"position": np.zeros((2, 2), np.float32)})], "lacks the observation 'state'"),
    ],
)
def test_training_demos__that_cannot_be_used_are_left_out_with_the_reason(
    tmp_path: Path, episodes: list[Demo], why_not: str
) -> None:
    path = write(tmp_path / "d.h5", episodes)
    found = training_demos(base_folder(tmp_path, path))
    assert found.path is None
    assert found.why_not == f"{path}, which the base policy was trained on, {why_not}"


def test_training_demos__that_are_missing_damaged_or_of_another_task_are_left_out(tmp_path: Path) -> None:
    missing = tmp_path / "gone.h5"
    assert training_demos(base_folder(tmp_path, missing)).why_not.endswith("does not exist here")
    missing.write_bytes(b"no HDF5")
    assert "cannot be used" in training_demos(base_folder(tmp_path, missing)).why_not
    other = {**INFO, "env_info": {**INFO["env_info"], "env_id": "so101-paper"}}
    path = write(tmp_path / "d.h5", [demo(True)], other)
    assert "is of task 'so101-paper'" in training_demos(base_folder(tmp_path, path)).why_not
    # no folder, and one without a record
    unknown = "those that the base policy was trained on are not known"
    assert training_demos(TrainCfg.default("point", "learned", "sac")).why_not == unknown
    cfg = base_folder(tmp_path, path)
    (tmp_path / "base" / "config.json").write_text("[1]", encoding="utf-8")
    assert training_demos(cfg).why_not == unknown
    shutil.rmtree(tmp_path / "base")
    assert training_demos(cfg).why_not == unknown


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "\ud800", "/", "/dev/zero", 5, ["x"]])
def test_training_demos__odd_paths_of_another_person_are_left_out(path: Any, tmp_path: Path) -> None:
    cfg = base_folder(tmp_path, tmp_path)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"demos": path}), encoding="utf-8")
    found = training_demos(cfg)
    assert found.path is None
    assert len(found.why_not) < 400
    assert found.why_not.isprintable()


def test_demos__without_a_success_are_an_error(tmp_path: Path, fails: Fails) -> None:
    path = write(tmp_path / "d.h5", [demo(False), demo(False)])
    flags = ["train", "point", "--learner", "sac", *TINY, "--demos", path, "--demo-share", "0.5"]
    message = fails(*flags, "--output-dir", tmp_path / "run")
    assert message.startswith(f"none of the 2 demonstrations in {path} succeeds")
    assert "--only-success" in message
