"""The residual scale that adapts to the base policy's uncertainty: values worked out by hand, defaults, runs,
logs and videos."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import tiny_runs
import torch
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.cli.main import main
from residual_rl.composition import Composition, ScaleRule, adaptive_scale
from residual_rl.config import ResidualCfg, TrainCfg
from residual_rl.errors import ConfigError
from residual_rl.evaluation.evaluate import evaluate
from residual_rl.exported_policy import load_policy
from residual_rl.factory import make_residual_env
from residual_rl.residual_env import ResidualEnv
from residual_rl.runs.checkpoint import load
from residual_rl.types import ActionChunk, Obs
from residual_rl.visualization import recording

ENSEMBLE = ["--base-policy", "hybrid", "--base.policies", "jacobian", "zero", "--base.mode", "ensemble"]
ADAPTIVE = ["--adaptive", "uncertainty", "--adaptive-min-share", "0.25", "--adaptive-uncertainty", "0.2"]


class Unsure(fakes.Homing):
    """Predicts two steps. The uncertainty of env i is 0.05·i, plus 0.1 for each earlier query, plus 0.01 in
    the second step."""

    chunk_size = num_action_steps = 2

    def __init__(self) -> None:
        super().__init__()
        self.num_queries = -1

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> ActionChunk:
        self.num_queries += 1
        first = 0.05 * env_ids + 0.1 * self.num_queries
        return ActionChunk(
            super().predict_action_chunk(obs, env_ids).expand(-1, 2, -1),
            torch.stack([first, first + 0.01], 1),
        )


def rule(residual_scale: float, uncertainty: Tensor) -> Tensor:
    return adaptive_scale(residual_scale, uncertainty, min_share=0.25, full_uncertainty=0.2)


def point_env(
    policy: Any, scale_rule: ScaleRule | None = rule, scale: float = 0.8, **settings: Any
) -> ResidualEnv:
    env = fakes.PointEnv(fakes.PointCfg(**settings), 3)
    composition = Composition(scale, scale_rule, env.residual_unit)
    return ResidualEnv(env, BasePolicyExecutor(policy, env, "base policy 'it'"), composition, 0.1)


# --- the rule -----------------------------------------------------------------------------------------------


def test_adaptive_scale__matches_values_worked_out_by_hand() -> None:
    scale = adaptive_scale(
        0.8, torch.tensor([0.0, 0.05, 0.1, 0.2, 7.0]), min_share=0.25, full_uncertainty=0.2
    )
    # 0.8 · (0.25 + 0.75 · 0, 1/4, 1/2, 1, 1)
    np.testing.assert_allclose(scale, [[0.2], [0.35], [0.5], [0.8], [0.8]], rtol=1e-6)
    assert not adaptive_scale(0.0, torch.tensor([0.3]), 0.25, 0.2).any()
    np.testing.assert_allclose(
        adaptive_scale(0.8, torch.tensor([0.1]), min_share=0.0, full_uncertainty=0.2), [[0.4]], rtol=1e-6
    )
    np.testing.assert_allclose(
        adaptive_scale(0.8, torch.tensor([0.1]), min_share=1.0, full_uncertainty=0.2), [[0.8]], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adaptive": "sometimes"}, "adaptive must be one of off, uncertainty, not 'sometimes'"),
        ({"adaptive_min_share": -0.1}, "adaptive_min_share must be from 0 to 1, not -0.1"),
        ({"adaptive_min_share": 1.1}, "adaptive_min_share must be from 0 to 1, not 1.1"),
        ({"adaptive_uncertainty": 0.0}, "adaptive_uncertainty must be above 0, not 0.0"),
    ],
)
def test_residual_cfg__invalid_adaptive_settings_are_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResidualCfg(**change)


# --- in the env ---------------------------------------------------------------------------------------------


def test_residual_env__adaptive_scale_applies_to_action_penalty_and_info() -> None:
    """The second step of a chunk has another uncertainty than the first."""
    env = point_env(Unsure())
    env.reset(seed=0)
    residual = torch.tensor([[1.0, -1.0], [0.5, 0.0], [0.0, 0.25]])
    uncertainties = [[0.0, 0.05, 0.1], [0.01, 0.06, 0.11], [0.1, 0.15, 0.2]]
    for uncertainty in uncertainties:
        scale = 0.8 * (0.25 + 0.75 * np.minimum(np.array(uncertainty) / 0.2, 1.0))
        np.testing.assert_allclose(
            env.composition.residual_scale(env.base_policy.uncertainty), scale[:, None], rtol=1e-5
        )
        transition, info = env.step(residual)
        np.testing.assert_allclose(info["base_uncertainty"], uncertainty, atol=1e-6)
        np.testing.assert_allclose(info["residual_scale"], scale[:, None], rtol=1e-5)
        executed = np.clip(transition.base_action.numpy() + scale[:, None] * residual.numpy(), -1.0, 1.0)
        np.testing.assert_allclose(transition.action, executed, atol=1e-6)
        np.testing.assert_allclose(
            info["reward_terms"]["residual"], -0.1 * scale**2 * [2.0, 0.25, 0.0625], rtol=1e-4
        )


@pytest.mark.parametrize("scale_rule", [None, rule])
def test_residual_unit__multiplies_the_residual_and_not_its_penalty(scale_rule: ScaleRule | None) -> None:
    """The penalty and the reported scale are in residual units."""
    env = point_env(Unsure(), scale_rule)
    env.composition = dataclasses.replace(env.composition, unit=torch.tensor([0.5, 0.1]))
    env.reset(seed=0)
    transition, info = env.step(torch.ones(3, 2))
    scale = np.array([[0.8], [0.8], [0.8]] if scale_rule is None else [[0.2], [0.35], [0.5]])
    executed = np.clip(transition.base_action.numpy() + scale * [0.5, 0.1], -1.0, 1.0)
    np.testing.assert_allclose(transition.action, executed, atol=1e-6)
    np.testing.assert_allclose(info["reward_terms"]["residual"], -0.1 * 2.0 * scale[:, 0] ** 2, rtol=1e-5)
    np.testing.assert_allclose(torch.as_tensor(info["residual_scale"]).expand(3, 1), scale, rtol=1e-5)


def test_residual_scale__bounds_the_adaptive_scale() -> None:
    env = point_env(Unsure())
    env.reset(seed=0)
    env.residual_scale = 0.4
    np.testing.assert_allclose(
        env.step(torch.zeros(3, 2))[1]["residual_scale"][:, 0], [0.1, 0.175, 0.25], rtol=1e-5
    )


def test_residual_scale__zero_with_an_adaptive_rule_equals_the_base_policy() -> None:
    alone, scaled = point_env(Unsure(), None, scale=0.0), point_env(Unsure(), rule, scale=0.0)
    alone.reset(seed=0)
    scaled.reset(seed=0)
    for _ in range(25):
        a, _ = alone.step(torch.zeros(3, 2))
        b, _ = scaled.step(torch.ones(3, 2))
        assert torch.equal(a.action, b.action)
        assert torch.equal(a.reward, b.reward)


def test_residual_env__constant_scale_reports_no_uncertainty() -> None:
    env = point_env(Unsure(), None)
    env.reset(seed=0)
    _, info = env.step(torch.zeros(3, 2))
    assert info["residual_scale"] == 0.8
    assert "base_uncertainty" not in info
    assert "residual_scale" not in evaluate(env, lambda obs: torch.zeros(3, 2), [1, 2])


def test_residual_env_reset__base_policy_without_uncertainty_is_an_error() -> None:
    env = point_env(fakes.Homing())
    with pytest.raises(
        ConfigError, match="base policy 'it' has no uncertainty, which --adaptive uncertainty needs"
    ):
        env.reset(seed=0)


def test_residual_env_state_dict__resumes_within_a_chunk_of_an_adaptive_scale() -> None:
    """Between the two steps of a chunk."""
    env, resumed = point_env(Unsure()), point_env(Unsure())
    env.reset(seed=0)
    for _ in range(4):
        env.step(torch.ones(3, 2))
    resumed.load_state_dict(env.state_dict())
    resumed.base_policy.policy.num_queries = env.base_policy.policy.num_queries  # type: ignore[attr-defined]
    for _ in range(3):
        mine, info = resumed.step(torch.ones(3, 2))
        theirs, expected = env.step(torch.ones(3, 2))
        assert torch.equal(mine.action, theirs.action)
        assert torch.equal(info["residual_scale"], expected["residual_scale"])


def test_evaluate__and_record_report_the_adaptive_scale_of_each_env() -> None:
    """Three episodes of three steps, each in another env, with chunks 0 and 1."""

    def act(obs: Obs) -> Tensor:
        return torch.tensor([[1.0, 0.0], [0.0, -0.5], [0.0, 0.0]])

    scales = 0.8 * (0.25 + 0.75 * np.array([[0.0, 0.05, 0.1], [0.01, 0.06, 0.11], [0.1, 0.15, 0.2]]) / 0.2)
    episodes = evaluate(point_env(Unsure(), max_episode_steps=3), act, [0, 1, 2])
    assert episodes["episode_length"].tolist() == [3.0] * 3
    np.testing.assert_allclose(episodes["residual_scale"], scales.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        episodes["residual_magnitude"], scales.mean(0) * [1.0, 0.5, 0.0], rtol=1e-5, atol=1e-9
    )
    recordings = recording.record(point_env(Unsure(), max_episode_steps=3), act, [0, 1, 2])
    for env_id, size in enumerate((1.0, 0.5, 0.0)):
        np.testing.assert_allclose(recordings[env_id].scale, scales[:, env_id], rtol=1e-5)
        np.testing.assert_allclose(
            recordings[env_id].magnitude, size * scales[:, env_id], rtol=1e-5, atol=1e-9
        )


def test_recording_panel__shows_an_adaptive_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(recording, "caption", lambda frame, text, magnitude: texts.append(text) or frame)
    drawn = np.zeros((2, 4, 4, 3), np.uint8)
    adaptive = recording.Recording(7, torch.zeros(2, 1), torch.zeros(2), True, torch.tensor([0.123, 0.456]))
    for t in (0, 1, 5):
        recording._panel("residual", adaptive, drawn, t)
    recording._panel("residual", dataclasses.replace(adaptive, scale=None), drawn, 0)
    assert texts == [
        "residual  ·  episode 7  ·  scale 0.12",
        "residual  ·  episode 7  ·  scale 0.46  ·  success",
        "residual  ·  episode 7  ·  scale 0.46  ·  success",
        "residual  ·  episode 7",
    ]


# --- in runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adaptive_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "adaptive"
    flags = [
        *tiny_runs.CLI_TINY,
        "--num-threads",
        "1",
        "--total-timesteps",
        "64",
        "--eval-freq",
        "0",
        "--output-dir",
        str(path),
    ]
    assert main(["train", "so101-paper", *ENSEMBLE, *ADAPTIVE, *flags]) == 0
    return path


def test_adaptive__scale_and_uncertainty_are_logged(adaptive_run: Path) -> None:
    rows = [json.loads(line) for line in (adaptive_run / "metrics.jsonl").read_text().splitlines()]
    collected = [row for row in rows if "base/uncertainty" in row]
    assert len(collected) == 2
    for row in collected:
        uncertainty = row["base/uncertainty"]
        assert uncertainty > 0.0
        # The mean of a concave function is at most its value at the mean.
        assert 0.25 * 0.6 < row["residual/scale"] <= 0.6 * (0.25 + 0.75 * uncertainty / 0.2) + 1e-6
    assert all("eval/residual_scale" in row for row in rows if "eval/success_rate" in row)


@pytest.mark.slow
def test_eval__uses_the_adaptive_settings_of_training(adaptive_run: Path) -> None:
    assert (
        main(
            [
                "eval",
                str(adaptive_run),
                "--n-episodes",
                "2",
                "--compare-base",
                "--compare-zero",
                "--model",
                "final",
            ]
        )
        == 0
    )
    policies = json.loads((adaptive_run / "eval.json").read_text())["policies"]
    assert 0.15 < policies["residual"]["residual_scale"]["mean"] < 0.6
    assert policies["residual"]["residual_magnitude"]["mean"] > 0.0
    assert "residual_scale" not in policies["zero"]  # it has neither an uncertainty nor a residual


def test_trained_run__keeps_its_own_adaptive_scale(adaptive_run: Path) -> None:
    """It also returns the uncertainty of its base policy."""
    exported = load_policy(adaptive_run / "final_model" / "policy.safetensors")
    env = make_residual_env(exported.cfg, 2)
    expected: list[Tensor] = []
    evaluate(
        env,
        exported.actor(env.observation_space, env.action_dim, env.device),
        [1, 2],
        on_step=lambda transition, _: expected.append(transition.action),
    )
    cfg = dataclasses.replace(
        tiny_runs.config("model", checkpoint=str(adaptive_run / "final_model")), task=exported.cfg.task
    )
    cfg = dataclasses.replace(cfg, residual=ResidualCfg(adaptive="uncertainty"))
    on_top = make_residual_env(cfg, 2)
    got: list[Tensor] = []
    uncertainties: list[Tensor] = []

    def note(transition: Any, info: dict[str, Any]) -> None:
        got.append(transition.action)
        uncertainties.append(info["base_uncertainty"])

    evaluate(on_top, lambda obs: torch.zeros(2, 6), [1, 2], on_step=note)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert torch.stack(uncertainties).max() > 0.0


def test_adaptive__base_policy_without_uncertainty_is_an_error_of_one_line(
    fails: tiny_runs.Fails, tmp_path: Path
) -> None:
    message = fails(
        "train", "so101-paper", *ADAPTIVE, *tiny_runs.FAILING_TINY, "--output-dir", tmp_path / "x"
    )
    assert message.startswith("base policy 'jacobian' has no uncertainty")
    assert not (tmp_path / "x").exists()


def test_train_cfg_from_dict__adaptive_defaults_to_off(run: Path) -> None:
    state = load(run / "final_model" / "policy.safetensors", "policy")
    residual = {
        name: value for name, value in state["config"]["residual"].items() if not name.startswith("adaptive")
    }
    assert TrainCfg.from_dict({**state["config"], "residual": residual}, None).residual.adaptive == "off"
