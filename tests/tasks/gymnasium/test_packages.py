"""The adapters of MetaWorld and Fetch, and the experts, in the environments of `make setup-metaworld` and the
like."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import env_packages
import pytest
import torch
from tiny_runs import Fails

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.envs.gymnasium.vec_env import GymVecEnv
from residual_rl.envs.mujoco.gl_backend import display_is_named, headless_backend
from residual_rl.factory import make_vec_env
from residual_rl.tasks.gymnasium.env_package import _ADAPTERS

pytestmark = pytest.mark.envs
Make = Callable[..., GymVecEnv]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes an env of a task whose environment is there, and closes it after the test."""
    made: list[Any] = []

    def make_env(task_id: str, num_envs: int, **settings: Any) -> Any:
        env_packages.require(task_id)
        made.append(make_vec_env(task_id, num_envs, num_threads=1, **settings))
        return made[-1]

    yield make_env
    for env in made:
        env.close()


def solved(env: GymVecEnv, first_seed: int) -> int:
    """The number of episodes that the expert solves, one in each env."""
    policy = make_base_policy("expert", None, env)
    env.episode_seeds.use_list([])
    obs, _ = env.reset(seed=list(range(first_seed, first_seed + env.num_envs)))
    success = torch.zeros(env.num_envs, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        obs, _, terminated, _, _ = env.step(policy.act(obs))
        success |= terminated
        if not env.active.any():
            break
    return int(success.sum())


# --- MetaWorld ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["peg-insert-side-v3", "drawer-close-v3", "soccer-v3"])
def test_meta_world_adapter__episodes_repeat_and_the_expert_solves_them(env_id: str, make: Make) -> None:
    env = make("metaworld", 4, env_id=env_id)
    assert env.deterministic
    assert (env.max_episode_steps, env.control_hz) == (500, 80.0)
    obs, _ = env.reset(seed=[3, 3, 4, 5])
    assert torch.equal(obs["state"][0], obs["state"][1])
    assert len(obs["state"].unique(dim=0)) == 3
    goals = obs["state"][:, -3:]
    assert (goals != 0).any(1).all()  # they are observed
    assert solved(env, 100) >= 3


def test_meta_world_adapter__more_than_500_steps_are_possible(make: Make) -> None:
    env = make("metaworld", 1, max_episode_steps=505)
    env.reset(seed=0)
    for step in range(505):
        *_, truncated, info = env.step(torch.zeros(1, 4))
        assert truncated.item() == (step == 504)
    assert info["final_info"]["episode_length"].tolist() == [505]


def test_meta_world_adapter__an_unknown_env_is_one_line(fails: Fails) -> None:
    env_packages.require("metaworld")
    message = fails("eval", "metaworld", "--env-id", "peg-insert-v3", "--n-episodes", "1")
    assert "peg-insert-side-v3" in message


# --- Fetch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["FetchReach-v4", "FetchPush-v4", "FetchPickAndPlace-v4"])
def test_fetch_adapter__the_expert_solves_the_task(env_id: str, make: Make) -> None:
    env = make("fetch", 20, env_id=env_id)
    assert env.deterministic
    assert (env.max_episode_steps, env.control_hz) == (50, 25.0)
    assert solved(env, 100) >= 19


def test_fetch_adapter__fetch_slide_has_no_expert(make: Make) -> None:
    env = make("fetch", 1, env_id="FetchSlide-v4")
    assert "expert_action" not in env.single_observation_space.spaces  # type: ignore[attr-defined]


SHIM = """
import sys
import gymnasium, gymnasium_robotics
sys.path.insert(0, sys.argv[1])
from fetch import use_integer_joint_types
try:
    gymnasium.make("FetchReach-v4")
except AssertionError:
    print("fails without it")
use_integer_joint_types()
env = gymnasium.make("FetchReach-v4").unwrapped
before = env.reset(seed=0)[0]["achieved_goal"]
for _ in range(5):
    obs, *_ = env.step(env.action_space.high * [1, 0, 0, 1])
print("moves by", obs["achieved_goal"] - before)
import mujoco
print("mujoco is unchanged:", type(mujoco.mjtJoint.mjJNT_HINGE).__name__ == "mjtJoint")
"""


def test_use_integer_joint_types__makes_fetch_work_with_mujoco_4() -> None:
    python = env_packages.require("fetch").python()
    done = subprocess.run([python, "-c", SHIM, str(_ADAPTERS)], capture_output=True, text=True, check=True)
    first, moves, unchanged = done.stdout.splitlines()
    assert first == "fails without it"
    x, y, z = map(float, moves.removeprefix("moves by").strip(" []").split())
    assert x > 0.1  # five steps of at most 5 cm
    assert abs(y) < 0.01
    assert abs(z) < 0.01
    assert unchanged == "mujoco is unchanged: True"


@pytest.mark.parametrize("task_id", ["fetch", "adroit", "metaworld", "pusht"])
def test_keep_state_in_render__rendering_does_not_change_an_episode(task_id: str, make: Make) -> None:
    if not headless_backend() and not display_is_named():
        pytest.skip("needs EGL, OSMesa or a display")
    drawn, plain = make(task_id, 1), make(task_id, 1)
    generator = torch.Generator().manual_seed(0)
    for env in (drawn, plain):
        env.reset(seed=7)
    for _ in range(20):
        assert drawn.scenes().float().std() > 1.0
        action = 2.0 * torch.rand(1, len(drawn.action_unit), generator=generator) - 1.0
        (one, *_), (other, *_) = drawn.step(action), plain.step(action)
        assert all(torch.equal(one[name], other[name]) for name in one)
