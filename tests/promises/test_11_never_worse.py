"""Promise 11: the deployed policy is never significantly worse than the base, which it is without a gain."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import point_runs
import pytest
import torch
from tiny_runs import files

from residual_rl.cli.main import main
from residual_rl.errors import CheckpointError
from residual_rl.evaluation import selection
from residual_rl.evaluation.compare import run_episodes
from residual_rl.evaluation.deployment import Deployment
from residual_rl.exported_policy import find_policy, read_own_policy
from residual_rl.runs import checkpoint
from residual_rl.runs.locate import POLICY_FILE
from residual_rl.utils.files import plain
from residual_rl.utils.seeding import CONFIRMATION_SEED, TRAINING_EVAL_SEED, uniform

GOOD = {"homing": 1.0}
WORSE = {"homing": -1.0}
FRESH = range(7, 47)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    point_runs.register(monkeypatch)


def lucky() -> dict[str, Any]:
    """A constant residual towards the origin in the one episode of the evaluations, which is worse than the
    base in others."""
    start = 2.0 * uniform(torch.tensor([TRAINING_EVAL_SEED]), 0, 2)[0] - 1.0
    # The base moves by half of the action range in each direction; together they move straight to the origin.
    push = -start.sign() * (2.0 * start.abs() / start.abs().max() - 1.0)
    return {"push": tuple(push.tolist()), "eval_episodes": 1}


def deployment_of(run: Path) -> Deployment:
    found = Deployment.from_summary(json.loads((run / "training_summary.json").read_text()))
    assert found is not None
    return found


def check_is_base(run: Path) -> None:
    """The exported policy gives the same episodes as the base policy, bit for bit."""
    exported = find_policy(run).exported
    assert exported.residual_scale == 0.0
    base = run_episodes(exported.cfg, FRESH, 8, "base")
    deployed = run_episodes(exported.cfg, FRESH, 8, "residual", exported)
    assert 0.0 < base["success_once"].mean() < 1.0
    for name, values in base.items():
        assert torch.equal(deployed[name], values), name


def test_best_model__is_the_base_policy_where_training_makes_it_worse(tmp_path: Path) -> None:
    summary = point_runs.train(tmp_path / "run", **WORSE)
    assert summary["finished"]
    check_is_base(tmp_path / "run")
    deployment = deployment_of(tmp_path / "run")
    assert (deployment.policy, deployment.step, deployment.episodes) == ("base", 0, 0)
    assert "so best_model is the base policy (residual_scale 0)" in deployment.text
    # The worse policy is kept as the final one, with its scale.
    assert find_policy(tmp_path / "run", "final").exported.residual_scale == 0.5


def test_best_model__is_the_base_policy_where_a_lucky_evaluation_is_not_confirmed(tmp_path: Path) -> None:
    summary = point_runs.train(tmp_path / "run", **lucky())
    assert summary["best_success_rate"] == 1.0
    check_is_base(tmp_path / "run")
    deployment = deployment_of(tmp_path / "run")
    assert (deployment.policy, deployment.confirmed, deployment.step) == ("base", False, 32)
    assert 0 < deployment.episodes <= 120
    assert deployment.interval is not None
    assert deployment.interval[0] < 0
    assert deployment.text.startswith(f"No gain over the base policy on {deployment.episodes} fresh episodes")


def test_best_model__is_confirmed_where_it_is_better(tmp_path: Path) -> None:
    point_runs.train(tmp_path / "run", **GOOD)
    deployment = deployment_of(tmp_path / "run")
    assert (deployment.policy, deployment.confirmed, deployment.step) == ("residual", True, 32)
    assert deployment.episodes < 120
    assert deployment.interval is not None
    assert deployment.interval[0] > 0
    assert deployment.e_value is not None
    assert deployment.e_value >= 40.0
    exported = find_policy(tmp_path / "run").exported
    assert (exported.residual_scale, exported.step) == (0.5, 32)
    # The figures are those of the two policies on the first episodes of the range of its own.
    seeds = range(CONFIRMATION_SEED, CONFIRMATION_SEED + deployment.episodes)
    rates = [
        float(run_episodes(exported.cfg, seeds, 16, "", policy)["success_once"].mean())
        for policy in (exported, None)
    ]
    assert [deployment.success_rate, deployment.base_success_rate] == rates
    assert deployment.gain == pytest.approx(rates[0] - rates[1])


def test_best_model__is_confirmed_over_a_base_policy_that_fails(tmp_path: Path) -> None:
    point_runs.train(tmp_path / "run", "zero", **GOOD, residual_scale=1.0)
    assert deployment_of(tmp_path / "run").policy == "residual"


def test_confirm_episodes__of_zero_keeps_the_best_evaluation(tmp_path: Path) -> None:
    point_runs.train(tmp_path / "run", **lucky(), confirm_episodes=0)
    deployment = deployment_of(tmp_path / "run")
    assert (deployment.policy, deployment.confirmed) == ("residual", False)
    assert deployment.text.endswith("not confirmed.")
    assert find_policy(tmp_path / "run").exported.residual_scale == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("settings", [GOOD, lucky()], ids=["better", "lucky"])
def test_confirm__interrupted_and_resumed_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    point_runs.train(tmp_path / "whole", **settings)

    def stop_after_a_block(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments, **options)

    evaluate, confirm = selection.evaluate, selection.ModelSelection.confirm

    def confirm_and_stop(*arguments: Any) -> Any:
        patch.setattr(selection, "evaluate", stop_after_a_block)
        patch.setattr(selection, "may_show_gain", lambda *_: True)
        patch.setattr(selection, "shows_gain", lambda *_: False)
        return confirm(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(selection.ModelSelection, "confirm", confirm_and_stop)
        summary = point_runs.train(tmp_path / "stopped", **settings)
    assert (summary["finished"], summary["signal"], summary["model"]) == (False, signal.SIGINT, "final_model")
    assert not deployment_of(tmp_path / "stopped").confirmed
    assert deployment_of(tmp_path / "stopped").text.endswith("not confirmed.")

    summary = point_runs.train(tmp_path / "stopped", resume=True, **settings)
    assert summary["finished"]
    assert deployment_of(tmp_path / "stopped") == deployment_of(tmp_path / "whole")
    for folder in ("best_model", "final_model", "eval_results"):
        assert files(tmp_path / "stopped" / folder) == files(tmp_path / "whole" / folder), folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (GOOD, "best_model is better than the base policy on 16 fresh episodes: 100.0 % against "),
        (WORSE, "No evaluation solved more episodes than the base policy, so best_model is the base policy"),
    ],
    ids=["better", "worse"],
)
def test_train__says_which_policy_is_deployed_as_eval_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], told: str
) -> None:
    run = tmp_path / "run"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**point_runs.TINY, **settings}.items()]
    assert main(["train", "point", *flags, "--output-dir", str(run)]) == 0
    captured = capsys.readouterr()
    assert told in captured.out
    assert deployment_of(run).note in captured.err.splitlines()[-1]  # the last line of the progress bar
    assert main(["eval", str(run), "--n-episodes", "4"]) == 0
    assert told in capsys.readouterr().out
    assert told in (run / "report.html").read_text()
    # It is about the best model, not about others.
    assert main(["eval", str(run), "--n-episodes", "4", "--model", "final"]) == 0
    assert told not in capsys.readouterr().out


def test_confirm__is_not_repeated_for_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = point_runs.train(tmp_path / "run", **GOOD)
    monkeypatch.delattr(selection.ModelSelection, "confirm")
    after = point_runs.train(tmp_path / "run", resume=True, **GOOD)
    assert plain(after["deployment"]) == plain(before["deployment"])
    assert after["wall_time"] == before["wall_time"]


def test_confirm__of_a_longer_training_starts_from_the_scale_of_the_best_evaluation(tmp_path: Path) -> None:
    """The first comparison has set it to 0."""
    run = tmp_path / "run"
    point_runs.train(run, **lucky())
    assert find_policy(run).exported.residual_scale == 0.0
    point_runs.train(run, resume=True, **lucky(), total_timesteps=96, confirm_episodes=0)
    assert find_policy(run).exported.residual_scale == 0.5


@pytest.mark.parametrize(
    "damage",
    [
        {"wall_time": "x"},
        {"wall_time": "inf"},
        {"wall_time": 10**400},
        {"deployment": {"policy": "x"}},
        {"steps": []},
    ],
)
def test_confirm__is_repeated_where_the_summary_is_damaged(damage: dict[str, Any], tmp_path: Path) -> None:
    before = point_runs.train(tmp_path / "run", **GOOD)
    file = tmp_path / "run" / "training_summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **damage}))
    after = point_runs.train(tmp_path / "run", resume=True, **GOOD)
    assert plain(after["deployment"]) == plain(before["deployment"])
    assert 0.0 < after["wall_time"] < 1e6


@pytest.mark.parametrize(
    ("scale", "message"),
    [("x", "residual_scale must be"), (1e30, "residual_scale must be"), (None, "lacks residual_scale")],
)
def test_read_own_policy__of_another_person_is_an_error_of_one_line(
    scale: Any, message: str, tmp_path: Path
) -> None:
    """The best model of a run that somebody else has changed, which resuming compares with the base."""
    point_runs.train(tmp_path / "run", **GOOD)
    (tmp_path / "run" / "training_summary.json").unlink()
    file = tmp_path / "run" / "best_model" / POLICY_FILE
    state = checkpoint.load(file, "policy")
    del state["residual_scale"]
    checkpoint.save(file, state if scale is None else {**state, "residual_scale": scale}, "policy")
    with pytest.raises(CheckpointError, match=message):
        read_own_policy(file.parent, point_runs.config(), object())  # type: ignore[arg-type]
