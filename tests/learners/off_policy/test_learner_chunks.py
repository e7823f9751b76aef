"""SAC and TD3 with one decision per chunk: rewards are summed over its steps, discounts are per decision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from chunky import CHUNKY
from tiny_runs import different, metric_rows
from torch import Tensor

from residual_rl.chunk_residual_env import ChunkResidualEnv
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.envs.vec_env import VecEnv
from residual_rl.factory import make_learner, make_residual_env
from residual_rl.registry import BASE_POLICIES, TASKS, BasePolicySpec
from residual_rl.runner import Runner
from residual_rl.runs.run_folder import RunFolder
from residual_rl.types import BasePolicy, Obs

SETTINGS: dict[str, Any] = {
    "chunk": "whole",
    "num_envs": 4,
    "num_steps": 2,
    "batch_size": 8,
    "hidden_sizes": (8,),
    "utd": 0.25,
    "learning_starts": 16,
    "warmup_steps": 24,
    "actor_starts": 24,
    "buffer_size": 4096,
    "eval_episodes": 2,
    "eval_freq": 120,
    "save_freq": 120,
    "log_freq": 48,
    "num_threads": 1,
}
"""24 env steps per iteration: 4 envs, 2 decisions, 3 steps each."""


class Pusher(BasePolicy):
    """Pushes to the left, in chunks of three steps."""

    inputs = {"position": (2,)}  # noqa: RUF012
    chunk_size = num_action_steps = 3

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        return torch.tensor([-1.0, 0.0]).expand(len(env_ids), 3, 2)


def make_pusher(cfg: None, env: VecEnv) -> Pusher:
    return Pusher()


PUSHER = BasePolicySpec(id="pusher", summary="pushes to the left", make=f"{__name__}:make_pusher")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, spec in ((TASKS, fakes.POINT_TASK), (BASE_POLICIES, CHUNKY), (BASE_POLICIES, PUSHER)):
        registry.all()  # type: ignore[attr-defined]
        monkeypatch.setattr(registry, "_specs", {**registry._specs, spec.id: spec})  # type: ignore[attr-defined]


def config(base_policy: str, learner: str, **settings: Any) -> TrainCfg:
    return replace_fields(TrainCfg.default("point", base_policy, learner), {**SETTINGS, **settings})


@pytest.mark.parametrize("learner_id", ["sac", "td3"])
def test_off_policy_learner__stores_chunk_decisions_worked_out_by_hand(learner_id: str) -> None:
    """Three decisions from 0.8 m, in steps of 0.1 m: to 0.7, 0.6, 0.5 (reward -1.8), to 0.4, 0.3, 0.2 (-0.9),
    and to 0.1 m, which is a success (5 - 0.1)."""
    settings = {"num_envs": 1, "residual_scale": 0.0, "gamma": 0.9, "reward_scale": 0.5, "reward_shift": -1.0}
    cfg = config("pusher", learner_id, **settings)
    env = make_residual_env(cfg, 1)
    learner: Any = make_learner(cfg, env)
    env.reset(seed=0)
    env.vec_env._position, env.vec_env._wind = torch.tensor([[0.8, 0.0]]), torch.zeros(1)  # type: ignore[attr-defined]
    for _ in range(3):
        learner.observe(env.step(learner.act(env.obs))[0])
    buffer = learner.buffer
    columns = {
        name: buffer.newest(name, 3)[:, 0]
        for name in ("reward", "terminated", "truncated", "action", "base_action")
    }
    assert columns["reward"].tolist() == pytest.approx(
        [0.5 * (-1.8 - 1.0), 0.5 * (-0.9 - 1.0), 0.5 * (4.9 - 1.0)], abs=1e-5
    )
    assert columns["terminated"].tolist() == [False, False, True]
    assert not columns["truncated"].any()
    assert columns["action"].tolist() == [[-1.0, 0.0] * 3, [-1.0, 0.0] * 3, [-1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    assert columns["base_action"].tolist() == [[-1.0, 0.0] * 3] * 3

    two = buffer.gather(torch.tensor([0, 1]), 2, cfg.learner.gamma, "truncated")
    assert two.n_step_return.tolist() == pytest.approx([-1.4 + 0.9 * -0.95, -0.95 + 0.9 * 1.95], abs=1e-5)
    # 0.9 for each decision, not for each of its three steps
    assert two.discount.tolist() == pytest.approx([0.81, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("learner_id", ["sac", "td3"])
def test_off_policy_learner__sums_rewards_over_chunks_and_resumes_bit_for_bit(
    tmp_path: Path, learner_id: str
) -> None:
    sums: list[Tensor] = []

    def train(path: Path, total: int, resume: bool = False, rewards: list[Tensor] | None = None) -> Runner:
        cfg, folder = config("chunky", learner_id, total_timesteps=total), RunFolder(path)
        with folder.resume() if resume else folder.start(cfg.to_dict()):
            runner = Runner(cfg, folder, resume)
            assert isinstance(runner.env, ChunkResidualEnv)
            steps = runner.env.steps

            def recorded(residual_action: Tensor) -> Iterator[Any]:
                total = torch.zeros(4)
                for transition, info in steps(residual_action):
                    total = total + transition.reward
                    yield transition, info
                assert rewards is not None
                rewards.append(total)

            if rewards is not None:
                runner.env.steps = recorded  # type: ignore[method-assign]
            assert runner.learn()["steps"] == total
        return runner

    whole = train(tmp_path / "whole", 240, rewards=sums)
    learner: Any = whole.learner
    assert learner.env_steps == 80  # decisions of 240 env steps
    assert learner.num_updates == 18  # 0.25 for each of the 8 decisions of iterations 2 to 10
    assert learner.buffer.newest("action", 1).shape == (1, 4, 6)
    torch.testing.assert_close(
        learner.buffer.newest("reward", 20), 0.2 * torch.stack(sums), rtol=1e-6, atol=1e-7
    )

    train(tmp_path / "pieces", 120)
    pieces = train(tmp_path / "pieces", 240, resume=True)
    states = [runner.state_dict() for runner in (whole, pieces)]
    assert different(*states) == []
    assert metric_rows(tmp_path / "whole") == metric_rows(tmp_path / "pieces")
