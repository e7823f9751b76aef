"""Evaluation: each seed once for any number of envs, and metrics in the order of the seeds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.envs.vec_env import EpisodeSeeds, VecEnv
from residual_rl.evaluation import compare
from residual_rl.evaluation.evaluate import Episodes, evaluate, no_residual
from residual_rl.factory import make_residual_env
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import BasePolicy, Obs, State, Transition
from residual_rl.utils import statistics

SCALE, PENALTY = 0.5, 1.0


class CountingEnv(VecEnv):
    """Episodes of `1 + seed % 4` steps with reward `seed`; even seeds terminate, odd ones are truncated.

    The observation is the number of steps in the episode. Seeds and actions are recorded.
    """

    def __init__(self, num_envs: int):
        self.num_envs, self.device, self.max_episode_steps, self.control_hz = (
            num_envs,
            torch.device("cpu"),
            4,
            10.0,
        )
        self.single_observation_space = spaces.Dict({"state": spaces.Box(0.0, 10.0, (1,), np.float32)})
        self.single_action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_unit = torch.ones(2)
        self.episode_seeds = EpisodeSeeds()
        self.started: list[int] = []
        self.actions: dict[int, list[list[float]]] = {}
        self._seed = torch.full((num_envs,), -1)
        self._step = torch.zeros(num_envs, dtype=torch.int64)

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        mask: Tensor | None = None,
        options: dict[str, Any] | None = None,
    ) -> Any:
        assert seed is None
        assert mask is None
        self._start(torch.arange(self.num_envs))
        return self.observations(), {}

    def _start(self, env_ids: Tensor) -> None:
        seeds = self.episode_seeds.draw(len(env_ids))
        self.started += [seed for seed in seeds.tolist() if seed >= 0]
        self._seed = self._seed.index_copy(0, env_ids, seeds)
        self._step = self._step.index_fill(0, env_ids, 0)

    def observations(self) -> Obs:
        return {"state": self._step[:, None].float()}

    def step(self, actions: Tensor) -> Any:
        active = self._seed >= 0
        for env_id in active.nonzero().flatten().tolist():
            self.actions.setdefault(int(self._seed[env_id]), []).append(actions[env_id].tolist())
        self._step = self._step + active
        reward = torch.where(
            active, self._seed, 1000
        ).float()  # values of envs without an episode must be ignored
        ended = active & (self._step == 1 + self._seed % 4)
        terminated = ended & (self._seed % 2 == 0)
        metrics = {"distance": self._step / 10 + self._seed}
        final = {
            "seed": self._seed,
            "episode_return": reward * self._step,
            "episode_length": self._step,
            "success_once": self._seed % 3 == 0,
            "success_at_end": self._seed % 6 == 0,
            **metrics,
        }
        obs = self.observations()
        info = {"reward_terms": {}, "task_metrics": metrics, "final_obs": obs, "_final_obs": ended}
        info |= {"final_info": final, "_final_info": ended}
        if ended.any():
            self._start(ended.nonzero().flatten())
        return self.observations(), reward, terminated, ended & ~terminated, info

    def state_dict(self) -> State:
        raise NotImplementedError

    def load_state_dict(self, state: State) -> None:
        raise NotImplementedError


class Constant(BasePolicy):
    inputs = {"state": (1,)}  # noqa: RUF012

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        return torch.tensor([0.25, -0.5]).expand(len(env_ids), 1, 2)


def make(num_envs: int) -> tuple[ResidualEnv, CountingEnv]:
    env = CountingEnv(num_envs)
    return ResidualEnv(env, BasePolicyExecutor(Constant(), env), SCALE, PENALTY), env


def growing(obs: Obs) -> Tensor:
    """Residual (0.4 t, 0) in step t of the episode."""
    return torch.cat([0.4 * obs["state"], torch.zeros_like(obs["state"])], 1)


SEEDS = [7, 12, 3, 9, 4, 30, 1, 22, 5, 11]


@pytest.mark.parametrize("num_envs", [1, 2, 3, 7, 10, 25])
def test_evaluate__runs_each_seed_once_and_returns_metrics_in_the_order_of_the_seeds(num_envs: int) -> None:
    env, inner = make(num_envs)
    episodes = evaluate(env, growing, SEEDS)
    assert sorted(inner.started) == sorted(SEEDS)
    assert episodes["episode_length"].tolist() == [4, 1, 4, 2, 1, 3, 2, 3, 2, 4]
    assert episodes["success_once"].tolist() == [0, 1, 1, 1, 0, 1, 0, 0, 0, 0]
    assert episodes["success_at_end"].tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert episodes["distance"].tolist() == pytest.approx(
        [7.4, 12.1, 3.4, 9.2, 4.1, 30.3, 1.2, 22.3, 5.2, 11.4]
    )


@pytest.mark.parametrize("num_envs", [1, 4, 25])
def test_evaluate__return_magnitude_and_change_match_values_worked_out_by_hand(num_envs: int) -> None:
    """Scaled residuals 0, 0.2, 0.4, 0.6: actions 0.25, 0.45, 0.65, 0.85 and always -0.5."""
    env, inner = make(num_envs)
    episodes = evaluate(env, growing, SEEDS)
    rows = {
        seed: {name: float(values[i]) for name, values in episodes.items()} for i, seed in enumerate(SEEDS)
    }
    # seed 12: one step; no residual, no change, reward 12
    assert (rows[12]["return"], rows[12]["residual_magnitude"], rows[12]["action_change"]) == (12.0, 0.0, 0.0)
    # seed 9: two steps; penalty 0.2² = 0.04; mean size 0.1; one change of 0.2
    assert rows[9]["return"] == pytest.approx(18 - 0.04)
    assert rows[9]["residual_magnitude"] == pytest.approx(0.1)
    assert rows[9]["action_change"] == pytest.approx(0.2)
    # seed 30: three steps; penalty 0.04 + 0.16; mean size 0.2
    assert rows[30]["return"] == pytest.approx(90 - 0.2)
    assert rows[30]["residual_magnitude"] == pytest.approx(0.2)
    assert rows[30]["action_change"] == pytest.approx(0.2)
    # seed 7: four steps; penalty 0.04 + 0.16 + 0.36; mean size 0.3
    assert rows[7]["return"] == pytest.approx(28 - 0.56)
    assert rows[7]["residual_magnitude"] == pytest.approx(0.3)
    assert rows[7]["action_change"] == pytest.approx(0.2)
    assert inner.actions[7] == [
        pytest.approx(a) for a in ([0.25, -0.5], [0.45, -0.5], [0.65, -0.5], [0.85, -0.5])
    ]


def test_evaluate__magnitude_is_before_the_clip_and_change_is_of_executed_actions() -> None:
    """Residual (1, -1) · 0.5 in every second step: actions (0.25, -0.5), (0.75, -1), …; sizes 0, √0.5"""
    env, inner = make(1)

    def jumping(obs: Obs) -> Tensor:
        return torch.tensor([1.0, -1.0]) * (obs["state"] % 2)

    env.residual_scale = 1.0
    episodes = evaluate(env, jumping, [3])
    # 1.25 and -1.5 are clipped
    assert inner.actions[3] == [[0.25, -0.5], [1.0, -1.0], [0.25, -0.5], [1.0, -1.0]]
    assert float(episodes["residual_magnitude"][0]) == pytest.approx(2**0.5 / 2)
    assert float(episodes["action_change"][0]) == pytest.approx((0.75**2 + 0.5**2) ** 0.5)
    assert float(episodes["return"][0]) == pytest.approx(4 * 3 - 2 * 2.0)


def test_no_residual__executes_only_the_base_actions() -> None:
    env, inner = make(3)
    episodes = evaluate(env, no_residual(env), SEEDS)
    assert episodes["residual_magnitude"].tolist() == [0.0] * len(SEEDS)
    assert episodes["action_change"].tolist() == [0.0] * len(SEEDS)
    assert all(actions == [[0.25, -0.5]] * (1 + seed % 4) for seed, actions in inner.actions.items())
    assert episodes["return"].tolist() == [seed * (1 + seed % 4) for seed in SEEDS]


def test_evaluate__short_episodes_are_not_over_represented() -> None:
    """With 100 seeds of each length in 7 envs, the mean length is that of the seeds, 2.5."""
    env, _ = make(7)
    episodes = evaluate(env, growing, range(400))
    assert float(episodes["episode_length"].mean()) == 2.5


def test_evaluate__the_order_of_the_seeds_changes_only_the_order_of_the_metrics() -> None:
    shuffled = random.Random(1).sample(SEEDS, len(SEEDS))
    assert shuffled != SEEDS
    first, second = (evaluate(make(3)[0], growing, seeds) for seeds in (SEEDS, shuffled))
    for name in first:
        by_seed = dict(zip(shuffled, second[name].tolist(), strict=True))
        assert first[name].tolist() == [by_seed[seed] for seed in SEEDS]
    evaluations = [
        compare.summarize({"residual": e}, s, "t", {}, {}) for e, s in ((first, SEEDS), (second, shuffled))
    ]
    rows = [evaluation["policies"]["residual"] for evaluation in evaluations]
    for name in rows[0]:
        assert rows[0][name]["mean"] == pytest.approx(rows[1][name]["mean"], abs=1e-12)
        assert rows[0][name]["interval"] == pytest.approx(rows[1][name]["interval"], abs=1e-12)
        assert rows[0][name]["per_episode"] == rows[1][name]["per_episode"]


def test_evaluate__repeated_evaluation_gives_equal_results() -> None:
    env, _ = make(3)
    first, second = evaluate(env, growing, SEEDS), evaluate(env, growing, SEEDS)
    assert {name: values.tolist() for name, values in first.items()} == {
        name: values.tolist() for name, values in second.items()
    }


def test_evaluate__refuses_repeated_seeds() -> None:
    with pytest.raises(ValueError, match="distinct"):
        evaluate(make(2)[0], growing, [1, 2, 1])


def test_evaluate__calls_on_step_and_on_progress() -> None:
    env, _ = make(4)
    steps: list[Transition] = []
    progress: list[tuple[int, float]] = []
    evaluate(
        env,
        growing,
        SEEDS,
        on_step=lambda t, info: steps.append(t),
        on_progress=lambda n, rate: progress.append((n, rate)),
    )
    assert [n for n, _ in progress] == sorted({n for n, _ in progress})
    assert progress[-1] == (10, pytest.approx(0.4))
    assert all(t.action.shape == (4, 2) for t in steps)
    assert len(steps) == 8  # envs 0 to 3 run 7 22 · 12 4 30 · 3 5 · 9 1 11: 4+3, 1+1+3, 4+2 and 2+2+4 steps


# --- the content of eval.json ---


def episodes_of(success: Sequence[float], length: Sequence[float]) -> Episodes:
    return {"success_once": torch.tensor(success), "episode_length": torch.tensor(length)}


def test_summarize__intervals_and_paired_differences_match_values_worked_out_by_hand() -> None:
    residual = episodes_of([1.0, 1.0, 1.0, 0.0], [10.0, 12.0, 14.0, 20.0])
    base = episodes_of([1.0, 0.0, 0.0, 0.0], [11.0, 20.0, 20.0, 20.0])
    evaluation = compare.summarize(
        {"residual": residual, "base": base}, [5, 3, 8, 1], "t", {"n_episodes": 4}, {"x": "m"}
    )
    row = evaluation["policies"]["residual"]["success_once"]
    assert row["mean"] == 0.75
    assert row["per_episode"] == {"5": 1.0, "3": 1.0, "8": 1.0, "1": 0.0}
    # Wilson: centre (p + z²/2n) / (1 + z²/n), half width z √(p(1-p)/n + z²/4n²) / (1 + z²/n), z = 1.95996
    assert row["interval"] == pytest.approx([0.300642, 0.954413], abs=1e-6)
    lengths = evaluation["policies"]["residual"]["episode_length"]
    # mean 14, s = √((16 + 4 + 0 + 36) / 3) = 4.320494, t(3) = 3.182446: half width 6.874870
    assert lengths["mean"] == 14.0
    assert lengths["interval"] == pytest.approx([14 - 6.874870, 14 + 6.874870], abs=1e-5)
    paired = evaluation["paired"]["residual-base"]
    assert paired["success_once"]["mean"] == 0.5
    assert paired["episode_length"]["mean"] == pytest.approx((-1 - 8 - 6 + 0) / 4)
    expected = statistics.mean([-1.0, -8.0, -6.0, 0.0])
    assert paired["episode_length"]["interval"] == pytest.approx([expected.low, expected.high])
    assert evaluation["episode_seeds"] == [5, 3, 8, 1]
    assert evaluation["units"] == {"x": "m"}


def test_summarize__has_no_difference_without_both_policies() -> None:
    evaluation = compare.summarize({"base": episodes_of([1.0], [3.0])}, [1], "t", {}, {})
    assert evaluation["paired"] == {}
    assert evaluation["policies"]["base"]["episode_length"]["interval"] is None


# --- so101-paper ---


def test_evaluate__an_episode_of_so101_paper_does_not_depend_on_the_batch() -> None:
    cfg = TrainCfg.default("so101-paper")
    cfg = replace_fields(
        cfg, {"max_episode_steps": 15, "tolerance": 0.08, "success_hold_steps": 5, "num_threads": 1}
    )
    seeds = [9, 2, 5, 14]
    results = []
    for num_envs in (1, 3, 6):
        env = make_residual_env(cfg, num_envs)
        results.append(evaluate(env, lambda obs: 0.3 * obs["state"][:, :6].sin(), seeds))
        env.close()
    assert set(results[0]) == {
        *(
            "success_once",
            "success_at_end",
            "return",
            "episode_length",
            "residual_magnitude",
            "action_change",
            "dist_to_goal",
            "yaw_error",
        ),
    }
    assert set(results[0]["episode_length"].tolist()) == {5.0, 15.0}
    for other in results[1:]:
        assert {k: v.tolist() for k, v in other.items()} == {k: v.tolist() for k, v in results[0].items()}
