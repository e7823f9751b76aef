"""Settings: round trips through JSON, unknown and invalid ones, and the schedule of the residual scale."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from residual_rl.config import ResidualCfg, RunCfg, TrainCfg, from_plain, replace_fields
from residual_rl.errors import ConfigError, ResidualRLError, UnknownNameError
from residual_rl.registry import BASE_POLICIES, LEARNERS, TASKS

PAIRS = [(task.id, policy.id) for task in TASKS.all() for policy in BASE_POLICIES.all()]


@pytest.mark.parametrize(("task", "base_policy"), PAIRS)
def test_train_cfg__each_pair_of_task_and_base_policy_round_trips(task: str, base_policy: str) -> None:
    cfg = TrainCfg.default(task, base_policy)
    assert (cfg.task_id, cfg.base_policy_id) == (task, base_policy)
    data = json.loads(json.dumps(cfg.to_dict()))
    assert TrainCfg.from_dict(data, None) == cfg
    assert TrainCfg.from_dict(data, None).to_dict() == data


def test_train_cfg__changed_values_round_trip() -> None:
    changes: dict[str, Any] = {
        "sheet_x": (0.21, 0.3),
        "image_size": (64, 96),
        "obs_cameras": ("top",),
        "hidden_sizes": (32, 16, 8),
        "target_kl": 0.02,
        "residual_scale_start": 0.0,
        "wandb_project": "p",
        "seed": 12,
        "pitch_near": (0.2, 80.0),
        "robot_xml": "robot.xml",
    }
    cfg = replace_fields(TrainCfg.default("so101-paper"), changes)
    again = TrainCfg.from_dict(json.loads(json.dumps(cfg.to_dict())), None)
    assert again == cfg
    assert (again.task.sheet_x, again.learner.hidden_sizes, again.base.pitch_near) == (
        (0.21, 0.3),
        (32, 16, 8),
        (0.2, 80.0),
    )


def test_train_cfg_from_dict__missing_settings_get_their_defaults() -> None:
    cfg = TrainCfg.default("so101-paper")
    data = cfg.to_dict()
    del data["run"]["eval_freq"], data["task"]["mass_scale"], data["learner"]["target_kl"]
    assert TrainCfg.from_dict(data, None) == cfg


def test_train_cfg_from_dict__needs_a_registered_learner() -> None:
    data = TrainCfg.default("so101-paper").to_dict()
    with pytest.raises(UnknownNameError, match="unknown learner 'gone'; known: "):
        TrainCfg.from_dict({**data, "learner_id": "gone"}, None)
    del data["learner_id"]
    with pytest.raises(KeyError, match="learner_id"):
        TrainCfg.from_dict(data, None)


def test_train_cfg_default__learner_ppo_is_the_default_of_the_task() -> None:
    cfg = TrainCfg.default("so101-paper", None, "ppo")
    assert cfg == TrainCfg.default("so101-paper")
    assert type(cfg.learner) is type(LEARNERS.get("ppo").default_config())


@pytest.mark.parametrize("part", ["task", "base", "learner", "residual", "run"])
def test_train_cfg_from_dict__unknown_setting_is_an_error(part: str) -> None:
    data = TrainCfg.default("so101-paper").to_dict()
    data[part]["no_such_thing"] = 1
    with pytest.raises(UnknownNameError, match="'no_such_thing'"):
        TrainCfg.from_dict(data, None)


def test_from_plain__unknown_setting_suggests_a_similar_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'num_envs'"):
        from_plain(RunCfg, {"num_env": 3})
    with pytest.raises(UnknownNameError, match="did you mean 'residual_scale'"):
        replace_fields(TrainCfg.default("so101-paper"), {"residual_scal": 0.3})


def test_train_cfg_default__base_is_none_without_settings() -> None:
    cfg = TrainCfg.default("so101-paper", "zero")
    assert cfg.base is None
    with pytest.raises(UnknownNameError, match="'drag_gain'"):  # it belongs to the jacobian policy
        replace_fields(cfg, {"drag_gain": 0.1})


def test_train_cfg_default__applies_the_overrides_of_the_task() -> None:
    assert TrainCfg.default("so101-paper").task.tolerance == 0.02
    assert TrainCfg.default("so101-paper-precise").task.tolerance == 0.005
    spec = TASKS.get("so101-paper")
    cfg = TrainCfg.default("so101-paper")
    everything = {**vars(cfg.task), **vars(cfg.learner), **vars(cfg.residual), **vars(cfg.run)}
    assert {name: everything[name] for name in spec.train_overrides} == dict(spec.train_overrides)


def test_replace_fields__changes_only_the_named_settings() -> None:
    cfg = TrainCfg.default("so101-paper")
    values = {"tolerance": 0.01, "damping": 0.1, "gamma": 0.9, "residual_scale": 0.25, "num_envs": 3}
    new = replace_fields(cfg, values)
    assert new == dataclasses.replace(
        cfg,
        task=dataclasses.replace(cfg.task, tolerance=0.01),
        base=dataclasses.replace(cfg.base, damping=0.1),
        learner=dataclasses.replace(cfg.learner, gamma=0.9),
        residual=dataclasses.replace(cfg.residual, residual_scale=0.25),
        run=dataclasses.replace(cfg.run, num_envs=3),
    )
    assert len(values) == 5  # the argument is not modified


def test_train_cfg__names_of_settings_are_unique_across_parts() -> None:
    """`replace_fields` and the flags without a prefix rely on this."""
    cfg = TrainCfg.default("so101-paper")
    names = [
        f.name for part in (cfg.task, cfg.learner, cfg.residual, cfg.run) for f in dataclasses.fields(part)
    ]
    assert len(names) == len(set(names))


# --- the schedule of the scale ------------------------------------------------------------------------------


def test_scale_at__is_constant_without_a_start() -> None:
    assert [ResidualCfg(residual_scale=0.6).scale_at(f) for f in (0.0, 0.3, 1.0)] == [0.6, 0.6, 0.6]


def test_scale_at__linear_matches_values_worked_out_by_hand() -> None:
    cfg = ResidualCfg(residual_scale=0.6, residual_scale_start=0.2, residual_scale_fraction=0.5)
    # 0.2 + 0.4 · f / 0.5, constant from f = 0.5 on
    assert [cfg.scale_at(f) for f in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0.2, 0.3, 0.4, 0.6, 0.6, 0.6]
    )


def test_scale_at__cosine_matches_values_worked_out_by_hand() -> None:
    cfg = ResidualCfg(
        residual_scale=1.0,
        residual_scale_start=0.0,
        residual_scale_schedule="cosine",
        residual_scale_fraction=1.0,
    )
    # (1 - cos πf) / 2: at 1/3 a quarter, at 1/2 a half, at 2/3 three quarters
    assert [cfg.scale_at(f) for f in (0.0, 1 / 3, 1 / 2, 2 / 3, 1.0)] == pytest.approx(
        [0.0, 0.25, 0.5, 0.75, 1.0]
    )


def test_scale_at__can_decrease_and_clamps_the_fraction() -> None:
    cfg = ResidualCfg(residual_scale=0.2, residual_scale_start=1.0, residual_scale_fraction=1.0)
    assert [cfg.scale_at(f) for f in (-1.0, 0.0, 0.5, 1.0, 7.0)] == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2])


# --- invalid values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_envs", 0),
        ("num_envs", -3),
        ("total_timesteps", 0),
        ("eval_episodes", -1),
        ("save_freq", 0),
        ("keep_checkpoints", 0),
        ("torch_threads", 0),
        ("num_threads", -1),
        ("eval_freq", -1),
        ("seed", -1),
        ("residual_scale", -0.1),
        ("residual_scale", 2.1),
        ("residual_scale", math.nan),
        ("residual_scale_start", math.inf),
        ("residual_scale_schedule", "quadratic"),
        ("residual_scale_fraction", 0.0),
        ("residual_scale_fraction", 1.1),
        ("residual_penalty", -1.0),
        ("residual_penalty", math.nan),
        ("residual_penalty", math.inf),
        ("num_steps", 0),
        ("minibatch_size", -16),
        ("num_epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("gamma", 1.1),
        ("hidden_sizes", (8, 0)),
        ("activation", "sigmoid"),
        ("tolerance", -0.01),
        ("tolerance", math.nan),
        ("max_episode_steps", 0),
        ("sheet_x", (0.3, 0.2)),
        ("sheet_y", (math.nan, 0.2)),
        ("friction_scale", (0.0, 1.0)),
        ("curriculum", "sometimes"),
        ("randomization", "custom"),
        ("obs_mode", "depth"),
        ("servo", "new"),
    ],
)
def test_train_cfg__invalid_value_is_an_error_with_the_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        replace_fields(TrainCfg.default("so101-paper"), {name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ResidualRLError)


def test_curriculum_tolerance__below_the_tolerance_is_an_error() -> None:
    with pytest.raises(ConfigError, match="curriculum_tolerance"):
        replace_fields(
            TrainCfg.default("so101-paper"), {"curriculum": "schedule", "curriculum_tolerance": 0.01}
        )


def test_critic_input__sum_needs_one_scale_for_each_chunk() -> None:
    whole = replace_fields(TrainCfg.default("so101-paper", "il", "sac"), {"chunk": "whole"})
    with pytest.raises(ConfigError, match="critic_input sum needs one residual scale per chunk"):
        replace_fields(whole, {"adaptive": "uncertainty"})
    assert (
        replace_fields(whole, {"adaptive": "uncertainty", "critic_input": "res"}).residual.adaptive
        == "uncertainty"
    )
    assert replace_fields(whole, {"adaptive": "uncertainty", "chunk": "step"}).residual.chunk == "step"
