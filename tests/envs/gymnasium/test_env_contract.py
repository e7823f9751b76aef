"""The vec_env contract on a toy Gymnasium env with nested observations and actions from 0 to 512."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import env_contract as suite
import gymnasium_toys
import pytest

from residual_rl.envs.gymnasium.vec_env import GymVecEnv
from residual_rl.registry import TaskSpec

SPEC = TaskSpec(
    id="toy",
    summary="",
    config="residual_rl.envs.gymnasium.config:GymnasiumEnvCfg",
    make="gymnasium_toys:no_factory",
    base_policy="zero",
    config_overrides={
        "env_id": "Toys/Point-v0",
        "env_modules": (gymnasium_toys.MODULE,),
        "max_episode_steps": 30,
    },
)
NOT_APPLICABLE = {
    # The task has no oracle; test_vec_env.py succeeds in other ways.
    "test_vec_env_step__success_terminates_and_does_not_truncate",
    # These are about `physics`, which only MuJoCo envs have; test_vec_env.py tests NaN values.
    "test_physics_read__does_not_write_to_returned_tensors",
    "test_physics_step__nan_is_an_error_in_the_step_where_it_appears",
}

pytestmark = pytest.mark.parametrize("spec", [SPEC], ids=lambda spec: spec.id)
globals().update(
    {
        name: test
        for name, test in vars(suite).items()
        if name.startswith("test_") and name not in NOT_APPLICABLE
    }
)


@pytest.fixture(autouse=True)
def _close_envs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[GymVecEnv] = []

    def make_env(spec: TaskSpec, num_envs: int = 3, num_threads: int = 1, **settings: Any) -> GymVecEnv:
        cfg = dataclasses.replace(spec.default_config(), **settings)
        made.append(GymVecEnv(cfg, num_envs, num_threads))
        return made[-1]

    monkeypatch.setattr(suite, "make", make_env)
    yield
    for env in made:
        env.close()
