"""The benchmark: equal work on both sides, plausible results, and missing libraries."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import point_runs
import pytest
import torch
from fakes import PointCfg, PointEnv

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.base_policies.zero_policy import ZeroPolicy
from residual_rl.bench import bench
from residual_rl.bench import stepping as bench_stepping
from residual_rl.bench import training as bench_training
from residual_rl.bench.bench import BenchCfg, run_bench
from residual_rl.cli import bench as cli
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.errors import ConfigError, ResidualRLError
from residual_rl.factory import make_residual_env
from residual_rl.residual_env import ResidualEnv

CFG = replace_fields(TrainCfg.default("so101-paper"), {"max_episode_steps": 6, "eval_episodes": 1})
SMALL = {"num_envs": 4, "num_steps": 8, "minibatch_size": 16, "num_epochs": 1}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_training, "SETTINGS", bench_training.SETTINGS | SMALL)


def test_compare_stepping__bare_mujoco_does_the_same_work_over_several_episodes() -> None:
    env = make_residual_env(CFG, 3)
    speeds = bench_stepping.compare_stepping(env, num_steps=14, repeats=2)
    assert speeds.resets == 6  # each of 3 envs is reset after steps 6 and 12
    assert [
        len(values) for values in (speeds.env_cpu, speeds.raw_cpu, speeds.ratios, speeds.physics_share)
    ] == [2] * 4
    np.testing.assert_allclose(np.array(speeds.env_cpu) / speeds.raw_cpu, speeds.ratios)
    assert all(0.0 < share < 1.0 for share in speeds.physics_share)
    env.close()


def test_raw_physics__other_commands_raise() -> None:
    env = make_residual_env(CFG, 2)
    stretch = bench_stepping._record(env, 2, seed=0)
    assert [len(segment.commands) for segment in stretch.segments] == [2, 2]
    assert stretch.segments[0].commands[0].shape == (33, 6)
    stretch.segments[1].commands[1][20, 0] += 0.01
    raw = bench_stepping._RawPhysics(1, stretch.segments)
    with pytest.raises(ResidualRLError, match="another state"):
        raw.run()
    raw.close()
    env.close()


def test_compare_stepping__restores_the_methods_of_the_physics() -> None:
    env = make_residual_env(CFG, 2)
    bench_stepping.compare_stepping(env, num_steps=1, repeats=1)
    assert {"step", "reset"}.isdisjoint(
        vars(env.vec_env.physics)
    ) or env.vec_env.physics.step.__name__ == "step"
    env.close()


def test_timed__sleeping_takes_wall_time_but_no_cpu_time() -> None:
    cpu, wall = bench_stepping._timed(lambda: time.sleep(0.1))
    assert wall >= 0.1
    assert cpu < 0.05


def test_compare_stepping__env_without_mujoco_raises() -> None:
    vec_env = PointEnv(PointCfg(), 2)
    env = ResidualEnv(vec_env, BasePolicyExecutor(ZeroPolicy(2, torch.device("cpu")), vec_env), 1.0)
    with pytest.raises(bench_stepping.NotMujocoError, match="needs envs that MuJoCo simulates"):
        bench_stepping.compare_stepping(env, 1, 1)


@pytest.mark.parametrize("error", [ResidualRLError, ConfigError])
def test_stepping__skips_envs_without_mujoco_but_no_other_failure(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(with_error: Exception) -> None:
        def compare(*_: Any) -> None:
            raise with_error

        monkeypatch.setattr(bench, "compare_stepping", compare)

    fail(bench_stepping.NotMujocoError("not MuJoCo's"))
    (row,) = bench._stepping(CFG, BenchCfg(num_envs=1))
    assert (row.value, row.note) == (None, "not MuJoCo's")
    fail(error("bare MuJoCo ended in another state"))
    with pytest.raises(error, match="another state"):
        bench._stepping(CFG, BenchCfg(num_envs=1))


def test_compare_training__without_sb3_measures_the_rest_and_names_the_fix(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    speeds = bench_training.compare_training(CFG, repeats=2)
    assert len(speeds.ours) == 2
    assert speeds.sb3 == speeds.ratios == []
    assert speeds.missing is not None
    assert "pip install 'residual-rl[sb3]'" in speeds.missing
    assert sum(speeds.shares.values()) == pytest.approx(1.0)
    assert speeds.peak_memory > 50 * 2**20
    assert speeds.act_latency > 0.0
    assert speeds.base_latency > 0.0


def test_make_sb3__has_the_same_task_networks_and_number_of_gradient_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common import vec_env

    monkeypatch.setattr(vec_env, "SubprocVecEnv", vec_env.DummyVecEnv)  # equivalent for this test
    cfg = replace_fields(CFG, bench_training.SETTINGS | {"residual_scale": 0.3, "tolerance": 0.01})
    threads = torch.get_num_threads()
    model = bench_training._make_sb3(cfg)
    torch.set_num_threads(threads)
    env = model.get_env().envs[0].unwrapped
    assert model.n_steps * model.n_envs == 32 * 64 == 2048
    assert (model.batch_size, model.n_epochs) == (256, 8)
    assert env.residual_env.residual_scale == 0.3
    assert env.residual_env.vec_env.task.cfg == cfg.task
    assert env.observation_space.shape == (31,)
    widths = [
        [m.out_features for m in net if hasattr(m, "out_features")]
        for net in (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net)
    ]
    assert widths == [[128, 128], [128, 128]]
    model.get_env().close()


@pytest.mark.slow
def test_run_bench__results_are_plain_and_describe_the_machine(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    started: list[str] = []
    results = json.loads(
        json.dumps(
            run_bench(
                CFG,
                BenchCfg(num_envs=2, num_threads=1, num_steps=2, repeats=1, training_repeats=1),
                started.append,
            )
        )
    )
    assert started == ["training", "stepping", "cameras"]
    rows = {row["name"]: row for row in results["rows"]}
    assert rows["env stepping ÷ bare mj_step"]["value"] == pytest.approx(
        rows["env stepping"]["value"] / rows["bare mj_step on the same states"]["value"]
    )
    assert rows["Stable-Baselines3 PPO"]["value"] is None
    assert {"cpu", "cores", "memory_bytes"} <= results["machine"].keys()
    assert len(results["load_average"]["before"]) == 3
    assert "without our normalisation" in results["caption"]
    assert "1 torch thread" in results["caption"]


def test_bench__prints_a_table_and_saves_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(cfg: TrainCfg, bench_cfg: BenchCfg, on_start: Any) -> dict[str, Any]:
        assert cfg.task.tolerance == 0.01
        row = {
            "name": "env stepping",
            "value": 12345.6,
            "unit": "steps / s",
            "note": "how",
            "spread": (1.234, 20000.0),
        }
        skipped = {"name": "camera images", "value": None, "unit": "", "note": "no OpenGL", "spread": None}
        return {
            "task": cfg.task_id,
            "caption": "How it was compared.",
            "settings": dataclasses.asdict(bench_cfg),
            "rows": [row, skipped],
            "machine": {"cpu": "Some (R) CPU", "cores": 2},
            "load_average": {"before": [0.5, 0, 0], "after": [1.25, 0, 0]},
        }

    monkeypatch.setattr(cli, "run_bench", measured)
    output = tmp_path / "new" / "bench.json"
    assert cli.main(["so101-paper", "--quick", "--tolerance", "0.01", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["settings"] == {
        "num_envs": 32,
        "num_threads": 0,
        "num_steps": 20,
        "repeats": 1,
        "training_repeats": 1,
        "steps_to_95": 0,
    }
    printed = capsys.readouterr().out
    for text in (
        "12,346",
        "1.23 … 20,000",
        "camera images: no OpenGL.",
        "2 cores of Some (R) CPU",
        "load average 0.5",
        "How it was compared.",
    ):
        assert text in printed


def test_bench__default_output_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"task": "so101-paper", "caption": "", "rows": [], "machine": {"cpu": "x", "cores": 2}}
    monkeypatch.setattr(cli, "run_bench", lambda *_: results | {"load_average": {"before": [], "after": []}})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["so101-paper"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bench-so101-paper.json"]
    assert "Saved: bench-so101-paper.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "text"), [([], "needs a task id"), (["so101-papr"], "did you mean 'so101-paper'")]
)
def test_bench__missing_or_unknown_task_raises(argv: list[str], text: str) -> None:
    with pytest.raises(ResidualRLError, match=text):
        cli.main(argv)


@pytest.mark.parametrize("name", ["num_envs", "num_steps", "repeats", "training_repeats"])
def test_bench_cfg__counts_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        BenchCfg(**{name: 0})


@pytest.mark.slow
def test_compare_training__alternates_with_sb3(small: None) -> None:
    pytest.importorskip("stable_baselines3")
    speeds = bench_training.compare_training(CFG, repeats=1)
    assert len(speeds.ours) == len(speeds.sb3) == len(speeds.ratios) == 1
    assert speeds.ratios[0] == speeds.ours[0] / speeds.sb3[0]


@pytest.mark.parametrize(("homing", "reached"), [(1.0, True), (-1.0, False)])
def test_time_to_95__ends_after_the_evaluation_that_reaches_it(
    monkeypatch: pytest.MonkeyPatch, homing: float, reached: bool
) -> None:
    point_runs.register(monkeypatch)
    steps: list[int] = []
    summarize = bench_training.Runner._summarize

    def spy(runner: Any, stopped_by: int | None) -> Any:
        steps.append(runner.progress.step)
        return summarize(runner, stopped_by)

    monkeypatch.setattr(bench_training.Runner, "_summarize", spy)
    seconds = bench_training.time_to_95(point_runs.config(homing=homing), 128)
    assert (seconds is not None) == reached
    assert steps == [32 if reached else 128]


def test_measure_time_to_95__counts_bare_env_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = dataclasses.replace(CFG, run=dataclasses.replace(CFG.run, seed=3))
    rows = [{"name": bench.BARE, "value": 2000.0}]
    monkeypatch.setattr(bench, "time_to_95", lambda cfg, max_steps: 12.5)
    row = bench.measure_time_to_95(cfg, BenchCfg(), rows)
    assert (row.value, row.unit) == (25_000.0, "bare env steps")
    assert row.note == "12 s of training (ppo, seed 3), set-up and evaluations included"
    monkeypatch.setattr(bench, "time_to_95", lambda cfg, max_steps: None)
    row = bench.measure_time_to_95(cfg, BenchCfg(steps_to_95=500), rows)
    assert (row.value, row.note) == (None, "not reached in 500 env steps")
    assert bench.measure_time_to_95(cfg, BenchCfg(), []).value is None
