"""Imitation from a file of demonstrations to a base policy: training, evaluation, resuming and errors."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import il_case
import numpy as np
import pytest
import tiny_runs
import torch
from tiny_runs import slow

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.il import ILCfg
from residual_rl.cli.main import main
from residual_rl.demos.episode import Demo
from residual_rl.demos.writer import DemoWriter, describe
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.factory import make_vec_env
from residual_rl.imitation import success_evaluation as evaluation
from residual_rl.imitation import trainer
from residual_rl.imitation.config import ImitateCfg
from residual_rl.imitation.model import LAST_FILE, MODEL_FILE, ImitationModel
from residual_rl.imitation.policy import ILPolicy
from residual_rl.imitation.success_evaluation import SuccessEvaluation
from residual_rl.imitation.trainer import Progress, Trainer, train
from residual_rl.registry import TASKS
from residual_rl.runs.logger import read_metrics
from residual_rl.runs.run_folder import RunFolder

TINY: dict[str, Any] = {
    "channels": (8, 16),
    "kernel_size": 3,
    "time_dim": 8,
    "hidden_sizes": (16,),
    "chunk_size": 8,
    "num_action_steps": 4,
    "total_steps": 12,
    "batch_size": 8,
    "warmup_steps": 2,
    "learning_rate": 3e-3,
    "log_freq": 4,
    "val_freq": 6,
    "eval_freq": 0,
    "eval_episodes": 2,
    "save_freq": 5,
    "val_share": 0.25,
    "torch_threads": 1,
    "num_threads": 1,
}
FLAGS = [
    word
    for name, value in TINY.items()
    for word in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,)))
]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return il_case.write_demos(tmp_path_factory.mktemp("demos") / "demos.h5", max_episode_steps=20)


def cfg(algo: str = "flow", **values: Any) -> ImitateCfg:
    return ImitateCfg(algo=algo, preset="cpu", **{**TINY, **values})


def imitate(demos: Path, out: Path, *more: str) -> int:
    return main(["imitate", str(demos), "--out", str(out), *FLAGS, *more])


# --- from a file to a policy --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["bc", "flow", "diffusion"])
def test_imitate__trains_a_base_policy_from_demonstrations(
    algo: str, demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "il"
    assert imitate(demos, out, "--algo", algo, "--eval-freq", "6") == 0
    output = capsys.readouterr().out
    assert (
        f"residual-rl eval so101-paper --max-episode-steps 20 --base-policy il --il-checkpoint {out}"
        in output
    )
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 8, 12]
    assert [row["step"] for row in rows if "val/loss" in row] == [6, 12]
    assert [row["step"] for row in rows if "eval/success_rate" in row] == [6, 12]
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    summary = json.loads((out / "training_summary.json").read_text())
    assert (summary["finished"], summary["steps"], summary["base_policy"]) == (True, 12, "il")
    assert summary["episodes"] == {"train": 3, "val": 1}
    best = max(
        ((row["eval/success_rate"], -row["val/loss"]), row["step"])
        for row in rows
        if "eval/success_rate" in row
    )
    assert (summary["best_success_rate"], -summary["best_val_loss"]) == pytest.approx(best[0])
    model = ImitationModel.load(out)
    assert model.step == best[1]
    assert model.settings.algo == algo
    assert model.settings.task_settings["max_episode_steps"] == 20
    assert (model.settings.action_unit_name, model.settings.action_unit) == (
        "rad",
        pytest.approx((0.02,) * 6),
    )
    env = make_vec_env("so101-paper", 2, num_threads=1)
    obs, _ = env.reset(seed=5)
    assert make_base_policy("il", ILCfg(str(out)), env).act(obs).abs().max() <= 1.0


@pytest.mark.slow
def test_train__imitates_intended_rather_than_executed_actions(tmp_path: Path) -> None:
    """Noise on the executed actions widens the data, but is not imitated."""
    draw = np.random.default_rng(0)
    obs = draw.uniform(-1, 1, (41, 3)).astype(np.float32)
    intended = np.stack([0.8 * obs[:-1, 0], -0.5 * obs[:-1, 1]], 1)
    ends = np.arange(40) == 39
    info = describe(
        "x", {}, max_episode_steps=40, control_hz=10.0, source_type="controller", source_desc="a line"
    )
    with DemoWriter(tmp_path / "line.h5", info) as writer:
        for _ in range(4):
            noisy = intended + draw.normal(0, 0.5, intended.shape).astype(np.float32)
            demo = Demo(
                actions=noisy, obs={"state": obs}, terminated=ends, truncated=ends, intended_actions=intended
            )
            writer.add(demo)
    made = cfg(
        "bc",
        total_steps=400,
        num_obs_steps=1,
        chunk_size=1,
        num_action_steps=1,
        batch_size=64,
        hidden_sizes=(32,),
    )
    train(made, tmp_path / "line.h5", tmp_path / "il")
    model = ImitationModel.load(tmp_path / "il")
    actions = model.sample(torch.from_numpy(obs[:-1, None]), torch.zeros(40, 1, 2))
    assert (actions[:, 0] - torch.from_numpy(intended)).abs().mean() < 0.03
    assert model.settings.action_unit is None  # neither stored nor known from an env


@pytest.mark.slow
def test_trainer__saves_the_averaged_weights(demos: Path, tmp_path: Path) -> None:
    made = Trainer(cfg(val_share=0.0), demos, RunFolder(tmp_path / "il"))
    made.folder.start({})
    made.learn()
    made.folder.close()
    saved = ImitationModel.load(tmp_path / "il").network.state_dict()
    assert all(torch.equal(saved[name], weights) for name, weights in made.ema.weights.items())
    assert any(not torch.equal(saved[name], p) for name, p in made.network.named_parameters())


def test_n_episodes__uses_the_first_demonstrations_only(demos: Path, tmp_path: Path) -> None:
    made = Trainer(cfg(n_episodes=2, val_share=0.5), demos, RunFolder(tmp_path))
    assert (len(made.windows), made.episodes) == (6, {"train": 1, "val": 1})


def test_trainer__statistics_use_training_episodes_only(demos: Path, tmp_path: Path) -> None:
    made = Trainer(cfg(), demos, RunFolder(tmp_path))
    assert made.windows.obs.mean(0).abs().max() < 1e-4
    assert made.windows.actions.abs().max() == pytest.approx(1.0)
    assert made.val_windows is not None
    assert made.val_windows.obs.mean(0).abs().max() > 1e-2


def test_trainer__validation_is_deterministic(demos: Path, tmp_path: Path) -> None:
    made = Trainer(cfg(), demos, RunFolder(tmp_path))
    assert made.val_windows is not None
    state = made.generator.get_state()
    assert made._validate(made.val_windows) == made._validate(made.val_windows)
    assert torch.equal(made.generator.get_state(), state)


@pytest.mark.slow
def test_amp__losses_are_close_to_float32(demos: Path, tmp_path: Path) -> None:
    losses = []
    for amp in (False, True):
        train(cfg(amp=amp), demos, tmp_path / str(amp))
        losses.append(
            [
                row["train/loss"]
                for row in read_metrics(tmp_path / str(amp) / "metrics.jsonl")
                if "train/loss" in row
            ]
        )
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_compile__is_passed_to_compiled(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(trainer, "compiled", lambda function, enabled: calls.append(enabled) or function)
    Trainer(cfg(compile=True), demos, RunFolder(tmp_path))
    assert calls == [True]


@pytest.mark.gpu
@pytest.mark.slow
def test_train__runs_on_a_gpu(demos: Path, tmp_path: Path) -> None:
    summary = train(cfg(device="cuda", amp=True, compile=True, eval_freq=6), demos, tmp_path / "il")
    assert summary["finished"]
    assert ImitationModel.load(tmp_path / "il").step in (6, 12)


# --- which model is the best --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "better"),
    [
        ((0.5, 0.1), (0.6, 0.2), True),
        ((0.5, 0.1), (0.5, 0.05), True),
        ((0.5, 0.1), (0.5, 0.2), False),
        ((0.5, 0.1), (0.4, 0.05), False),
        ((0.5, None), (0.5, None), True),  # the later model
        ((0.0, 0.1), (None, 0.01), False),  # not evaluated
    ],
)
def test_trainer__best_model_has_highest_success_then_lowest_validation_loss(
    then: Any, now: Any, better: bool, demos: Path, tmp_path: Path
) -> None:
    made = Trainer(cfg(eval_freq=6), demos, RunFolder(tmp_path))
    made.progress = Progress(6, *then, has_best=True)
    assert made._better(*now) == better
    made.close()


def test_trainer__best_model_has_lowest_validation_loss_without_evaluation(
    demos: Path, tmp_path: Path
) -> None:
    made = Trainer(cfg(), demos, RunFolder(tmp_path))
    assert made._better(None, 3.0)
    made.progress = Progress(6, None, 0.1, has_best=True)
    assert made._better(None, 0.05)
    assert not made._better(None, 0.2)


def test_success_evaluation_affordable__keeps_to_its_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [100.0]
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    task_cfg = dataclasses.replace(TASKS.get("so101-paper").default_config(), max_episode_steps=5)
    demos = SimpleNamespace(task_id="so101-paper", task_cfg=task_cfg)
    made = SuccessEvaluation(demos, episodes=1, num_threads=1, share=0.2)
    assert made.affordable(0)  # the duration of an evaluation is unknown
    clock[0] = 110.0
    made._last = made.spent = 5.0  # one evaluation took 5 of 10 s
    assert not made.affordable(10)
    clock[0] = 144.0  # (5 + 5) / (44 + 5) > 0.2
    assert not made.affordable(20)
    assert [record.getMessage() for record in caplog.records] == [
        "evaluation at step 10 skipped, and later ones may be: each takes 5 s, and --eval-share limits them"
        " to 20 % of the time"
    ]
    clock[0] = 146.0
    assert made.affordable(30)
    made.close()


@pytest.mark.slow
def test_trainer__always_runs_the_last_evaluation(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SuccessEvaluation, "affordable", lambda self, step: False)
    train(cfg(eval_freq=3), demos, tmp_path / "il")
    rows = read_metrics(tmp_path / "il" / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/success_rate" in row] == [12]
    assert [row["step"] for row in rows if "val/loss" in row] == [3, 6, 9, 12]


# --- stopping and resuming ----------------------------------------------------------------------------------


def stopping_at(step: int, number: int = signal.SIGTERM) -> Any:
    """A `Trainer._step` that sends the process a signal in step `step`."""
    original = Trainer._step

    def step_and_stop(self: Trainer) -> None:
        original(self)
        if self.progress.step == step:
            os.kill(os.getpid(), number)

    return step_and_stop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "step"),
    [("bc", 7), *slow(("flow", 7), ("flow", 10), ("diffusion", 10))],
)
def test_train__stopped_and_resumed_equals_uninterrupted(
    algo: str, step: int, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = cfg(algo, eval_freq=6, eval_share=1.0)
    train(settings, demos, tmp_path / "once")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping_at(step))
        stopped = train(settings, demos, tmp_path / "twice")
    assert (stopped["finished"], stopped["signal"], stopped["steps"]) == (False, signal.SIGTERM, step)
    assert not (tmp_path / "twice" / "training_summary.json").exists()
    assert ImitationModel.load(tmp_path / "twice" / LAST_FILE).step == step
    assert train(settings, demos, tmp_path / "twice", resume=True)["finished"]
    for name in (MODEL_FILE, LAST_FILE, "checkpoints/step_000000012.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "once" / name).read_bytes(), name
    assert tiny_runs.metric_rows(tmp_path / "twice") == tiny_runs.metric_rows(tmp_path / "once")


@pytest.mark.slow
def test_imitate__ctrl_c_saves_and_prints_the_command_to_resume(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "il"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping_at(3, signal.SIGINT))
        assert imitate(demos, out) == 130
    assert (
        f"Stopped after 3 steps, saved. Resume with: residual-rl imitate --resume {out}"
        in capsys.readouterr().out
    )
    assert ImitationModel.load(out).step == 3  # there is no better model yet
    assert main(["imitate", str(demos), "--out", str(out), "--resume", "--total-steps", "14"]) == 0
    summary = json.loads((out / "training_summary.json").read_text())
    assert summary["steps"] == 14
    assert json.loads((out / "config.json").read_text())["total_steps"] == 14
    assert ImitateCfg().channels != (8, 16)
    # Resuming keeps the settings of the run instead of the defaults.
    assert ImitationModel.load(out).settings.network["channels"] == [8, 16]


@pytest.mark.slow
def test_imitate__resume_without_checkpoint_starts_from_the_beginning(demos: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "il").start({"demos": str(demos), **cfg().to_dict()}):
        pass
    assert imitate(demos, tmp_path / "il", "--resume") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "16"], "batch_size is 8 in the resumed training, not 16"),
        (["--n-episodes", "3"], "n_episodes is None in the resumed training, not 3"),
    ],
)
def test_imitate__resume_refuses_other_settings(
    flags: list[str], message: str, demos: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    imitate(demos, tmp_path / "il")
    assert message in fails("imitate", str(demos), "--out", str(tmp_path / "il"), "--resume", *flags)


@pytest.mark.slow
def test_imitate__resume_refuses_other_demonstrations(
    demos: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    imitate(demos, tmp_path / "il")
    others = il_case.write_demos(tmp_path / "others.h5", steps=5)
    message = fails("imitate", str(others), "--out", str(tmp_path / "il"), "--resume")
    assert "was trained on different demonstrations" in message


def test_train__nonfinite_gradients_are_never_saved(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._loss
    monkeypatch.setattr(
        Trainer,
        "_loss",
        lambda self, *args: original(self, *args) * (torch.nan if self.progress.step == 6 else 1.0),
    )
    with pytest.raises(NonFiniteError, match=r"the gradient of .* is not finite"):
        train(cfg(), demos, tmp_path / "il")
    assert sorted(p.name for p in (tmp_path / "il" / "checkpoints").iterdir()) == [
        "step_000000005.safetensors"
    ]


# --- errors before training ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n-episodes", "9"], "n_episodes is 9, but"),
        (["--obs-keys", "tray"], "unknown observation of"),
        (["--algo", "gan"], "unknown algorithm 'gan'; known: act, bc, diffusion, flow"),
        (["--preset", "huge"], "unknown preset 'huge'; known: cpu, full, small, tiny"),
        (["--num-action-steps", "9"], "num_action_steps must be at most chunk_size (8), not 9"),
        (
            ["--chunk-size", "9"],
            "chunk_size, with num_past_actions, must be a multiple of 2 with 2 levels of channels, not 9",
        ),
        (
            ["--algo", "diffusion", "--sampling-steps", "101"],
            "sampling_steps must be at most diffusion_steps (100), not 101",
        ),
        (["--device", "cuda:77"], "device 'cuda:77' cannot be used"),
    ],
)
def test_imitate__invalid_setting_creates_no_folder(
    flags: list[str], message: str, demos: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    assert message in fails("imitate", str(demos), "--out", str(tmp_path / "il"), *FLAGS, *flags)
    assert not (tmp_path / "il").exists()


def test_imitate__names_a_file_without_demonstrations(tmp_path: Path, fails: tiny_runs.Fails) -> None:
    file = tmp_path / "demos.h5"
    file.write_bytes(b"something else")
    assert f"{file} is not an HDF5 file" in fails("imitate", str(file), "--out", str(tmp_path / "il"))
    assert f"{tmp_path / 'none.h5'} does not exist" in fails("imitate", str(tmp_path / "none.h5"))
    assert "put it first, residual-rl imitate DEMOS" in fails("imitate", "--algo", "bc")


def test_imitate__refuses_a_folder_that_is_in_use(
    demos: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty; choose another --output-dir, or resume it" in fails(
        "imitate", str(demos), "--out", str(tmp_path)
    )
    assert "contains no training to resume" in fails(
        "imitate", str(demos), "--out", str(tmp_path), "--resume"
    )
    (tmp_path / "config.json").write_text("{}")
    assert "is not the configuration of an imitation training" in fails(
        "imitate", str(demos), "--out", str(tmp_path), "--resume"
    )
    assert "--resume needs the folder" in fails("imitate", str(demos), "--resume")


@pytest.mark.slow
def test_success_evaluation__refuses_an_unknown_task(tmp_path: Path) -> None:
    ends = np.array([False, True])
    info = describe(
        "PickCube-v1", {}, max_episode_steps=2, control_hz=20.0, source_type="rl", source_desc="x"
    )
    with DemoWriter(tmp_path / "d.h5", info) as writer:
        obs = {"state": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
        writer.add(Demo(actions=np.zeros((2, 2), np.float32), obs=obs, terminated=ends, truncated=ends))
    with pytest.raises(
        ConfigError, match=r"cannot be simulated here: .*unknown task 'PickCube-v1'.*--eval-freq 0"
    ):
        Trainer(cfg(eval_freq=6), tmp_path / "d.h5", RunFolder(tmp_path / "il"))
    train(cfg(val_share=0.1), tmp_path / "d.h5", tmp_path / "il")
    assert ImitationModel.load(tmp_path / "il").settings.task_id == "PickCube-v1"


def test_success_evaluation_check__refuses_demonstrations_that_do_not_fit_the_task(
    demos: Path, tmp_path: Path
) -> None:
    made = Trainer(cfg(eval_freq=6), demos, RunFolder(tmp_path))
    assert made.evaluation is not None
    policy = ILPolicy(ILCfg(), il_case.model(obs_shapes={"state": (31,)}), torch.device("cpu"))
    with pytest.raises(
        ConfigError, match=r"the policy in training needs 'state' of shape \(31,\); the env gives \(25,\)"
    ):
        made.evaluation.check(policy, 6)
    seven = il_case.model(action_dim=7, action_unit=(0.02,) * 7)
    with pytest.raises(ConfigError, match="actions have size 7, but those of their task have size 6"):
        made.evaluation.check(ILPolicy(ILCfg(), seven, torch.device("cpu")), 7)
    made.close()


def test_imitate_cfg_default__depends_on_algorithm_and_device() -> None:
    assert ImitateCfg.default("flow").preset == "cpu"
    assert ImitateCfg.default("flow", device="cuda").batch_size == 1024
    diffusion = ImitateCfg.default("diffusion", "full")
    assert (
        diffusion.num_obs_steps,
        diffusion.chunk_size,
        diffusion.num_action_steps,
        diffusion.sampling_steps,
    ) == (2, 16, 8, 10)
    assert ImitateCfg.default("flow").sampling_steps == 2
    bc = ImitateCfg.default("bc")
    assert (bc.num_obs_steps, bc.chunk_size) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["bc", "flow"])
def test_train__supports_any_task_with_vector_observations(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS._specs, "point", fakes.POINT_TASK)
    env = fakes.PointEnv(fakes.PointCfg(), 3)
    obs, _ = env.reset(seed=1)
    seen, actions = [obs["position"]], []
    for _ in range(5):
        actions.append((-5.0 * seen[-1]).clamp(-1, 1))
        obs, *_ = env.step(actions[-1])
        seen.append(obs["position"])
    ends = np.arange(5) == 4
    info = describe(
        "point", {}, max_episode_steps=10, control_hz=10.0, source_type="controller", source_desc="x"
    )
    with DemoWriter(tmp_path / "d.h5", info) as writer:
        for i in range(3):
            data = {"position": torch.stack(seen, 1)[i].numpy()}
            writer.add(
                Demo(actions=torch.stack(actions, 1)[i].numpy(), obs=data, terminated=ends, truncated=ends)
            )
    summary = train(cfg(algo, obs_keys=("position",), eval_freq=12), tmp_path / "d.h5", tmp_path / "il")
    assert 0.0 <= summary["best_success_rate"] <= 1.0
    assert ImitationModel.load(tmp_path / "il").settings.action_unit_name == "m"
