"""The vec_env contract on the tasks for packages of envs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import env_contract as suite
import env_packages
import pytest

from residual_rl.envs.vec_env import VecEnv
from residual_rl.registry import TASKS, TaskSpec, load

SPECS = [TASKS.get(task_id) for task_id in env_packages.TASK_IDS]
WITHOUT_EXPERT = ("adroit", "pusht")
ABOUT_PHYSICS = (
    "test_physics_read__does_not_write_to_returned_tensors",
    "test_physics_step__nan_is_an_error_in_the_step_where_it_appears",
)

pytestmark = [pytest.mark.envs, pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)]
globals().update(
    {
        name: test
        for name, test in vars(suite).items()
        if name.startswith("test_") and name not in ABOUT_PHYSICS
    }
)


@pytest.fixture(autouse=True)
def _close_envs(
    spec: TaskSpec, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    env_packages.require(spec.id)
    if "success_terminates" in request.node.name and spec.id in WITHOUT_EXPERT:
        pytest.skip("its envs have no expert")
    made: list[VecEnv] = []

    def make_env(spec: TaskSpec, num_envs: int = 3, num_threads: int = 1, **settings: Any) -> VecEnv:
        cfg = dataclasses.replace(spec.default_config(), **settings)
        made.append(load(spec.make)(cfg, num_envs, num_threads, "cpu"))
        return made[-1]

    monkeypatch.setattr(suite, "make", make_env)
    # in some episodes of FetchPush, such as 4002, the object is at its goal from the start
    monkeypatch.setattr(suite, "FIRST_SEED", 4003)
    yield
    for env in made:
        env.close()
