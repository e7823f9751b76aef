"""The Gymnasium env: a single env in NumPy that equals the vec_env bit for bit and passes the env checkers of
other libraries."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from fakes import PointCfg
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import residual_rl
from residual_rl.base_policies.executor import make_base_policy
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.gymnasium_env import GymnasiumEnv
from residual_rl.registry import TASKS, TaskSpec

ID = "residual_rl/SO101Paper-v0"
SMALL = {"image_size": (40, 48)}


@pytest.fixture
def make() -> Iterator[Any]:
    envs = []

    def made(**kwargs: Any) -> GymnasiumEnv:
        envs.append(GymnasiumEnv("so101-paper", **kwargs))
        return envs[-1]

    yield made
    for env in envs:
        env.close()


def rollout(env: GymnasiumEnv, actions: np.ndarray) -> list[np.ndarray]:
    """Observation and reward of each step until the episode ends."""
    rows = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        rows.append(np.append(obs, np.float32(reward)))
        if terminated or truncated:
            break
    return rows


def draw_actions(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (n, 6)).astype(np.float32)


# --- registration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "imports", ["gymnasium, residual_rl", "residual_rl, gymnasium", "residual_rl.errors, gymnasium.spaces"]
)
def test_import__registers_the_envs_in_any_order_without_torch(imports: str) -> None:
    code = (
        f"import {imports}, sys; print(sorted(i for i in gymnasium.registry if i.startswith('residual_rl/')),"
        " 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "['residual_rl/SO101Paper-v0', 'residual_rl/SO101PaperPrecise-v0'] False"


def test_import__find_spec_of_gymnasium_does_not_prevent_registration() -> None:
    code = (
        "import residual_rl, importlib.util; importlib.util.find_spec('gymnasium'); import gymnasium;"
        f" gymnasium.spec('{ID}')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_gymnasium_id__registers_an_external_task_with_gymnasium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS, "_specs", dict(TASKS._specs))
    residual_rl.register_task(
        TaskSpec(
            "point",
            "",
            "fakes:PointCfg",
            "fakes:PointEnv",
            base_policy="zero",
            gymnasium_id="my_lab/Point-v3",
            config_overrides={},
        )
    )
    try:
        env = gymnasium.make("my_lab/Point-v3", max_episode_steps=None)
        assert env.unwrapped.residual_env.vec_env.max_episode_steps == PointCfg().max_episode_steps
        assert env.reset(seed=0)[0].shape == (5,)
    finally:
        del gymnasium.registry["my_lab/Point-v3"]


# --- spaces and checkers ------------------------------------------------------------------------------------


def test_observation_space__has_25_bounded_numbers_without_a_base_policy(make: Any) -> None:
    env = make()
    assert env.observation_space.shape == (25,)
    assert env.observation_space.dtype == np.float32
    assert env.observation_space.is_bounded("both")
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (6,), np.float32)


@pytest.mark.slow
def test_observation_space__contains_observations_under_extreme_actions() -> None:
    env = residual_rl.make_vec_env("so101-paper", 12)
    space, generator = env.single_observation_space, torch.Generator().manual_seed(0)
    env.reset(seed=0)
    for step in range(150):
        direction = 1.0 if step % 50 < 25 else -1.0  # sweeps to the joint limits, then noise
        action = (
            direction * torch.ones(12, 6)
            if step < 100
            else 2.0 * torch.rand(12, 6, generator=generator) - 1.0
        )
        obs = env.step(action)[0]
        for name, box in space.spaces.items():
            value = obs[name].numpy()
            assert (value >= box.low).all(), name
            assert (value <= box.high).all(), name


@pytest.mark.parametrize("kwargs", [{}, {"base_policy": "jacobian"}], ids=["bare", "jacobian"])
def test_gymnasium_env__passes_the_env_checkers(kwargs: dict[str, Any]) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(ID, **kwargs)
        check_env(env.unwrapped, skip_render_check=True)
        sb3.check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("obs_mode", ["rgb", "rgb+state"])
def test_gymnasium_env__passes_the_env_checkers_with_images(opengl: None, obs_mode: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(ID, obs_mode=obs_mode, render_mode="rgb_array", **SMALL).unwrapped
        check_env(env)
        sb3.check_env(env)
    names = {"rgb": ["top", "wrist"], "rgb+state": ["state", "top", "wrist"]}[obs_mode]
    assert sorted(env.observation_space.spaces) == names
    assert env.reset(seed=0)[0]["top"].shape == (40, 48, 3)


# --- the same episodes as the batched env -------------------------------------------------------------------


def test_gymnasium_env__episode_equals_that_of_the_vec_env_bit_for_bit(make: Any) -> None:
    steps, settings = 30, {"max_episode_steps": 30}
    batched = residual_rl.make_vec_env("so101-paper", num_envs=3, **settings)
    actions = np.stack([draw_actions(steps, seed) for seed in range(3)], 1)
    first = batched.reset(seed=40)[0]["state"].numpy()
    rows = []
    for action in actions:
        _, reward, _, truncated, info = batched.step(torch.from_numpy(action))
        rows.append(torch.cat([info["final_obs"]["state"], reward[:, None]], 1).numpy())
    assert truncated.all()
    for env_id in range(3):
        env = make(**settings)
        obs, _ = env.reset(seed=40 + env_id)
        np.testing.assert_array_equal(obs, first[env_id])
        np.testing.assert_array_equal(rollout(env, actions[:, env_id]), [row[env_id] for row in rows])


def test_make_vec_env__gives_each_env_the_next_seed() -> None:
    env = residual_rl.make_vec_env("so101-paper", num_envs=8)
    assert isinstance(env, residual_rl.VecEnv)
    assert env.num_envs == 8
    assert isinstance(env.model, mujoco.MjModel)
    assert env.reset(seed=5)[1]["seed"].tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    env.close()


# --- episodes one after the other ---------------------------------------------------------------------------


def test_gymnasium_env_reset__after_an_episode_uses_the_autoreset(
    make: Any,
) -> None:
    env = make(max_episode_steps=5)
    physics = env.residual_env.vec_env.physics
    env.reset(seed=1)
    actions = draw_actions(5)
    last = rollout(env, actions)[-1][:25]
    positions = physics.read()["joint_position"][0].float().numpy()
    assert not np.array_equal(last[:6], positions)  # the vec_env was reset, the observation is the final one
    with pytest.raises(ResetNeeded):
        env.step(actions[0])

    def refuse(*_: Any) -> None:
        raise AssertionError("the physics were reset again")

    physics.reset = refuse
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs[:6], positions)


def test_gymnasium_env_reset__later_seeds_depend_only_on_the_first_seed(make: Any) -> None:
    actions = draw_actions(4)
    starts = []
    for steps in (4, 2, 0):  # to the end, half of it, none
        env = make(max_episode_steps=4)
        first, _ = env.reset(seed=9)
        rollout(env, actions[:steps])
        second, _ = env.reset()
        rollout(env, actions[:steps])
        starts.append((first, second, env.reset()[0]))
    for other in starts[1:]:
        np.testing.assert_array_equal(starts[0], other)
    sheets = [tuple(obs[12:14]) for obs in starts[0]]
    assert len(set(sheets)) == 3
    neighbour, _ = env.reset(seed=10)
    assert not np.array_equal(neighbour, starts[0][1])


def test_gymnasium_env_reset__without_a_seed_episodes_differ(make: Any) -> None:
    assert not np.array_equal(make().reset()[0], make().reset()[0])


def test_gymnasium_env_step__before_reset_is_an_error(make: Any) -> None:
    with pytest.raises(ResetNeeded):
        make().step(np.zeros(6, np.float32))


# --- with a base policy -------------------------------------------------------------------------------------


def test_gymnasium_env_step__action_is_the_residual_of_the_base_policy(make: Any) -> None:
    env = make(base_policy="jacobian", residual_scale=0.5)
    obs, _ = env.reset(seed=3)
    vec_env = residual_rl.make_vec_env("so101-paper", 1)
    base = make_base_policy("jacobian", None, vec_env)
    vec_obs, _ = vec_env.reset(seed=3)
    np.testing.assert_array_equal(obs[25:], base.act(vec_obs)[0].numpy())
    for residual in draw_actions(5):
        expected = np.clip(obs[25:] + np.float32(0.5) * residual, -1.0, 1.0)
        obs, reward, _, _, info = env.step(residual)
        np.testing.assert_allclose(info["action"], expected, rtol=0, atol=1e-7)
        assert info["reward_terms"]["residual"] == pytest.approx(
            -0.001 * 0.25 * float(np.square(residual).sum()), rel=1e-5
        )
        assert reward == pytest.approx(sum(info["reward_terms"].values()), abs=1e-6)


def test_gymnasium_env_step__clips_the_residual(make: Any) -> None:
    env = make(base_policy="zero", residual_scale=0.25)
    env.reset(seed=0)
    info = env.step(np.array([5.0, -5.0, 1.0, 0.5, 0.0, 0.0], np.float32))[4]
    np.testing.assert_array_equal(info["action"], np.array([0.25, -0.25, 0.25, 0.125, 0.0, 0.0], np.float32))


def test_reward_terms__have_no_residual_without_a_base_policy(make: Any) -> None:
    env = make()
    env.reset(seed=0)
    info = env.step(np.ones(6, np.float32))[4]
    assert sorted(info["reward_terms"]) == ["distance", "step", "success", "yaw"]
    np.testing.assert_array_equal(info["action"], np.ones(6, np.float32))
    assert info["is_success"] is False


# --- rendering ----------------------------------------------------------------------------------------------


def test_gymnasium_env_render__last_frame_shows_the_end_of_the_episode(opengl: None, make: Any) -> None:
    env = make(max_episode_steps=3, render_mode="rgb_array", render_size=(60, 80), render_camera="top")
    env.reset(seed=0)
    before = env.render()
    rollout(env, np.zeros((3, 6), np.float32))
    last = env.render()
    env.reset()
    following = env.render()
    assert before.shape == (60, 80, 3)
    assert np.abs(last.astype(int) - before).mean() < 0.5  # nothing moved
    assert np.abs(last.astype(int) - following).mean() > 1.0  # another sheet


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"tolerence": 0.1}, UnknownNameError, "did you mean 'tolerance'"),
        ({"base_policy": "jacobean"}, UnknownNameError, "jacobian"),
        ({"residual_scale": 0.5}, ConfigError, "residual_scale requires"),
        ({"base_policy": "jacobian", "residual_scale": 3.0}, ConfigError, "from 0 to 2"),
        ({"tolerance": -1.0}, ConfigError, "tolerance must be above 0"),
        ({"render_mode": "ascii"}, ConfigError, "rgb_array"),
    ],
)
def test_gymnasium_env__invalid_setting_is_an_error(
    kwargs: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        GymnasiumEnv("so101-paper", **kwargs)


def test_render_mode__human_without_a_display_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ConfigError, match="needs a display"):
        GymnasiumEnv("so101-paper", render_mode="human")
    assert GymnasiumEnv("so101-paper").metadata["render_modes"] == ["rgb_array"]


def test_gymnasium_env__invalid_actions_and_options_are_errors(make: Any) -> None:
    env = make()
    with pytest.raises(ConfigError, match="options"):
        env.reset(options={"sheet_x": 0.3})
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"\(6,\)"):
        env.step(np.zeros((1, 6), np.float32))


# --- learners of other libraries ----------------------------------------------------------------------------


@pytest.mark.slow
def test_gymnasium_env__trains_with_sb3_in_subprocesses() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv

    vec_env = make_vec_env(
        f"residual_rl:{ID}", 2, seed=0, vec_env_cls=SubprocVecEnv, env_kwargs={"max_episode_steps": 20}
    )
    try:
        model = sb3.PPO("MlpPolicy", vec_env, n_steps=32, batch_size=32, n_epochs=1, device="cpu")
        before = model.policy.state_dict()["action_net.weight"].clone()
        model.learn(64)
        assert not torch.equal(model.policy.state_dict()["action_net.weight"], before)
        assert len(model.ep_info_buffer) == 2
    finally:
        vec_env.close()
