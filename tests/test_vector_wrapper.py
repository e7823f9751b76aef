"""`ResidualVectorWrapper`: it equals a batch of single wrappers in all autoreset modes, with arrays and
tensors."""

from __future__ import annotations

from typing import Any

import fakes
import gymnasium
import numpy as np
import pytest
import torch
from cart_envs import Cart, Counting, CountingBatch, DictCart
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from residual_rl import ResidualVectorWrapper, ResidualWrapper
from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.residual_env import ResidualEnv

NUM_ENVS = 4
SAME, NEXT, NEVER = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED
ENTRIES = ("base_action", "residual_action", "action")


def carts(mode: AutoresetMode, make: Any = Cart) -> SyncVectorEnv:
    return SyncVectorEnv([make] * NUM_ENVS, autoreset_mode=mode)


def moves_back(obs: Any) -> np.ndarray:
    """A policy for one env without state."""
    position = obs["position"] if isinstance(obs, dict) else obs
    return np.float32([256.0, -position[0]])


def drawn_residuals(steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.0, (steps, NUM_ENVS, 2)).astype(np.float32)


def assert_equal(found: Any, expected: Any) -> None:
    """Nested values are equal, including dtypes."""
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert_equal(found[name], value)
    elif isinstance(expected, np.ndarray) and expected.dtype == object:
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


# --- batches of single wrappers -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [SAME, NEXT, NEVER], ids=str)
@pytest.mark.parametrize(
    ("make", "policy", "flatten"),
    [
        (Cart, Counting, None),
        (Cart, Counting, False),
        (DictCart, moves_back, None),
        (DictCart, moves_back, True),
    ],
)
def test_residual_vector_wrapper__equals_vectorised_single_wrappers(
    mode: AutoresetMode, make: Any, policy: Any, flatten: bool | None
) -> None:
    env = ResidualVectorWrapper(carts(mode, make), policy, 0.5, flatten=flatten, batched=False)
    singles = carts(mode, lambda: ResidualWrapper(make(), policy, 0.5, flatten=flatten))
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(env, name) == getattr(singles, name)
    obs, info = env.reset(seed=3)
    expected_obs, expected_info = singles.reset(seed=3)
    assert_equal(obs, expected_obs)
    assert_equal(info, expected_info)
    num_ended = 0
    begins = np.zeros(NUM_ENVS, bool)
    for residual in drawn_residuals(25):
        obs, *outcome, info = env.step(residual)
        expected_obs, *expected_outcome, expected_info = singles.step(residual)
        assert_equal(obs, expected_obs)
        assert obs in env.observation_space
        for one, other in zip(outcome, expected_outcome, strict=True):
            assert_equal(one, other)
        ended = outcome[1] | outcome[2]
        num_ended += ended.sum()
        # Infos: those of single wrappers are in `final_info` where an episode ended, and missing in resets.
        for name in ENTRIES:
            merged = np.zeros((NUM_ENVS, 2), np.float32)
            for source in (expected_info, expected_info.get("final_info", {})):
                if name in source:
                    merged[source[f"_{name}"]] = source[name][source[f"_{name}"]]
            np.testing.assert_array_equal(info[f"_{name}"], ~begins)
            np.testing.assert_array_equal(info[name][~begins], merged[~begins])
        if mode == SAME and ended.any():
            np.testing.assert_array_equal(info["_final_obs"], ended)
            assert_equal(info["final_obs"], expected_info["final_obs"])
            final_info = info["final_info"]
            for name in (*ENTRIES, "position"):
                np.testing.assert_array_equal(
                    final_info[name][ended], expected_info["final_info"][name][ended]
                )
        if mode == NEXT:
            begins = ended
        if mode == NEVER and ended.any():
            options: list[dict[str, Any]] = [{"reset_mask": ended.copy()} for _ in range(2)]
            assert_equal(env.reset(options=options[0])[0], singles.reset(options=options[1])[0])
    assert num_ended > 15
    # A reset of all envs in the middle of episodes
    assert_equal(env.reset(seed=5)[0], singles.reset(seed=5)[0])
    assert_equal(env.step(drawn_residuals(1)[0])[0], singles.step(drawn_residuals(1)[0])[0])


def test_residual_vector_wrapper__reset_of_some_replaces_that_of_the_next_step() -> None:
    env = ResidualVectorWrapper(carts(NEXT), Counting, 0.5, batched=False)
    singles = carts(NEXT, lambda: ResidualWrapper(Cart(), Counting, 0.5))
    env.reset(seed=3)
    singles.reset(seed=3)
    num_resets = 0
    for residual in drawn_residuals(12):
        obs, _, terminated, truncated, info = env.step(residual)
        assert_equal(obs, singles.step(residual)[0])
        assert info["_action"].all()
        ended = terminated | truncated
        if ended.any():
            num_resets += 1
            options: list[dict[str, Any]] = [{"reset_mask": ended.copy()} for _ in range(2)]
            assert_equal(env.reset(options=options[0])[0], singles.reset(options=options[1])[0])
    assert num_resets > 3


@pytest.mark.parametrize("mode", [SAME, NEXT, NEVER], ids=str)
def test_batched__policy_with_state_equals_one_for_each_env(mode: AutoresetMode) -> None:
    policy = CountingBatch(NUM_ENVS)
    together = ResidualVectorWrapper(carts(mode), policy, 0.5)
    alone = ResidualVectorWrapper(carts(mode), Counting, 0.5, batched=False)
    assert_equal(together.reset(seed=3)[0], alone.reset(seed=3)[0])
    queries = [list(range(NUM_ENVS))]
    for residual in drawn_residuals(12):
        obs, _, terminated, truncated, _ = together.step(residual)
        assert_equal(obs, alone.step(residual)[0])
        ended = terminated | truncated
        if mode == SAME and ended.any():
            queries.append(np.flatnonzero(ended).tolist())  # the final observations
        queries.append(list(range(NUM_ENVS)))
        if mode == NEVER and ended.any():
            queries.append(np.flatnonzero(ended).tolist())  # the first observations
            for env in (together, alone):
                env.reset(options={"reset_mask": ended.copy()})
    assert policy.queries == queries


class NoEnvIds:
    """A policy for batches that has state, but takes no indices."""

    def reset(self, mask: np.ndarray) -> None:
        pass

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs), 2))


def test_batched__policy_with_state_must_take_the_indices_of_the_envs() -> None:
    for mode in (SAME, NEVER):
        with pytest.raises(ConfigError, match=r"it must take their indices, as policy\(obs, env_ids\)"):
            ResidualVectorWrapper(carts(mode), NoEnvIds(), 0.5)
    env = ResidualVectorWrapper(carts(NEXT), NoEnvIds(), 0.5)  # always queried for all envs
    env.reset(seed=0)
    env.step(drawn_residuals(1)[0])
    with pytest.raises(ConfigError, match="it must take their indices"):
        env.reset(options={"reset_mask": np.array([True, False, False, False])})


def test_batched__one_policy_with_state_is_not_shared_between_envs() -> None:
    with pytest.raises(ConfigError, match="there are 4 envs: give its class"):
        ResidualVectorWrapper(carts(SAME), Counting(), 0.5, batched=False)


@pytest.mark.slow
def test_residual_vector_wrapper__works_with_async_envs_and_episode_statistics() -> None:
    make = [Cart] * NUM_ENVS
    env = RecordEpisodeStatistics(
        ResidualVectorWrapper(AsyncVectorEnv(make), Counting, 0.5, batched=False)  # type: ignore[arg-type]
    )
    sync = ResidualVectorWrapper(carts(NEXT), Counting, 0.5, batched=False)
    assert_equal(env.reset(seed=3)[0], sync.reset(seed=3)[0])
    for residual in drawn_residuals(8):
        assert_equal(env.step(residual)[0], sync.step(residual)[0])
    assert len(env.return_queue) >= NUM_ENVS
    env.close()


# --- tensors ------------------------------------------------------------------------------------------------


def test_residual_vector_wrapper__equals_residual_env_on_a_vec_env_of_this_package() -> None:
    """With the same base policy: the observations, the final ones, rewards and actions of its transitions."""
    vec_envs = [fakes.PointEnv(fakes.PointCfg(), 3) for _ in range(2)]
    env = ResidualVectorWrapper(vec_envs[0], fakes.Homing(), residual_scale=0.5)
    executor = BasePolicyExecutor(fakes.Homing(), vec_envs[1])
    reference = ResidualEnv(vec_envs[1], executor, 0.5)
    obs, _ = env.reset(seed=0)
    expected = reference.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    num_ended = 0
    for _ in range(25):
        for name, value in obs.items():
            torch.testing.assert_close(value, expected[name], rtol=0.0, atol=1e-6)
        residual = 2.0 * torch.rand(3, 2, generator=generator) - 1.0
        obs, reward, terminated, truncated, info = env.step(residual)
        transition, _ = reference.step(residual)
        expected = reference.obs
        torch.testing.assert_close(reward, transition.reward, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(info["action"], transition.action, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(info["base_action"], transition.base_action, rtol=0.0, atol=1e-6)
        ended = terminated | truncated
        assert torch.equal(ended, transition.terminated | transition.truncated)
        num_ended += int(ended.sum())
        if ended.any():
            assert torch.equal(info["_final_obs"], ended)
            for name, value in info["final_obs"].items():
                torch.testing.assert_close(value, transition.next_obs[name], rtol=0.0, atol=1e-6)
            assert torch.equal(info["final_info"]["action"], info["action"])
    assert num_ended > 5


class LikeManiSkill(VectorEnv):
    """Tensors, with the names of ManiSkill's `ManiSkillVectorEnv`: `final_observation` and `env_idx`."""

    def __init__(self, auto_reset: bool) -> None:
        self._env = carts(SAME if auto_reset else NEVER)
        self._auto_reset = auto_reset
        self.metadata = {"autoreset_mode": SAME}
        self.num_envs = NUM_ENVS
        self.device = torch.device("cpu")
        self.single_action_space = self._env.single_action_space
        self.single_observation_space = spaces.Box(-100.0, 100.0, (2,), np.float32)
        self.action_space = self._env.action_space
        self.observation_space = batch_space(self.single_observation_space, NUM_ENVS)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if options is not None:
            mask = np.zeros(NUM_ENVS, bool)
            mask[options["env_idx"].numpy()] = True
            options = {"reset_mask": mask}
        obs, _ = self._env.reset(seed=seed, options=options)
        return torch.from_numpy(obs).float(), {}

    def step(self, actions: torch.Tensor) -> Any:
        assert actions.dtype == torch.float32
        obs, *outcome, info = self._env.step(actions.numpy())
        found: dict[str, Any] = {}
        if "final_obs" in info:
            rows = [info["final_obs"][i] if info["_final_obs"][i] else obs[i] for i in range(NUM_ENVS)]
            found["final_observation"] = torch.from_numpy(np.stack(rows)).float()
            found["_final_observation"] = torch.from_numpy(info["_final_obs"])
            found["final_info"] = {"success": torch.zeros(NUM_ENVS)}
        return torch.from_numpy(obs).float(), *map(torch.from_numpy, outcome), found


@pytest.mark.parametrize("auto_reset", [True, False])
def test_residual_vector_wrapper__finds_the_resets_of_maniskill(auto_reset: bool) -> None:
    env = ResidualVectorWrapper(LikeManiSkill(auto_reset), Counting, 0.5, batched=False)
    expected = ResidualVectorWrapper(carts(SAME if auto_reset else NEVER), Counting, 0.5, batched=False)
    np.testing.assert_allclose(env.reset(seed=3)[0], expected.reset(seed=3)[0], atol=1e-6)
    for residual in drawn_residuals(12):
        obs, *_, info = env.step(torch.from_numpy(residual))
        expected_obs, _, terminated, truncated, expected_info = expected.step(residual)
        np.testing.assert_allclose(obs, expected_obs, atol=1e-6)
        ended = terminated | truncated
        if not ended.any():
            continue
        if auto_reset:
            assert torch.equal(info["_final_observation"], torch.from_numpy(ended))
            final_obs = np.stack([expected_info["final_obs"][i] for i in np.flatnonzero(ended)])
            np.testing.assert_allclose(
                info["final_observation"][torch.from_numpy(ended)], final_obs, atol=1e-6
            )
            assert set(info["final_info"]) >= {"success", *ENTRIES}
        else:
            env_idx = torch.from_numpy(np.flatnonzero(ended))
            obs, _ = env.reset(options={"env_idx": env_idx})
            np.testing.assert_allclose(obs, expected.reset(options={"reset_mask": ended})[0], atol=1e-6)


def test_residual_vector_wrapper__keeps_tensors() -> None:
    def policy(obs: torch.Tensor) -> torch.Tensor:
        assert isinstance(obs, torch.Tensor)
        return torch.stack([torch.full_like(obs[:, 0], 256.0), -obs[:, 0]], 1)

    env = ResidualVectorWrapper(LikeManiSkill(auto_reset=True), policy, 0.5)
    arrays = ResidualVectorWrapper(carts(SAME), moves_back, 0.5, batched=False)
    np.testing.assert_allclose(env.reset(seed=3)[0], arrays.reset(seed=3)[0], atol=1e-6)
    for residual in drawn_residuals(8):
        obs, *_, info = env.step(torch.from_numpy(residual))
        expected_obs, *_, expected_info = arrays.step(residual)
        assert obs.dtype == torch.float32
        np.testing.assert_allclose(obs, expected_obs, atol=1e-6)
        for name in ENTRIES:
            assert info[name].dtype == torch.float32
            np.testing.assert_allclose(info[name], expected_info[name], atol=1e-6)
            assert info[f"_{name}"].all()


# --- wrong calls and envs -----------------------------------------------------------------------------------


def test_residual_vector_wrapper__refuses_wrong_calls_and_envs() -> None:
    with pytest.raises(ConfigError, match="use ResidualWrapper for a single env"):
        ResidualVectorWrapper(Cart(), NoEnvIds(), 0.5)  # type: ignore[arg-type]
    undeclared = carts(NEXT)
    del undeclared.metadata["autoreset_mode"]
    with pytest.raises(ConfigError, match=r"set metadata\['autoreset_mode'\]"):
        ResidualVectorWrapper(undeclared, NoEnvIds(), 0.5)
    env = ResidualVectorWrapper(carts(NEXT), lambda obs: np.zeros(2), 0.5)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((4, 2)))
    with pytest.raises(BasePolicyError, match=r"gave actions of shape \(2,\); expected \(4, 2\)"):
        env.reset(seed=0)
    env = ResidualVectorWrapper(carts(NEXT), NoEnvIds(), 0.5)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"must have shape \(4, 2\), not \(2,\)"):
        env.step(np.zeros(2))
    env.residual_scale = 0.25
    assert env.residual_scale == 0.25


def test_residual_vector_wrapper__wraps_make_vec() -> None:
    env = ResidualVectorWrapper(gymnasium.make_vec("Pendulum-v1", 3), lambda obs: -obs[:, 1:2], 0.5)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (3, 4)
    np.testing.assert_allclose(obs[:, 3], -obs[:, 1] / 2.0)  # torques are from -2 to 2
