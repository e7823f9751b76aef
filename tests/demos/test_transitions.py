"""Demonstrations as transitions with residuals on a base policy: by hand, against the env, and errors."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from chunky import CHUNKY
from demo_files import INFO, write
from tiny_runs import Fails, config, different, metric_rows, train
from torch import Tensor

from residual_rl.cli.main import main
from residual_rl.config import ResidualCfg, RunCfg, TrainCfg
from residual_rl.demos import transitions as demo_transitions
from residual_rl.demos.collect import run_episodes
from residual_rl.demos.episode import Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.transitions import load_demonstrations
from residual_rl.errors import ConfigError
from residual_rl.factory import make_learner, make_residual_env
from residual_rl.learners.off_policy.config import SACCfg
from residual_rl.registry import BASE_POLICIES, TASKS, load
from residual_rl.residual_env import ResidualEnv
from residual_rl.runs.checkpoint import from_bytes, to_bytes
from residual_rl.types import Obs, Transition


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, spec in ((TASKS, fakes.POINT_TASK), (BASE_POLICIES, fakes.HOMING), (BASE_POLICIES, CHUNKY)):
        registry.all()
        monkeypatch.setattr(registry, "_specs", {**registry._specs, spec.id: spec})


def point_cfg(
    base_policy: str = "homing", demos: Path | str = "x", chunk: Any = "step", **learner: Any
) -> TrainCfg:
    sac = SACCfg(
        **{
            "hidden_sizes": (8,),
            "batch_size": 8,
            "demos": str(demos),
            "demo_share": 0.5,
            "reward_scale": 1.0,
            **learner,
        }
    )
    residual = ResidualCfg(residual_scale=0.5, residual_penalty=0.1, chunk=chunk)
    return TrainCfg(
        "point",
        base_policy,
        fakes.PointCfg(6),
        None,
        sac,
        residual,
        RunCfg(num_envs=3, torch_threads=1),
        "sac",
    )


def demo(positions: list[tuple[float, float]], actions: list[tuple[float, float]], **fields: Any) -> Demo:
    steps, position = len(actions), np.array(positions, np.float32)
    state = np.concatenate([position, np.zeros((steps + 1, 3), np.float32)], 1)
    flags = {
        "terminated": np.zeros(steps, bool),
        "truncated": np.zeros(steps, bool),
        "success": np.zeros(steps, bool),
    }
    rewards = np.arange(1, steps + 1, dtype=np.float32)
    return Demo(
        **{
            "actions": np.array(actions, np.float32),
            "obs": {"state": state, "position": position},
            "rewards": rewards,
            **flags,
            **fields,
        }
    )


def demonstrated(path: Path, cfg: TrainCfg) -> list[Transition]:
    env = make_residual_env(cfg, cfg.run.num_envs)
    with Demonstrations.open(path) as demos:
        return list(demo_transitions.episodes(demos, cfg, env))


def test_episodes__match_values_worked_out_by_hand(tmp_path: Path) -> None:
    """Homing outputs -10 times the position, clipped; a residual of 1 is 0.5."""
    ends = np.array([False, True, False])  # steps after the first end are dropped
    positions = [(0.05, 0.02), (0.2, -0.3), (0.01, 0.0), (0.0, 0.0)]
    long = demo(positions, [(-0.4, 0.2), (-1.5, 0.1), (0.0, 0.0)], terminated=ends)
    path = write(tmp_path / "d.h5", [long, demo([(0.0, 0.0), (0.03, 0.0)], [(0.25, 0.0)])])
    first, second = demonstrated(path, point_cfg())
    assert first.base_action.tolist() == [pytest.approx([-0.5, -0.2]), [-1.0, 1.0]]
    assert first.next_obs["base_action"].tolist() == [[-1.0, 1.0], pytest.approx([-0.1, 0.0])]
    # Actions are clipped to the action space.
    assert first.action.tolist() == [pytest.approx([-0.4, 0.2]), pytest.approx([-1.0, 0.1])]
    # Residuals are clipped; the last element would be -1.8.
    assert first.residual_action.tolist() == [pytest.approx([0.2, 0.8]), [0.0, -1.0]]
    # Rewards minus the penalty 0.1 · |0.5 · residual|².
    assert first.reward.tolist() == pytest.approx([1 - 0.1 * 0.25 * (0.04 + 0.64), 2 - 0.1 * 0.25])
    assert (first.terminated.tolist(), first.truncated.tolist()) == ([False, True], [False, False])
    assert (first.effective_scale, first.next_effective_scale) == (0.5, 0.5)
    assert first.next_obs["state"][:, :2].tolist() == [pytest.approx([0.2, -0.3]), pytest.approx([0.01, 0.0])]
    assert second.residual_action.tolist() == [[0.5, 0.0]]
    assert (second.terminated.tolist(), second.truncated.tolist()) == (
        [False],
        [True],
    )  # truncated at the last step


def wave(obs: Obs) -> Tensor:
    return torch.stack([obs["state"][:, 3] / 20, 0.5 * obs["position"][:, 0]], 1).clamp(-1, 1)


def collected(cfg: TrainCfg, path: Path) -> Path:
    env = make_residual_env(dataclasses.replace(cfg, residual=ResidualCfg(residual_scale=0.5)), 4)
    return write(path, list(run_episodes(env, wave, range(100, 107))))


@pytest.mark.parametrize(
    ("base_policy", "chunk"), [("homing", "step"), ("chunky", "step"), ("chunky", "whole")]
)
def test_episodes__match_the_transitions_of_the_env(tmp_path: Path, base_policy: str, chunk: str) -> None:
    """With the computed residuals, the env returns the same transitions, including the base policy's chunks
    and history."""
    path = collected(point_cfg(base_policy), tmp_path / "d.h5")
    cfg = point_cfg(base_policy, chunk=chunk)
    for i, episode in enumerate(demonstrated(path, cfg)):
        env = make_residual_env(cfg, 1)
        env.reset(seed=[100 + i])
        assert len(episode.reward) == (6 if chunk == "step" else 2) or episode.terminated[-1]
        for t in range(len(episode.reward)):
            found, _ = env.step(episode.residual_action[t : t + 1])
            for name in ("base_action", "action", "residual_action", "reward", "terminated", "truncated"):
                torch.testing.assert_close(
                    getattr(found, name)[0],
                    getattr(episode, name)[t],
                    rtol=1e-4,
                    atol=1e-5,
                    msg=f"{i} {t} {name}",
                )
            for name in ("state", "base_action"):
                for mine, its in ((episode.obs, found.obs), (episode.next_obs, found.next_obs)):
                    torch.testing.assert_close(
                        mine[name][t], its[name][0], rtol=1e-4, atol=1e-5, msg=f"{i} {t} {name}"
                    )
            assert found.effective_scale == episode.effective_scale


@pytest.mark.parametrize("critic_input", ["sum", "res"])
def test_critic_input__selects_the_executed_action_or_the_clipped_residual(
    tmp_path: Path, critic_input: Any
) -> None:
    shown = demo([(0.2, -0.3), (0.0, 0.0)], [(-0.9, 0.1)], success=np.ones(1, bool))
    path = write(tmp_path / "d.h5", [shown])
    cfg = point_cfg(demos=path, critic_input=critic_input)
    env = make_residual_env(cfg, 3)
    learner: Any = make_learner(cfg, env)
    load_demonstrations(cfg, learner, env)
    env.reset(seed=0)
    learner.observe(env.step(learner.act(env.obs))[0])
    critic_action = learner._sample(1)[2][0]
    assert critic_action.shape == (8, 2)
    assert (
        critic_action[4:].tolist()
        == [pytest.approx([-0.9, 0.1] if critic_input == "sum" else [0.2, -1.0])] * 4
    )


def test_episodes__warn_of_clipped_residuals_and_other_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "d.h5", [demo([(0.2, -0.3), (0.0, 0.0)], [(0.9, 0.1)])])
    with caplog.at_level(logging.WARNING):
        demonstrated(path, dataclasses.replace(point_cfg(), task=fakes.PointCfg(9)))
    assert "was collected with other settings of the task: max_episode_steps 6 (here 9)" in caplog.text
    assert "100 % of the actions in" in caplog.text
    assert "need a larger residual on top of base policy 'homing'" in caplog.text


def with_info(**env_info: Any) -> dict[str, Any]:
    return {**INFO, "env_info": {**INFO["env_info"], **env_info}}


A_DEMO: dict[str, Any] = {"positions": [(0.0, 0.0)] * 2, "actions": [(0.0, 0.0)]}
OTHER_SIZE = {"actions": np.zeros((1, 7), np.float32), "intended_actions": np.zeros((1, 7), np.float32)}


STATE, POSITION = {"state": np.zeros((2, 5), np.float32)}, {"position": np.zeros((2, 2), np.float32)}
MISFITS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {},
        with_info(env_id="push"),
        "has demonstrations of task 'push', but this run trains on 'point': collect them with",
    ),
    (OTHER_SIZE, INFO, "has actions of size 7, but those of task 'point' have size 2"),
    (
        {"obs": STATE},
        INFO,
        "lacks the observation 'position', which base policy 'homing' needs; it has state",
    ),
    ({"obs": POSITION}, INFO, "lacks the observation 'state', which learner 'sac' needs; it has position"),
    (
        {"obs": {"state": np.zeros((2, 9)), **POSITION}},
        INFO,
        r"has 'state' of shape \[9\], but task 'point' observes \[5\]",
    ),
    ({"rewards": None}, INFO, "has no rewards, which --demos needs"),
]


@pytest.mark.parametrize(("fields", "info", "message"), MISFITS)
def test_episodes__name_mismatches_with_both_values(
    tmp_path: Path, fields: dict[str, Any], info: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "d.h5", [dataclasses.replace(demo(**A_DEMO), **fields)], info)
    with pytest.raises(ConfigError, match=f"{path.name} {message}"):
        demonstrated(path, point_cfg())


def test_demo_share__needs_demos_and_demos_need_a_share() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"demos has no effect: demo_share 0\.0 of a batch of 256 is nothing; set --demo-share 0\.25, or"
            r" 0\.5"
        ),
    ):
        SACCfg(demos="x")
    cfg = point_cfg()
    cfg = dataclasses.replace(cfg, learner=dataclasses.replace(cfg.learner, demos=None))
    env: Any = ResidualEnv
    with pytest.raises(
        ConfigError, match=r"demo_share 0\.5 needs demonstrations: set their file with --demos"
    ):
        load_demonstrations(cfg, env, env)


# --- whole runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def so101_demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "paper.h5"
    flags = [
        "--policy",
        "jacobian",
        "--n-episodes",
        "2",
        "--max-episode-steps",
        "200",
        "--tolerance",
        "0.08",
        "--success-hold-steps",
        "5",
    ]
    assert main(["demos", "collect", "so101-paper", *flags, "--out", str(path)]) == 0
    return path


@pytest.mark.slow
def test_demos__run_resumes_bit_exactly_without_the_file(tmp_path: Path, so101_demos: Path) -> None:
    gone = tmp_path / "gone.h5"
    settings: dict[str, Any] = {"learner": "sac", "demo_share": 0.5, "total_timesteps": 96}
    whole = train(tmp_path / "whole", demos=str(so101_demos), **settings)
    gone.write_bytes(so101_demos.read_bytes())
    train(tmp_path / "pieces", stop_at=72, demos=str(gone), **settings)
    gone.unlink()
    pieces = train(tmp_path / "pieces", resume=True, demos=str(gone), **settings)
    states = [
        from_bytes(to_bytes(runner.state_dict(), "checkpoint"), "checkpoint") for runner in (whole, pieces)
    ]
    assert different(*states) == []
    assert metric_rows(tmp_path / "whole") == metric_rows(tmp_path / "pieces")
    demonstrated = states[0]["learner"]["demonstrations"]["segments"]["000000"]["columns"]
    assert len(demonstrated["reward"]) > 20
    assert demonstrated["residual_action"].abs().max() < 1e-3  # the base policy itself demonstrated
    assert (tmp_path / "whole" / "replay" / "demonstrations_000000.safetensors").is_file()


def test_demos__file_of_another_task_creates_no_run_folder(
    tmp_path: Path, so101_demos: Path, fails: Fails
) -> None:
    flags = [
        "--learner",
        "sac",
        "--demos",
        str(so101_demos),
        "--demo-share",
        "0.25",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    message = fails("train", "so101-paper-precise", *flags, "--num-envs", "2", "--eval-episodes", "1")
    assert "has demonstrations of task 'so101-paper', but this run trains on 'so101-paper-precise'" in message
    assert not (tmp_path / "run").exists()
    assert config(learner="sac").learner.demos is None


@pytest.mark.parametrize("task_id", ["so101-paper", "so101-paper-precise", "maniskill"])
def test_demo_settings__are_settings_of_the_task(task_id: str) -> None:
    spec = TASKS.get(task_id)
    assert spec.demo_settings
    assert set(spec.demo_settings) <= {field.name for field in dataclasses.fields(load(spec.config))}


OTHERS = [
    (("--reward-mode", "sparse"), "reward_mode 'dense' (here 'sparse')"),
    (("--control-mode", "joint_target"), "control_mode 'joint_delta' (here 'joint_target')"),
    (("--tolerance", "0.03"), "tolerance 0.08 (here 0.03)"),
]


@pytest.mark.parametrize(("flags", "difference"), OTHERS, ids=[flags[0] for flags, _ in OTHERS])
def test_demo_settings__refuse_other_rewards_actions_and_goals(
    flags: tuple[str, ...], difference: str, tmp_path: Path, so101_demos: Path, fails: Fails
) -> None:
    """For example, dense rewards in a buffer of sparse ones would make critics expect too much."""
    run = [
        "--demos",
        str(so101_demos),
        "--demo-share",
        "0.25",
        "--output-dir",
        str(tmp_path / "run"),
        "--num-envs",
        "2",
    ]
    message = fails("train", "so101-paper", "--learner", "sac", *run, "--eval-episodes", "1", *flags)
    assert (
        "paper.h5 was collected with other settings of the task than this run's, which would mislead"
        in message
    )
    assert difference in message
    assert not (tmp_path / "run").exists()
