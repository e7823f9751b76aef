"""The env that a learner acts in: promises 1 and 2, the order of queries of the base policy, and unbiased
evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.composition import compose
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.errors import BasePolicyError, NonFiniteError
from residual_rl.evaluation.evaluate import Episodes, evaluate, no_residual
from residual_rl.factory import make_learner, make_residual_env, make_vec_env
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import BasePolicy, Obs, Transition

SO101 = replace_fields(
    TrainCfg.default("so101-paper"),
    {"max_episode_steps": 50, "num_threads": 1, "hidden_sizes": (8, 8), "minibatch_size": 16},
)


def residuals(env: ResidualEnv, step: int) -> Tensor:
    """Residual actions [B, A] that depend only on the env id and the step."""
    rows = [
        np.random.default_rng((env_id, step)).uniform(-1, 1, env.action_dim) for env_id in range(env.num_envs)
    ]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def point_env(
    num_envs: int = 3,
    policy: BasePolicy | None = None,
    scale: float = 0.5,
    penalty: float = 0.0,
    **settings: Any,
) -> ResidualEnv:
    env = fakes.PointEnv(fakes.PointCfg(**settings), num_envs)
    return ResidualEnv(
        env, BasePolicyExecutor(policy or fakes.Homing(), env, "base policy 'it'"), scale, penalty
    )


# --- promise 1: without a residual, the result equals the base policy ---------------------------------------


def base_alone(num_steps: int, num_envs: int, seed: int) -> list[tuple[Obs, Tensor, Tensor]]:
    """Observations, rewards and actions of the base policy in the vec_env, without a ResidualEnv."""
    cfg = dataclasses.asdict(SO101.task)
    env = make_vec_env("so101-paper", num_envs, num_threads=1, **cfg)
    policy = make_base_policy(SO101.base_policy_id, SO101.base, env)
    obs, _ = env.reset(seed=seed)
    steps = []
    for _ in range(num_steps):
        action = policy.act(obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        policy.reset(terminated | truncated)
        steps.append((obs, reward, action))
    return steps


@pytest.mark.parametrize("residual_policy", ["zero scale", "untrained PPO"])
def test_residual_env__without_a_residual_equals_the_base_policy_bit_for_bit(residual_policy: str) -> None:
    """Over whole episodes and into the next ones, through the base policy's approach and drag."""
    env = make_residual_env(SO101, 3)
    learner = make_learner(SO101, env)
    if residual_policy == "zero scale":
        env.residual_scale = 0.0
    else:
        assert env.residual_scale > 0
        assert learner.act(env.reset(seed=0)).any()  # it explores
        env = make_residual_env(SO101, 3)
    env.reset(seed=300)
    num_steps = SO101.task.max_episode_steps + 5
    for step, (obs, reward, action) in enumerate(base_alone(num_steps, 3, seed=300)):
        if residual_policy == "zero scale":
            residual = residuals(env, step)
        else:
            residual = learner.act(env.obs, deterministic=True)
        transition, _ = env.step(residual)
        assert torch.equal(transition.action, action)
        assert torch.equal(transition.base_action, action)
        assert torch.equal(transition.reward, reward)
        assert all(torch.equal(env.obs[name], value) for name, value in obs.items())


def test_residual_env__residual_changes_the_episode() -> None:
    one, other = make_residual_env(SO101, 2), make_residual_env(SO101, 2)
    other.residual_scale = 0.0
    one.reset(seed=300)
    other.reset(seed=300)
    for step in range(3):
        one.step(residuals(one, step))
        other.step(residuals(other, step))
    assert not torch.equal(one.obs["state"], other.obs["state"])


# --- promise 2: one composition -----------------------------------------------------------------------------


def test_transition__contains_the_executed_action() -> None:
    env = point_env(scale=0.7)
    executed: list[Tensor] = []
    step_of = env.vec_env.step

    def step(actions: Tensor) -> Any:
        executed.append(actions.clone())
        return step_of(actions)

    env.vec_env.step = step  # type: ignore[method-assign]
    env.reset(seed=0)
    for i in range(15):
        env.residual_scale = 0.7 - 0.04 * i
        before, residual = env.obs, residuals(env, i)
        transition, _ = env.step(residual)
        assert torch.equal(transition.action, executed[i])
        assert torch.equal(transition.action, compose(transition.base_action, residual, env.residual_scale))
        assert torch.equal(transition.residual_action, residual)
        assert torch.equal(transition.base_action, before["base_action"])
        assert transition.obs is before
    assert len(executed) == 15


def test_transition__action_moves_the_joint_targets_of_so101_paper() -> None:
    """In so101-paper, the joint targets change by exactly the action of the transition."""
    env = make_residual_env(SO101, 2)
    env.reset(seed=300)
    before = env.obs["joint_target"].double()
    transition, _ = env.step(residuals(env, 0))
    moved = env.obs["joint_target"].double() - before
    # Observations are float32 and up to 2 rad.
    np.testing.assert_allclose(moved, transition.action * 0.02, atol=2e-7)


def test_residual_env_penalty__is_a_term_of_the_reward() -> None:
    env = point_env(scale=0.5, penalty=0.01)
    env.reset(seed=0)
    residual = torch.tensor([[1.0, 0.0], [0.6, -0.8], [0.0, 0.0]])
    transition, info = env.step(residual)
    # -0.01 · (0.5 · 1)²; the lengths of the first two are 1
    assert info["reward_terms"]["residual"].tolist() == pytest.approx([-0.0025, -0.0025, 0.0])
    assert torch.allclose(transition.reward, sum(info["reward_terms"].values()))  # type: ignore[arg-type]


def test_episode_return__includes_the_residual_penalties() -> None:
    """The return is the sum of the learner's rewards, even if the state is restored within the episode."""
    env, total, ended = point_env(scale=0.5, penalty=0.3, max_episode_steps=4), torch.zeros(3), 0
    env.reset(seed=0)
    for step in range(12):
        if step == 6:
            state, env = env.state_dict(), point_env(scale=0.5, penalty=0.3, max_episode_steps=4)
            env.load_state_dict(state)
        transition, info = env.step(residuals(env, step))
        total = total + transition.reward
        done = info["_final_info"]
        assert torch.allclose(info["final_info"]["episode_return"][done], total[done])
        total = total.masked_fill(done, 0.0)
        ended += int(done.sum())
    assert ended >= 9
    env.step(residuals(env, 12))
    env.reset(seed=0)
    for _ in range(4):
        _, info = env.step(torch.zeros(3, 2))
    bare = point_env(max_episode_steps=4)
    bare.reset(seed=0)
    for _ in range(4):
        _, alone = bare.step(torch.zeros(3, 2))
    # A reset clears the penalties.
    assert torch.equal(info["final_info"]["episode_return"], alone["final_info"]["episode_return"])


# --- one query per observation ------------------------------------------------------------------------------


def ends(transition: Transition) -> Tensor:
    return transition.terminated | transition.truncated


def test_residual_env__queries_once_per_observation_final_ones_first() -> None:
    """The order in each step: final observations of ended episodes, reset, new observations."""
    recorder = fakes.Recorder(3)
    env = point_env(policy=recorder, scale=0.0, max_episode_steps=4)
    everyone = [0, 1, 2]
    env.reset(seed=0)
    assert recorder.calls == [("reset", everyone), ("query", everyone, env.obs["position"].tolist())]
    # Env 1 is now out of step with the others.
    env.vec_env.reset(seed=[5], mask=torch.tensor([False, True, False]))
    env.step(torch.zeros(3, 2))
    env.vec_env.reset(seed=[6], mask=torch.tensor([False, True, False]))
    seen = set()
    for _ in range(12):
        recorder.calls.clear()
        transition, info = env.step(torch.zeros(3, 2))
        ended = ends(transition).nonzero().flatten().tolist()
        seen.add(tuple(ended))
        new = ("query", everyone, env.obs["position"].tolist())
        if ended:
            final = ("query", ended, info["final_obs"]["position"][ended].tolist())
            assert recorder.calls == [final, ("reset", ended), new]
        else:
            assert recorder.calls == [new]
    assert {(), (1,), (0, 2)} <= seen


def test_base_action__is_executed_and_that_of_the_final_observation_is_stored() -> None:
    """`Recorder` numbers the queries since the reset: 0.1, 0.2, …"""
    env = point_env(policy=fakes.Recorder(3), scale=0.0, max_episode_steps=3)
    env.reset(seed=0)
    executed, stored = [], []
    for _ in range(7):
        transition, _ = env.step(torch.zeros(3, 2))
        executed.append(transition.action[0, 0].item())
        stored.append(transition.next_obs["base_action"][0, 0].item())
        current = env.obs["base_action"]
        assert torch.equal(current, transition.next_obs["base_action"]) != bool(ends(transition).any())
    assert executed == pytest.approx([0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1])
    # The query for the final observation is the fourth.
    assert stored == pytest.approx([0.2, 0.3, 0.4, 0.2, 0.3, 0.4, 0.2])


def test_next_obs__is_the_true_final_observation() -> None:
    env, patient = point_env(max_episode_steps=3), point_env(max_episode_steps=4)
    env.reset(seed=0)
    patient.reset(seed=0)
    for step in range(3):
        mine, _ = env.step(residuals(env, step))
        theirs, _ = patient.step(residuals(patient, step))
        for name, value in theirs.next_obs.items():
            assert torch.equal(mine.next_obs[name], value)
    assert ends(mine).all()
    assert not torch.equal(env.obs["position"], mine.next_obs["position"])
    assert not mine.terminated.any()


def test_residual_env__chunks_span_steps_and_end_with_the_episode() -> None:
    recorder = fakes.Recorder(2, chunk_size=3, num_action_steps=2)
    env = point_env(num_envs=2, policy=recorder, scale=0.0, max_episode_steps=3)
    env.reset(seed=0)
    actions = [env.step(torch.zeros(2, 2))[0].action[0].tolist() for _ in range(5)]
    # (query, step): the final observation uses the second step of the second chunk; the next episode starts
    # with a new query.
    np.testing.assert_allclose(
        actions, [[0.1, 0.0], [0.1, 0.01], [0.2, 0.0], [0.1, 0.0], [0.1, 0.01]], atol=1e-7
    )
    assert [call[1] for call in recorder.calls if call[0] == "query"] == [[0, 1]] * 4


class Failing(fakes.Homing):
    """Fails at its third query."""

    def __init__(self, failure: str):
        super().__init__()
        self.failure, self.num_queries = failure, 0

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        self.num_queries += 1
        chunk = super().predict_action_chunk(obs, env_ids)
        if self.num_queries == 3 and self.failure == "raises":
            raise ConnectionError("server gone")
        if self.num_queries == 3 and self.failure == "shape":
            return chunk[:, 0]
        return chunk * torch.nan if self.num_queries == 3 else chunk


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        ("raises", BasePolicyError, "base policy 'it' failed: ConnectionError: server gone"),
        ("shape", BasePolicyError, r"base policy 'it' gave \(3, 2\)"),
        ("nan", NonFiniteError, r"base policy 'it' is not finite in env\(s\) \[0, 1, 2\]"),
    ],
)
def test_residual_env__error_of_the_base_policy_is_raised_with_its_name(
    failure: str, error: type[Exception], message: str
) -> None:
    env = point_env(policy=Failing(failure))
    env.reset(seed=0)
    env.step(torch.zeros(3, 2))
    with pytest.raises(error, match=message):
        env.step(torch.zeros(3, 2))


def test_residual_env__non_finite_residual_is_an_error() -> None:
    env = point_env()
    env.reset(seed=0)
    with pytest.raises(NonFiniteError, match=r"action is not finite in env\(s\) \[2\]"):
        env.step(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, torch.nan]]))


def test_observation_space__includes_the_base_action() -> None:
    env = point_env()
    own = {"state", "position", "joint_position"}
    assert set(env.observation_space) == {*own, "base_action", "elapsed_steps"}
    obs = env.reset(seed=0)
    for name, space in env.observation_space.items():
        assert all(space.contains(row.numpy()) for row in obs[name])


def test_elapsed_steps__count_from_the_start_of_each_episode_and_up_to_the_final_observation() -> None:
    env = point_env()
    obs = env.reset(seed=0)
    expected = torch.zeros(3, 1)
    for _ in range(2 * env.vec_env.max_episode_steps):
        assert torch.equal(obs["elapsed_steps"], expected)
        transition, info = env.step(torch.zeros(3, 2))
        assert torch.equal(transition.next_obs["elapsed_steps"], expected + 1.0)
        expected = (expected + 1.0).masked_fill(info["_final_info"][:, None], 0.0)
        obs = env.obs
    resumed = point_env()
    resumed.reset(seed=5)
    resumed.load_state_dict(env.state_dict())
    assert torch.equal(resumed.obs["elapsed_steps"], expected)


def test_timer__separates_simulation_and_base_policy() -> None:
    env = point_env()
    env.reset(seed=0)
    before = env.timer.simulation, env.timer.base_policy
    env.step(torch.zeros(3, 2))
    assert env.timer.simulation > before[0]
    assert env.timer.base_policy > before[1]


# --- resuming -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["homing", "chunks"])
def test_residual_env_state_dict__resumes_bit_for_bit(policy: str) -> None:
    def make() -> ResidualEnv:
        return point_env(policy=fakes.Recorder(3, 5, 4) if policy == "chunks" else fakes.Homing(), scale=0.3)

    env, resumed = make(), make()
    env.reset(seed=0)
    for step in range(6):
        env.step(residuals(env, step))
    env.residual_scale = 0.45
    resumed.load_state_dict(env.state_dict())
    assert resumed.residual_scale == 0.45
    for step in range(6, 30):
        mine, _ = resumed.step(residuals(env, step))
        theirs, _ = env.step(residuals(env, step))
        assert torch.equal(mine.action, theirs.action)
        assert torch.equal(mine.reward, theirs.reward)
        assert torch.equal(mine.next_obs["base_action"], theirs.next_obs["base_action"])


# --- evaluation ---------------------------------------------------------------------------------------------

SEEDS = [41, 7, 1000, 12, 3, 99, 58, 20, 21, 22, 5]


def evaluated(num_envs: int, seeds: list[int] = SEEDS) -> tuple[Episodes, list[int]]:
    """Metrics by seed, and the seeds in the order in which their episodes ended."""
    env, order = point_env(num_envs, fakes.Homing(speed=0.2), scale=0.5, penalty=0.01), []

    def policy(obs: Obs) -> Tensor:
        return torch.cat([-0.5 * obs["position"][:, 1:], 0.5 * obs["position"][:, :1]], 1)  # swirls

    def note(transition: Transition, info: dict[str, Any]) -> None:
        order.extend(info["final_info"]["seed"][info["_final_info"]].tolist())

    return evaluate(env, policy, seeds, on_step=note), order


def test_evaluate__runs_each_seed_once_for_any_num_envs() -> None:
    reference, order = evaluated(1)
    assert order == SEEDS  # a single env runs them one after the other
    assert len(reference["episode_length"].unique()) > 2  # short and long ones
    assert 0 < reference["success_once"].sum() < len(SEEDS)
    for num_envs in (3, 8, 20):
        episodes, order = evaluated(num_envs)
        assert sorted(order) == sorted(SEEDS)
        assert episodes.keys() == reference.keys()
        for name, values in episodes.items():
            assert torch.equal(values, reference[name]), name


def test_evaluate__does_not_query_the_base_policy_for_idle_envs() -> None:
    """Three envs and two episodes of four steps: env 2 is always idle."""
    recorder = fakes.Recorder(3)
    env = point_env(3, recorder, scale=0.0, max_episode_steps=4)
    lengths = evaluate(env, no_residual(env), [41, 7])["episode_length"]
    queried = [call[1] for call in recorder.calls if call[0] == "query"]
    assert lengths.tolist() == [4.0, 4.0]
    # At the reset and after each step; the last query is for the final observations.
    assert queried == [[0, 1]] * 5


def test_evaluate__metrics_do_not_depend_on_the_other_seeds() -> None:
    reference, _ = evaluated(3)
    for i, seed in enumerate(SEEDS[:4]):
        alone, _ = evaluated(1, [seed])
        assert all(torch.equal(alone[name][0], values[i]) for name, values in reference.items())


def test_evaluate__so101_paper_gives_equal_metrics_for_any_num_envs() -> None:
    cfg = replace_fields(SO101, {"max_episode_steps": 12, "tolerance": 0.08, "success_hold_steps": 4})
    results = []
    for num_envs in (1, 3, 8):
        env = make_residual_env(cfg, num_envs)
        results.append(evaluate(env, no_residual(env), range(600, 608)))
    assert 0 < results[0]["success_once"].sum() < 8
    for other in results[1:]:
        assert all(torch.equal(other[name], values) for name, values in results[0].items())
