"""Residuals over whole chunks: one transition for several env steps, and envs that wait until the others
have finished their chunks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from chunky import CHUNKY, Chunky
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.model import ModelCfg
from residual_rl.chunk_residual_env import ChunkResidualEnv
from residual_rl.cli.main import main
from residual_rl.composition import adaptive_scale
from residual_rl.config import ResidualCfg, TrainCfg, replace_fields
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.evaluation.evaluate import evaluate, no_residual
from residual_rl.factory import make_learner, make_residual_env, make_vec_env
from residual_rl.registry import BASE_POLICIES, TASKS
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import BasePolicy
from residual_rl.visualization import recording

SEEDS = [41, 7, 1000, 12, 3, 99, 58]


def chunk_env(
    policy: BasePolicy | None = None,
    cls: type[ResidualEnv] = ChunkResidualEnv,
    num_envs: int = 3,
    scale: float = 0.5,
    **settings: Any,
) -> Any:
    env = fakes.PointEnv(fakes.PointCfg(**settings), num_envs)
    return cls(env, BasePolicyExecutor(policy or Chunky(), env, "base policy 'it'"), scale, 0.1)


def recorder_env(max_episode_steps: int = 10, num_envs: int = 2) -> tuple[ChunkResidualEnv, fakes.Recorder]:
    recorder = fakes.Recorder(num_envs, chunk_size=4, num_action_steps=3)
    return chunk_env(recorder, num_envs=num_envs, max_episode_steps=max_episode_steps), recorder


# --- steps with a mask --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["point", "so101-paper"])
def test_vec_env_step__envs_outside_of_the_mask_do_not_change(kind: str) -> None:
    """Env 1 skips two steps and then continues with the same results as an env that was not paused."""

    def make() -> VecEnv:
        return (
            fakes.PointEnv(fakes.PointCfg(), 2)
            if kind == "point"
            else make_vec_env(kind, 2, num_threads=1, position_noise=0.001)
        )

    env, twin = make(), make()
    actions = 0.3 * torch.sin(torch.arange(12.0))[:, None, None] * torch.ones(12, 2, len(env.action_unit))
    env.reset(seed=5)
    twin.reset(seed=5)
    expected = [twin.step(action) for action in actions]
    both, first = None, torch.tensor([True, False])
    taken = [0, 0]
    for mask in (both, both, first, first, both, both, both):
        before = env.observations()
        rows = torch.stack(
            [actions[taken[0], 0], actions[taken[1], 1] if mask is None else torch.ones(len(env.action_unit))]
        )
        obs, reward, *_, info = env.step(rows, mask)
        for env_id in (0, 1):
            if mask is not None and not mask[env_id]:
                assert all(torch.equal(obs[name][env_id], before[name][env_id]) for name in obs)
                assert reward[env_id] == 0.0
                assert not any(term[env_id] for term in info["reward_terms"].values())
                continue
            then, value, *_, expected_info = expected[taken[env_id]]
            assert all(torch.equal(obs[name][env_id], then[name][env_id]) for name in obs)
            assert torch.equal(reward[env_id], value[env_id])
            for name in ("episode_length", "episode_return"):
                assert torch.equal(
                    info["final_info"][name][env_id], expected_info["final_info"][name][env_id]
                )
            taken[env_id] += 1
    assert taken == [7, 5]


# --- steps of a chunk ---------------------------------------------------------------------------------------


def test_chunk_residual_env__residual_covers_the_whole_chunk() -> None:
    """`Recorder` predicts (0.1·n, 0.01·k) for step k of its n-th chunk."""
    env, recorder = recorder_env()
    assert (env.action_dim, env.steps_per_action) == (6, 3)
    assert env.observation_space["base_action"].shape == (6,)
    obs = env.reset(seed=0)
    np.testing.assert_allclose(obs["base_action"], [[0.1, 0.0, 0.1, 0.01, 0.1, 0.02]] * 2, atol=1e-7)
    start = obs["position"]
    residual = torch.tensor([[0.2, 0.0, 0.4, 0.0, 0.0, -0.6], [0.0] * 6])
    transition, info = env.step(residual)
    moved = torch.tensor([[0.2, 0.0, 0.3, 0.01, 0.1, -0.28], [0.1, 0.0, 0.1, 0.01, 0.1, 0.02]])
    np.testing.assert_allclose(transition.action, moved, atol=1e-7)
    wind = 0.01 * env.obs["state"][:, 2:3] * 100 * torch.tensor([[1.0, 0.0]])
    np.testing.assert_allclose(
        env.obs["position"] - start, 0.1 * moved.unflatten(1, (3, 2)).sum(1) + 3 * wind, atol=1e-6
    )
    assert torch.equal(transition.obs["base_action"], obs["base_action"])
    assert torch.equal(transition.base_action, obs["base_action"])
    assert torch.equal(transition.residual_action, residual)
    np.testing.assert_allclose(
        transition.next_obs["base_action"], [[0.2, 0.0, 0.2, 0.01, 0.2, 0.02]] * 2, atol=1e-7
    )
    assert all(torch.equal(transition.next_obs[name], value) for name, value in env.obs.items())
    # -0.1 · (0.5 · …)² of each step
    np.testing.assert_allclose(
        info["reward_terms"]["residual"], [-0.1 * (0.01 + 0.04 + 0.09), 0.0], atol=1e-7
    )
    assert [call[0] for call in recorder.calls] == ["reset", "query", "query"]


def test_chunk_residual_env__sums_rewards_over_the_chunk() -> None:
    env, single = chunk_env(), chunk_env(cls=ResidualEnv)
    env.reset(seed=0)
    single.reset(seed=0)
    total = torch.zeros(3)
    for _ in range(3):
        total = total + single.step(torch.zeros(3, 2))[0].reward
    transition, info = env.step(torch.zeros(3, 6))
    np.testing.assert_allclose(transition.reward, total, rtol=1e-6)
    np.testing.assert_allclose(sum(info["reward_terms"].values()), total, rtol=1e-5)
    assert torch.equal(env.obs["position"], single.obs["position"])


def test_chunk_residual_env__env_waits_after_its_episode_ends_within_a_chunk() -> None:
    """With a limit of five steps, the episode ends at the second step of its second chunk."""
    env, recorder = recorder_env(max_episode_steps=5)
    env.reset(seed=0)
    env.vec_env.reset(seed=[9], mask=torch.tensor([False, True]))
    env.step(torch.zeros(2, 6))
    env.vec_env._length[1] = 1  # type: ignore[attr-defined]  (two steps behind the other env)
    before, steps_taken = env.obs, env.vec_env.steps_taken  # type: ignore[attr-defined]
    recorder.calls.clear()
    transition, info = env.step(torch.full((2, 6), 0.5))
    assert env.vec_env.steps_taken - steps_taken == 3  # type: ignore[attr-defined]
    assert transition.truncated.tolist() == [True, False]
    assert info["_final_info"].tolist() == info["_final_obs"].tolist() == [True, False]
    assert info["final_info"]["episode_length"][0] == 5
    # No action after the end of the episode.
    np.testing.assert_allclose(transition.action[:, 4:], [[0.0, 0.0], [0.45, 0.27]], atol=1e-6)
    final = transition.next_obs["position"][0]
    wind = torch.stack([before["state"][0, 2], torch.tensor(0.0)])
    moved = 0.1 * transition.action[0, :4].reshape(2, 2).sum(0)
    np.testing.assert_allclose(final, before["position"][0] + moved + 2 * wind, atol=1e-6)
    assert env.vec_env.observations()["state"][0, 3] == 0.0  # the new episode has not moved yet
    assert not torch.equal(env.obs["position"][0], final)
    # A query for the final observation, a reset, and a query for the new observations.
    assert [call[:2] for call in recorder.calls] == [("query", [0]), ("reset", [0]), ("query", [0, 1])]
    assert recorder.calls[0][2] == [final.tolist()]
    np.testing.assert_allclose(
        transition.next_obs["base_action"][0], [0.3, 0.0, 0.3, 0.01, 0.3, 0.02], atol=1e-6
    )
    np.testing.assert_allclose(env.obs["base_action"][:, 0], [0.1, 0.3], atol=1e-6)
    assert torch.equal(transition.next_obs["base_action"][1], env.obs["base_action"][1])


def test_episode_return__includes_the_residual_penalties() -> None:
    env, total, ended = chunk_env(max_episode_steps=4), torch.zeros(3), 0
    env.reset(seed=0)
    for _ in range(12):
        transition, info = env.step(torch.full((3, 6), 0.7))
        total = total + transition.reward
        done = info["_final_info"]
        np.testing.assert_allclose(info["final_info"]["episode_return"][done], total[done], rtol=1e-5)
        total = total.masked_fill(done, 0.0)
        ended += int(done.sum())
    assert ended >= 12


def test_chunk_residual_env_state_dict__resumes_bit_for_bit() -> None:
    env, resumed = chunk_env(max_episode_steps=7), chunk_env(max_episode_steps=7)
    residual = torch.linspace(-1.0, 1.0, 18).reshape(3, 6)
    env.reset(seed=0)
    for _ in range(4):
        env.step(residual)
    resumed.load_state_dict(env.state_dict())
    for _ in range(6):
        mine, theirs = resumed.step(residual)[0], env.step(residual)[0]
        assert torch.equal(mine.action, theirs.action)
        assert torch.equal(mine.reward, theirs.reward)
        assert all(torch.equal(value, theirs.next_obs[name]) for name, value in mine.next_obs.items())


# --- evaluation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3, 20])
def test_chunk_residual_env__without_a_residual_equals_the_base_policy(num_envs: int) -> None:
    """Metrics count env steps in both."""
    single, whole = chunk_env(cls=ResidualEnv, scale=0.0), chunk_env(num_envs=num_envs, scale=0.0)
    expected = evaluate(single, no_residual(single), SEEDS)
    got = evaluate(whole, lambda obs: torch.ones(num_envs, 6), SEEDS)
    assert len(expected["episode_length"].unique()) > 1
    assert expected.keys() == got.keys()
    for name, values in expected.items():
        assert torch.equal(got[name], values), name


def test_chunk_residual_env__constant_residual_equals_step_by_step_residuals() -> None:
    single, whole = chunk_env(cls=ResidualEnv, max_episode_steps=7), chunk_env(max_episode_steps=7)
    push = torch.tensor([0.3, -0.6])
    expected = evaluate(single, lambda obs: push.expand(3, 2), SEEDS)
    got = evaluate(whole, lambda obs: push.repeat(3).expand(3, 6), SEEDS)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5, err_msg=name)


def test_chunk_residual_env__adaptive_scale_changes_within_a_chunk() -> None:
    def rule(scale: float, uncertainty: Tensor) -> Tensor:
        return adaptive_scale(scale, uncertainty, min_share=0.0, full_uncertainty=2.0)

    single, whole = chunk_env(cls=ResidualEnv, max_episode_steps=7), chunk_env(max_episode_steps=7)
    for one in (single, whole):
        one.composition = dataclasses.replace(one.composition, rule=rule)
    expected = evaluate(single, lambda obs: torch.full((3, 2), 0.5), SEEDS)
    got = evaluate(whole, lambda obs: torch.full((3, 6), 0.5), SEEDS)
    assert len(expected["residual_scale"].unique()) > 1
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5, err_msg=name)


def test_record__has_a_frame_for_each_env_step() -> None:
    single, whole = chunk_env(cls=ResidualEnv, max_episode_steps=7), chunk_env(max_episode_steps=7)
    for one, other in zip(
        recording.record(single, lambda obs: torch.full((3, 2), 0.5), [1, 2, 3]),
        recording.record(whole, lambda obs: torch.full((3, 6), 0.5), [1, 2, 3]),
        strict=True,
    ):
        assert torch.equal(one.scenes[:-1], other.scenes[:-1])
        assert torch.equal(one.magnitude, other.magnitude)


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def _point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the task `point` and the base policy `chunky`."""
    for registry, spec in ((TASKS, fakes.POINT_TASK), (BASE_POLICIES, CHUNKY)):
        registry.all()  # type: ignore[attr-defined]
        monkeypatch.setattr(registry, "_specs", {**registry._specs, spec.id: spec})  # type: ignore[attr-defined]


FLAGS = [
    "--base-policy",
    "chunky",
    "--chunk",
    "whole",
    "--num-envs",
    "4",
    "--num-steps",
    "4",
    "--minibatch-size",
    "16",
    "--num-epochs",
    "2",
]
FLAGS += [
    "--hidden-sizes",
    "8",
    "8",
    "--eval-episodes",
    "4",
    "--eval-freq",
    "0",
    "--save-freq",
    "48",
    "--num-threads",
    "1",
]


@pytest.mark.slow
@pytest.mark.usefixtures("_point")
def test_chunk__whole_counts_env_steps_and_resumes(tmp_path: Path) -> None:
    """An iteration has 48 env steps: 4 envs, 4 chunks, 3 steps each."""
    run = tmp_path / "run"
    assert main(["train", "point", *FLAGS, "--total-timesteps", "100", "--output-dir", str(run)]) == 0
    assert json.loads((run / "training_summary.json").read_text())["steps"] == 96
    assert main(["train", "--resume", str(run), "--total-timesteps", "144"]) == 0
    assert json.loads((run / "training_summary.json").read_text())["steps"] == 144
    assert (
        main(["eval", str(run), "--model", "final", "--n-episodes", "6", "--compare-base", "--compare-zero"])
        == 0
    )
    policies = json.loads((run / "eval.json").read_text())["policies"]
    assert policies["residual"]["residual_magnitude"]["mean"] > 0.0
    assert policies["base"]["residual_magnitude"]["mean"] == 0.0
    with pytest.raises(
        ConfigError,
        match=r"policy.safetensors was trained with --chunk whole, which cannot be a base policy",
    ):
        make_base_policy("model", ModelCfg(str(run)), fakes.PointEnv(fakes.PointCfg(), 2))


@pytest.mark.usefixtures("_point")
def test_chunk__whole_with_an_untrained_residual_equals_the_base_policy() -> None:
    cfg = replace_fields(TrainCfg.default("point", "chunky"), {"chunk": "whole", "minibatch_size": 64})
    env = make_residual_env(cfg, 3)
    assert isinstance(env, ChunkResidualEnv)
    single = make_residual_env(replace_fields(cfg, {"chunk": "step"}), 3)
    assert not isinstance(single, ChunkResidualEnv)
    assert not isinstance(make_residual_env(cfg, 3, base_policy_id="zero"), ChunkResidualEnv)
    learner = make_learner(cfg, env)
    got = evaluate(env, lambda obs: learner.act(obs, deterministic=True), SEEDS)
    assert all(
        torch.equal(got[name], values)
        for name, values in evaluate(single, no_residual(single), SEEDS).items()
    )


def test_chunk__must_be_step_or_whole() -> None:
    with pytest.raises(ConfigError, match="chunk must be one of step, whole, not 'half'"):
        ResidualCfg(chunk="half")  # type: ignore[arg-type]
