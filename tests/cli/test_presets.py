"""`train --preset`, and the defaults that a base policy changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny_runs import FAILING_TINY

from residual_rl.cli import train as train_command
from residual_rl.cli.main import main
from residual_rl.config import ResidualCfg, RunCfg, TrainCfg, replace_fields
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.registry import BASE_POLICIES, TASKS


def parse(*argv: str) -> TrainCfg:
    return train_command.parse(argv[0], argv[1:]).cfg


@pytest.mark.parametrize(
    ("task", "name"), [(task.id, preset.name) for task in TASKS.all() for preset in task.presets]
)
def test_presets__name_their_source_and_valid_settings(task: str, name: str) -> None:
    preset = TASKS.get(task).preset(name)
    assert len(preset.source) > 20
    cfg = TrainCfg.default(task, preset=name)
    assert replace_fields(cfg, dict(preset.settings)) == cfg
    if cfg.learner_id == "ppo":
        cfg.learner.minibatches(cfg.run.num_envs)  # a minibatch is no larger than a rollout


def test_preset__has_the_settings_of_the_so101_guide() -> None:
    cfg = parse("so101-paper", "--preset", "so101-guide")
    assert (cfg.base_policy_id, cfg.residual.residual_scale, cfg.run.num_envs) == ("zero", 0.7, 4)
    learner = cfg.learner
    assert (learner.num_steps, learner.minibatch_size, learner.learning_rate) == (256, 64, 3e-4)


def test_preset__has_the_settings_of_the_expert_residual_scripts() -> None:
    cfg = parse("maniskill", "--preset", "expert-residual")
    assert (cfg.task.env_id, cfg.task.robot_uids) == ("PickBox-v1", "a1_galaxea")
    assert (cfg.base_policy_id, cfg.residual.residual_scale, cfg.run.num_envs) == ("zero", 1.0, 1024)


def test_preset__flags_take_precedence() -> None:
    cfg = parse(
        *("so101-paper", "--preset", "so101-guide", "--alpha", "0.3", "--base-policy", "jacobian"),
        *("--num-envs", "8"),
    )
    assert (cfg.residual.residual_scale, cfg.base_policy_id, cfg.run.num_envs) == (0.3, "jacobian", 8)
    assert cfg.learner.num_steps == 256
    assert parse("maniskill", "--preset", "expert-residual", "--env-id", "PickCube-v1").task.env_id == (
        "PickCube-v1"
    )


def test_preset__unknown_name_lists_those_of_the_task() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown preset of so101-paper 'guide'.*known: so101-guide"):
        parse("so101-paper", "--preset", "guide")
    with pytest.raises(ConfigError, match="preset so101-guide has settings of ppo: leave out --learner"):
        parse("so101-paper", "--preset", "so101-guide", "--learner", "sac")


def test_list__shows_presets_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "so101-guide" in shown
    assert "expert-residual" in shown
    assert "TRAINING_GUIDE.md" in " ".join(shown.split())


# --- defaults that depend on the base policy ----------------------------------------------------------------


@pytest.mark.parametrize("learner", ["ppo", "sac", "policy-decorator"])
def test_zero__residual_scale_is_1_by_default(learner: str) -> None:
    assert TrainCfg.default("so101-paper", "zero", learner).residual.residual_scale == 1.0
    assert parse("so101-paper", "--expert-type", "zero", "--learner", learner).residual.residual_scale == 1.0
    assert parse("maniskill").residual.residual_scale == 1.0  # its default base policy is zero
    assert parse("so101-paper", "--base-policy", "zero", "--alpha", "0.6").residual.residual_scale == 0.6
    assert parse("so101-paper").residual.residual_scale == 0.6


NOTE = (
    "Base policy zero (zero actions; with a residual scale of 1: plain RL): --residual-scale is 1 by default."
)


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (["--base-policy", "zero"], True),
        (["--expert-type=zero"], True),
        (["--base-policy", "zero", "--residual-scale", "1"], False),
        (["--base-policy", "zero", "--alpha=0.5"], False),
        (["--preset", "so101-guide"], False),
        ([], False),
    ],
)
def test_train__reports_defaults_that_the_base_policy_changes(
    flags: list[str], printed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg, own, _ = train_command.parse("so101-paper", flags)
    train_command._print_changed_defaults(cfg, own, flags)
    assert capfd.readouterr().out.splitlines() == ([NOTE] if printed else [])


def test_train__with_base_policy_zero_prints_the_scale(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [*FAILING_TINY, "--total-timesteps", "32", "--output-dir", str(tmp_path / "run")]
    assert main(["train", "so101-paper", "--base-policy", "zero", *flags]) == 0
    assert NOTE in capfd.readouterr().out


def test_base_policy_spec__train_overrides_are_settings_of_run_or_residual() -> None:
    names = {field.name for cls in (RunCfg, ResidualCfg) for field in dataclasses.fields(cls)}
    for spec in BASE_POLICIES.all():
        assert set(spec.train_overrides) <= names
