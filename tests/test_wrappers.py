"""`ResidualWrapper`: spaces, composition in the env's units, queries of the base policy, and other libraries'
checkers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from cart_envs import Cart, Counting, DictCart, ImageCart
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from residual_rl import ResidualWrapper
from residual_rl.errors import BasePolicyError, ConfigError, NonFiniteError, UnknownNameError
from residual_rl.types import BasePolicy, Obs


def middle(obs: Any) -> np.ndarray:
    """A quarter of the way through the first range, the middle of the second."""
    return np.float32([128.0, 0.0])


def drawn_actions(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.0, shape).astype(np.float32)


# --- the composition ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("residual", "executed", "normalised"),
    [
        ((0.0, 0.0), (128.0, 0.0), (-0.5, 0.0)),
        ((1.0, -0.5), (192.0, -0.25), (-0.25, -0.125)),
        ((-1.0, 4.0), (64.0, 0.5), (-0.75, 0.25)),  # a residual is clipped
    ],
)
def test_residual_wrapper__executes_the_composition_in_the_units_of_the_env(
    residual: tuple[float, float], executed: tuple[float, float], normalised: tuple[float, float]
) -> None:
    env = ResidualWrapper(Cart(), middle, residual_scale=0.25)
    env.reset(seed=0)
    info = env.step(np.float32(residual))[4]
    np.testing.assert_array_equal(env.unwrapped.executed[-1], np.float32(executed))
    np.testing.assert_array_equal(info["action"], np.float32(normalised))
    np.testing.assert_array_equal(info["base_action"], np.float32([-0.5, 0.0]))
    np.testing.assert_array_equal(info["residual_action"], np.clip(np.float32(residual), -1.0, 1.0))
    assert "position" in info


def test_residual_wrapper__clips_to_the_bounds_of_the_env() -> None:
    env = ResidualWrapper(Cart(), lambda _: [480.0, -3.0], residual_scale=1.0)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs[2:], np.float32([0.875, -1.0]))  # the base action is clipped as well
    info = env.step([1.0, -1.0])[4]
    np.testing.assert_array_equal(env.unwrapped.executed[-1], np.float32([512.0, -2.0]))
    np.testing.assert_array_equal(info["action"], [1.0, -1.0])


class Replay:
    """Returns one action after another."""

    def __init__(self, actions: np.ndarray):
        self._actions = iter(actions)

    def __call__(self, obs: Any) -> np.ndarray:
        return next(self._actions)


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_residual_wrapper__with_zero_scale_or_residual_executes_the_base_action_bit_for_bit(
    scale: float,
) -> None:
    base = np.float32([256.0, 0.0]) + drawn_actions(400, 2) * np.float32([256.0, 2.0])
    env = ResidualWrapper(Cart(), Replay(base), residual_scale=scale)
    expected: list[np.ndarray] = []
    queries = 0
    while queries < 390:
        length = env.reset(seed=queries)[1]["length"]
        for _ in range(length):
            env.step(drawn_actions(2) if scale == 0.0 else np.zeros(2))
        expected.extend(base[queries : queries + length])
        queries += length + 1  # the last base action, for the final observation, is not executed
    np.testing.assert_array_equal(env.unwrapped.executed, expected)


def test_residual_scale__may_change_between_steps() -> None:
    env = ResidualWrapper(Cart(), middle, residual_scale=0.25)
    env.reset(seed=0)
    env.residual_scale = 0.5
    env.step([1.0, 0.0])
    env.set_wrapper_attr("residual_scale", 0.0)
    env.step([1.0, 0.0])
    np.testing.assert_array_equal(env.unwrapped.executed, np.float32([[256.0, 0.0], [128.0, 0.0]]))
    with pytest.raises(ConfigError, match="residual_scale must be from 0 to 2, not -1"):
        env.residual_scale = -1.0


# --- observations -------------------------------------------------------------------------------------------

BASE_ACTION = spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_observation_space__base_action_is_appended_to_a_vector() -> None:
    env = ResidualWrapper(Cart(), middle, 0.5)
    assert env.observation_space == spaces.Box(
        np.float32([-100.0, -100.0, -1.0, -1.0]), np.float32([100.0, 100.0, 1.0, 1.0])
    )
    assert env.action_space == BASE_ACTION
    obs, _ = env.reset(seed=0)
    start, _ = Cart().reset(seed=0)
    np.testing.assert_array_equal(obs, np.float32([*start, -0.5, 0.0]))


def test_observation_space__dict_gets_an_entry() -> None:
    env = ResidualWrapper(DictCart(), middle, 0.5)
    inner = DictCart().observation_space
    assert env.observation_space == spaces.Dict({**inner.spaces, "base_action": BASE_ACTION})
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space
    np.testing.assert_array_equal(obs["base_action"], np.float32([-0.5, 0.0]))
    assert obs["position"].dtype == np.float64  # what the env observes is kept


def test_flatten__makes_a_vector_of_a_dict_in_the_order_of_its_space() -> None:
    env = ResidualWrapper(DictCart(), middle, 0.5, flatten=True)
    obs, _ = env.reset(seed=0)
    start, _ = DictCart().reset(seed=0)
    vector = gymnasium.spaces.flatten(DictCart().observation_space, start)
    np.testing.assert_array_equal(obs, np.float32([*vector, -0.5, 0.0]))
    assert obs in env.observation_space


def test_flatten__false_makes_a_dict_of_a_vector() -> None:
    env = ResidualWrapper(Cart(), middle, 0.5, flatten=False)
    obs, _ = env.reset(seed=0)
    assert sorted(obs) == ["base_action", "observation"]
    assert obs in env.observation_space


def test_flatten__images_are_entries_unless_it_is_true() -> None:
    obs, _ = ResidualWrapper(ImageCart(), middle, 0.5).reset(seed=0)
    assert obs["observation"].shape == (4, 3, 3)
    obs, _ = ResidualWrapper(ImageCart(), middle, 0.5, flatten=True).reset(seed=0)
    assert obs.shape == (4 * 3 * 3 + 2,)


def test_flatten__names_the_space_that_it_cannot_convert() -> None:
    env = Cart()
    env.observation_space = spaces.Discrete(3)
    with pytest.raises(ConfigError, match=r"flatten cannot convert Discrete\(3\): use .*FlattenObservation"):
        ResidualWrapper(env, middle, 0.5, flatten=True)
    assert "observation" in ResidualWrapper(env, middle, 0.5).observation_space.spaces


# --- the base policy ----------------------------------------------------------------------------------------


def test_base_policy__is_queried_once_for_each_observation_and_reset_at_the_start_of_episodes() -> None:
    policy = Counting()
    env = ResidualWrapper(Cart(), policy, residual_scale=0.5, flatten=False)
    expected: list[Any] = []
    for seed in range(3):
        obs, info = env.reset(seed=seed)
        expected += ["reset", obs["observation"]]
        np.testing.assert_array_equal(obs["base_action"][0], 16.0 / 256.0 - 1.0)
        for step in range(info["length"]):
            obs, *_ = env.step(drawn_actions(2))
            expected.append(obs["observation"])
            np.testing.assert_array_equal(obs["base_action"][0], 16.0 * (step + 2) / 256.0 - 1.0)
    assert len(policy.seen) == len(expected)
    for found, wanted in zip(policy.seen, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_base_policy__class_is_instantiated_for_each_wrapper() -> None:
    envs = [ResidualWrapper(Cart(), Counting, 0.5) for _ in range(2)]
    first = envs[0].reset(seed=0)[0]
    envs[0].step([0.0, 0.0])
    np.testing.assert_array_equal(envs[1].reset(seed=0)[0], first)


def test_batched__callable_receives_a_batch_of_one() -> None:
    shapes = []

    def policy(obs: np.ndarray) -> np.ndarray:
        shapes.append(obs.shape)
        return np.float32([[128.0, 0.0]])

    env = ResidualWrapper(Cart(), policy, 0.5, batched=True)
    np.testing.assert_array_equal(env.reset(seed=0)[0][2:], np.float32([-0.5, 0.0]))
    assert shapes == [(1, 2)]


class Chunks(BasePolicy):
    """Chunks of three actions that count up by 0.1, of which two are executed; it reads one observation."""

    inputs = {"position": (1,)}  # noqa: RUF012
    chunk_size = 3
    num_action_steps = 2

    def __init__(self) -> None:
        self.chunks = torch.zeros(1)
        self.seen: list[float] = []

    def reset(self, mask: Tensor) -> None:
        self.chunks = self.chunks.masked_fill(mask, 0.0)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        assert obs["position"].dtype == torch.float32
        self.seen.append(float(obs["position"]))
        self.chunks[env_ids] += 1.0
        steps = 0.1 * torch.arange(3.0)
        return torch.stack([steps, self.chunks[env_ids].expand(3) * 0.25], -1)[None]


def test_base_policy__of_this_package_reads_named_observations_and_plays_chunks() -> None:
    policy = Chunks()
    env = ResidualWrapper(DictCart(), policy, residual_scale=0.5)
    seen = []
    for seed in (2, 3):
        obs, info = env.reset(seed=seed)
        base_actions = [obs["base_action"]]
        positions = [np.float32(obs["position"][0])]
        for _ in range(info["length"]):
            obs, *_ = env.step([0.0, 0.0])
            base_actions.append(obs["base_action"])
            positions.append(np.float32(obs["position"][0]))
        expected = [[[0.0, 0.1][i % 2], 0.25 * (i // 2 + 1)] for i in range(info["length"] + 1)]
        np.testing.assert_array_equal(base_actions, np.float32(expected))
        seen += positions[::2]  # a chunk covers two steps
    np.testing.assert_array_equal(policy.seen, seen)


def test_base_policy__id_makes_a_registered_one_with_settings() -> None:
    env = ResidualWrapper(Cart(), "zero", 0.5)
    np.testing.assert_array_equal(env.reset(seed=0)[0][2:], [0.0, 0.0])
    settings = {"function": "cart_envs:Counting", "input_keys": ("state",), "action_range": (-16.0, 16.0)}
    env = ResidualWrapper(Cart(), "python", 0.5, base_settings=settings)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs[2:], np.float32([1.0, -obs[0] / 16.0]))
    with pytest.raises(UnknownNameError, match="unknown setting of base policy 'python' 'functoin'"):
        ResidualWrapper(Cart(), "python", 0.5, base_settings={"functoin": "x:y"})
    with pytest.raises(UnknownNameError, match="unknown base policy 'pyhton'"):
        ResidualWrapper(Cart(), "pyhton", 0.5)
    for policy in (middle, Chunks()):
        with pytest.raises(ConfigError, match="base_settings are for a base policy that is given by its id"):
            ResidualWrapper(DictCart(), policy, 0.5, base_settings={})


def test_base_policy__that_does_not_fit_the_env_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"Chunks needs the observation 'position' .*; the env has state"):
        ResidualWrapper(Cart(), Chunks(), 0.5)
    with pytest.raises(ConfigError, match=r"base_policy must be .* not a float"):
        ResidualWrapper(Cart(), 0.5, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Replay cannot be called"):
        ResidualWrapper(Cart(), type("Replay", (), {}), 0.5)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (
            [[128.0, 0.0]],
            BasePolicyError,
            r"gave an action of shape \(1, 2\); expected \(2,\) \(batched=True",
        ),
        (1.0, BasePolicyError, r"gave an action of shape \(\); expected \(2,\)"),
        ([128.0, math.nan], NonFiniteError, "the base action of <lambda> is not finite"),
        ("left", BasePolicyError, "<lambda> gave a str that is not an action"),
        (None, BasePolicyError, "<lambda> gave a NoneType that is not an action"),
        ([[1.0], [2.0, 3.0]], BasePolicyError, "<lambda> gave a list that is not an action"),
    ],
    ids=str,
)
def test_base_policy__wrong_action_is_an_error(action: Any, error: type[Exception], message: str) -> None:
    env = ResidualWrapper(Cart(), lambda _: action, 0.5)
    with pytest.raises(error, match=message):
        env.reset(seed=0)


# --- wrong calls and envs -----------------------------------------------------------------------------------


def test_residual_wrapper__refuses_wrong_residuals() -> None:
    env = ResidualWrapper(Cart(), middle, 0.5)
    with pytest.raises(ResetNeeded):
        env.step([0.0, 0.0])
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"residual actions must have shape \(1, 2\), not \(1, 3\)"):
        env.step([0.0, 0.0, 0.0])
    with pytest.raises(NonFiniteError, match="the residual action is not finite"):
        env.step([0.0, math.nan])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(2), r"has actions Discrete\(2\); a residual needs a bounded Box"),
        (spaces.Box(-np.inf, np.inf, (2,)), "unbounded actions"),
    ],
)
def test_residual_wrapper__refuses_actions_without_bounds(space: Any, message: str) -> None:
    env = Cart()
    env.action_space = space
    with pytest.raises(ConfigError, match=message):
        ResidualWrapper(env, middle, 0.5)


def test_residual_wrapper__refuses_batched_envs_and_wrong_scales() -> None:
    with pytest.raises(ConfigError, match="use ResidualVectorWrapper"):
        ResidualWrapper(gymnasium.vector.SyncVectorEnv([Cart]), middle, 0.5)  # type: ignore[arg-type]
    like_maniskill = Cart()
    like_maniskill.single_observation_space = like_maniskill.observation_space  # type: ignore[attr-defined]
    ResidualWrapper(like_maniskill, middle, 0.5)
    like_maniskill.observation_space = spaces.Box(-100.0, 100.0, (1, 2))
    with pytest.raises(ConfigError, match="CPUGymWrapper"):
        ResidualWrapper(like_maniskill, middle, 0.5)
    with pytest.raises(ConfigError, match="residual_scale must be from 0 to 2, not nan"):
        ResidualWrapper(Cart(), middle, math.nan)
    again = ResidualWrapper(Cart(), middle, 0.5, flatten=False)
    with pytest.raises(ConfigError, match="has an observation base_action already"):
        ResidualWrapper(again, middle, 0.5)


# --- other libraries ----------------------------------------------------------------------------------------

ENVS = {
    "vector": (Cart, None),
    "vector as dict": (Cart, False),
    "dict": (DictCart, None),
    "dict as vector": (DictCart, True),
}


@pytest.mark.parametrize("case", ENVS)
def test_residual_wrapper__passes_the_check_of_gymnasium(case: str) -> None:
    make, flatten = ENVS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is different from the unwrapped version")
        check_env(ResidualWrapper(make(), middle, 0.5, flatten=flatten), skip_render_check=True)


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_residual_wrapper__is_made_again_from_its_spec() -> None:
    env = ResidualWrapper(gymnasium.make("Pendulum-v1"), lambda obs: obs[1:2], 0.5)
    assert env.spec is not None
    again = env.spec.make()
    np.testing.assert_array_equal(again.reset(seed=0)[0], env.reset(seed=0)[0])
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("case", ENVS)
def test_residual_wrapper__passes_the_check_of_stable_baselines3(case: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    make, flatten = ENVS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if case == "dict":  # of the env itself
            warnings.filterwarnings("ignore", ".*Nested observation spaces are not supported")
        checker.check_env(ResidualWrapper(make(), middle, 0.5, flatten=flatten))
