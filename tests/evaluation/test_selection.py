"""Evaluations in training: paired with the base policy, and stopped where the policy cannot be the best."""

from __future__ import annotations

import json
from pathlib import Path

import point_runs
import pytest
import torch
from tiny_runs import metric_rows

from residual_rl.evaluation.evaluate import evaluate, no_residual
from residual_rl.evaluation.selection import _cannot_be_best, make_eval_env
from residual_rl.exported_policy import find_policy
from residual_rl.factory import make_residual_env
from residual_rl.utils.seeding import TRAINING_EVAL_SEED
from residual_rl.utils.statistics import paired_difference


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    point_runs.register(monkeypatch)


def test_evaluate__is_paired_with_the_base_policy(tmp_path: Path) -> None:
    point_runs.train(tmp_path / "run", homing=0.2)
    first, *others = (row for row in metric_rows(tmp_path / "run") if "eval/gain" in row)
    seeds = range(TRAINING_EVAL_SEED, TRAINING_EVAL_SEED + 32)
    env = make_residual_env(point_runs.config(), 8)
    base = evaluate(env, no_residual(env), seeds)["success_once"].tolist()
    # The first evaluation is that of the base policy.
    assert (first["eval/success_rate"], first["eval/gain"]) == (sum(base) / 32, 0.0)
    assert (first["eval/won"], first["eval/lost"]) == (0, 0)
    for row in others:
        file = tmp_path / "run" / "eval_results" / f"step_{row['step']:09d}.json"
        residual = json.loads(file.read_text())["success_once"]
        expected = paired_difference(dict(enumerate(residual)), dict(enumerate(base)), binary=True)
        interval = (row["eval/gain_low"], row["eval/gain_high"])
        assert (row["eval/gain"], *interval) == (expected.mean, expected.low, expected.high)
        assert row["eval/won"] == sum(x > y for x, y in zip(residual, base, strict=True)) > 0
        assert row["eval/lost"] == sum(x < y for x, y in zip(residual, base, strict=True))
        assert row["eval/base_success_rate"] == sum(base) / 32
        assert row["eval/episodes"] == 32


def test_evaluate__stops_where_the_policy_cannot_be_the_best(tmp_path: Path) -> None:
    """A residual away from the origin loses. The episodes run in two rounds of 32, and one suffices."""
    summary = point_runs.train(tmp_path / "worse", homing=-1.0, eval_episodes=64)
    rows = [row for row in metric_rows(tmp_path / "worse") if "eval/gain" in row]
    assert [row["eval/episodes"] for row in rows] == [64, 32, 32]
    for row in rows[1:]:
        # The rates are those of the episodes that were run; the others are no failures.
        results = json.loads(
            (tmp_path / "worse" / "eval_results" / f"step_{row['step']:09d}.json").read_text()
        )
        assert {len(values) for values in results.values()} == {32}
        assert row["eval/success_rate"] == sum(results["success_once"]) / 32
    assert summary["best_success_rate"] == rows[0]["eval/success_rate"]
    assert find_policy(tmp_path / "worse").exported.step == 0


@pytest.mark.parametrize(
    ("outcomes", "best", "stops"),
    [
        ("0", "1111", True),  # three others do not suffice for four
        ("0", "1101", False),  # they may suffice for a tie, which the return decides
        ("00", "1101", True),
        ("1110", "1110", False),
        ("0000000" + "1" * 9, "1111111" + "1" * 9 + "0" * 20, True),  # seven lost and none won
        ("000000" + "1" * 10, "111111" + "1" * 10 + "0" * 20, False),
        ("1111111", "0000000" + "1" * 9, False),
    ],
)
def test_cannot_be_best__counts_the_episodes_that_are_left_as_solved(
    outcomes: str, best: str, stops: bool
) -> None:
    assert _cannot_be_best([float(x) for x in outcomes], [float(x) for x in best]) is stops


@pytest.mark.parametrize(("episodes", "envs"), [(2, 2), (32, 32), (64, 32), (65, 33), (200, 100)])
def test_make_eval_env__has_one_env_for_two_episodes(episodes: int, envs: int) -> None:
    assert make_eval_env(point_runs.config(eval_episodes=episodes)).num_envs == envs


def test_evaluate__gives_the_first_episodes_where_it_stops() -> None:
    env = make_residual_env(point_runs.config(), 3)
    whole = evaluate(env, no_residual(env), range(12))
    seen: list[int] = []

    def stop(first: dict[str, torch.Tensor]) -> bool:
        seen.append(len(first["return"]))
        return seen[-1] >= 5

    some = evaluate(env, no_residual(env), range(12), stop=stop)
    assert seen == sorted(set(seen))
    assert 5 <= seen[-1] < 12
    for name, values in whole.items():
        assert torch.equal(some[name], values[: seen[-1]]), name
