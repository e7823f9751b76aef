"""The probe on a point that moves to the origin: outcomes against `evaluate`, pairing, ends, predictions."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import fakes
import pytest
import torch
from learned_point import LearnedCfg, register

from residual_rl.config import ResidualCfg, RunCfg, TrainCfg
from residual_rl.errors import ConfigError
from residual_rl.evaluation import probe as module
from residual_rl.evaluation.evaluate import evaluate, no_residual
from residual_rl.evaluation.probe import CONDITIONS, SHARES, Probe, is_stalled, probe
from residual_rl.evaluation.probe_episodes import record_episodes
from residual_rl.factory import make_residual_env
from residual_rl.learners.off_policy.config import SACCfg
from residual_rl.utils.seeding import (
    DEMO_SEED,
    EVAL_SEED,
    PROBE_SEED,
    TRAINING_EVAL_SEED,
    training_seed_start,
)

SEEDS = range(PROBE_SEED, PROBE_SEED + 40)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def point_cfg(base_policy: str = "homing", max_episode_steps: int = 6, base: Any = None) -> TrainCfg:
    """With 6 steps, the point does not get to the origin from everywhere."""
    task = fakes.PointCfg(max_episode_steps)
    run = RunCfg(torch_threads=1)
    return TrainCfg("point", base_policy, task, base, SACCfg(), ResidualCfg(), run, "sac")


def measured(cfg: TrainCfg, num_envs: int = 40, disturbed: int = 12) -> Probe:
    return probe(cfg, SEEDS, disturbed, num_envs)


def test_probe__success_and_ends_are_those_of_an_evaluation() -> None:
    env = make_residual_env(dataclasses.replace(point_cfg(), residual=ResidualCfg(residual_scale=0.0)), 40)
    episodes = evaluate(env, no_residual(env), SEEDS)
    found = measured(point_cfg())
    solved = episodes["success_once"].bool()
    assert 5 < int(solved.sum()) < 35
    assert found.success.mean == pytest.approx(float(solved.double().mean()))
    assert found.success.n == 40
    ends = found.successes, found.failures
    assert [e.episodes for e in ends] == [int(solved.sum()), int((~solved).sum())]
    assert [e.terminated for e in ends] == [int(solved.sum()), 0]
    assert found.failures.median_length == 6
    assert found.failures.stalled == 0
    assert found.seeds == tuple(SEEDS)
    assert found.successes.disagreement is None


def test_probe__does_not_depend_on_the_number_of_envs() -> None:
    assert measured(point_cfg(), num_envs=40) == measured(point_cfg(), num_envs=7)


def test_conditions__are_paired_with_the_same_episodes_without_disturbance() -> None:
    """Without any disturbance to speak of, no pair differs; the delay of one step costs the slowest ones."""
    found = measured(point_cfg(max_episode_steps=30))
    assert found.success.mean == 1.0
    assert found.max_disturbed_steps is not None
    assert found.max_disturbed_steps < 30
    assert [(c.kind, c.size) for c in found.conditions] == list(CONDITIONS)
    for condition in found.conditions:
        assert condition.success.n == condition.difference.n == 12
        assert condition.difference.mean == pytest.approx(condition.success.mean - 1.0)
    assert found.conditions[0].difference.mean == 0.0


def test_max_disturbed_steps__are_half_as_many_again_as_those_of_a_slow_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lengths 1 to 21: the 95th percentile is 20, and 1.5 times that is 30."""
    env = make_residual_env(point_cfg(), 2)
    (first, *_) = record_episodes(env, [PROBE_SEED], ["state"], lambda done: None)
    lengths = [
        dataclasses.replace(first, success=True, obs=torch.zeros(n, 5), changes=torch.zeros(n - 1))
        for n in range(1, 22)
    ]
    monkeypatch.setattr(module, "record_episodes", lambda *args: lengths)
    found = probe(point_cfg(max_episode_steps=100), SEEDS[:21], 2, 2)
    assert found.max_disturbed_steps == 30


@pytest.mark.slow
def test_predictions__failures_of_the_point_are_known_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("residual_rl.evaluation.failure_prediction._STEPS", 300)
    found = measured(point_cfg())
    assert [p.share for p in found.predictions] == list(SHARES)
    assert found.predictions[0].step == 0
    assert found.predictions[0].area.n == 40
    assert found.predictions[0].area.mean > 0.75


def test_predictions__need_failures_and_successes() -> None:
    assert measured(point_cfg(max_episode_steps=30)).predictions == ()


def test_probe__of_a_base_policy_that_never_succeeds_runs_no_disturbance() -> None:
    found = measured(point_cfg("learned", base=LearnedCfg(speed=-100.0)))
    assert (found.success.mean, found.success.high) == (0.0, pytest.approx(0.0876, abs=1e-4))
    assert (found.conditions, found.max_disturbed_steps, found.predictions) == ((), None, ())
    assert found.successes.median_length is None
    assert found.at_bounds > 0.99


def test_disagreement__is_measured_with_two_samples_where_the_base_policy_takes_one() -> None:
    found = measured(point_cfg("learned", base=LearnedCfg()))
    assert found.successes.disagreement == found.failures.disagreement == pytest.approx(0.25)
    without = measured(point_cfg())
    assert found.conditions == without.conditions


def test_probe__reports_progress_up_to_the_number_of_episodes() -> None:
    seen: list[tuple[int, float | None]] = []
    probe(point_cfg(), SEEDS, 12, 40, lambda done, success: seen.append((done, success)))
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert counts[-1] == module.num_episodes(40, 12) == 40 + 8 * 12


def test_record_episodes__refuses_an_env_that_draws_its_seeds_in_another_order() -> None:
    env = make_residual_env(point_cfg(), 2)
    draw = env.vec_env.episode_seeds.draw
    env.vec_env.episode_seeds.draw = lambda n: draw(n).flip(0)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="does not draw its episode seeds in order"):
        record_episodes(env, SEEDS[:2], ["state"], lambda done: None)


def test_is_stalled__judges_the_last_25_changes_of_the_action() -> None:
    moving, still = torch.full((30,), 0.2), torch.full((25,), 0.04)
    assert is_stalled(torch.cat([moving, still]))
    assert not is_stalled(torch.cat([still, moving]))
    assert not is_stalled(torch.zeros(24))


def test_to_json__has_plain_values_only() -> None:
    plain = measured(point_cfg()).to_json()
    assert plain["success"].keys() == {"mean", "interval", "n"}
    assert plain["conditions"][0]["difference"].keys() == {"mean", "interval", "n"}
    assert plain["predictions"][0]["area"].keys() == {"mean", "interval", "n"}


def test_probe_seed__is_not_used_by_training_evaluations_or_demonstrations() -> None:
    starts = sorted([EVAL_SEED, TRAINING_EVAL_SEED, DEMO_SEED, PROBE_SEED, training_seed_start(0)])
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 10_000_000
