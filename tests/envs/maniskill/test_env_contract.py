"""The vec_env contract, on ManiSkill's CPU simulation: the suite that every task runs, with worlds that
earlier tests have used."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import env_contract as suite
import pytest

from residual_rl.envs.maniskill.parallel_envs import ParallelEnvs
from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv
from residual_rl.registry import TaskSpec
from residual_rl.tasks.maniskill.factory import make, make_env_cfg, make_vec_env

SPEC = TaskSpec(
    id="maniskill",
    summary="",
    config="residual_rl.tasks.maniskill.config:ManiSkillCfg",
    make="residual_rl.tasks.maniskill.factory:make",
    base_policy="zero",
    config_overrides={"env_id": "PushCube-v1", "max_episode_steps": 50},
)
PICK_BOX = {"env_id": "PickBox-v1", "robot_uids": "a1_galaxea", "max_episode_steps": 50}
SPECS = [SPEC, dataclasses.replace(SPEC, config_overrides=PICK_BOX)]
"""One whose resets leave the scene as it is, and one whose resets build it anew."""
NOT_OF_THIS_TASK = {
    "test_vec_env_step__success_terminates_and_does_not_truncate",  # no oracle; test_worlds.py has it
    "test_physics_read__returned_quantities_do_not_change",  # only MuJoCo envs have `physics`
    "test_vec_env_step__nan_in_the_simulation_is_an_error_in_its_step",  # test_maniskill_vec_env.py has it
}

pytestmark = [
    pytest.mark.maniskill,
    pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.config_overrides["env_id"]),
]
globals().update(
    {
        name: test
        for name, test in vars(suite).items()
        if name.startswith("test_") and name not in NOT_OF_THIS_TASK
    }
)

_used: dict[tuple[str, int, int], list[ParallelEnvs]] = defaultdict(list)
"""SimEnvs that no test has now, by their task, their number and that of their processes."""


@pytest.fixture(scope="module", autouse=True)
def _close() -> Iterator[None]:
    yield
    for worlds in _used.values():
        for one in worlds:
            one.close()


@pytest.fixture(autouse=True)
def _reuse_worlds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Building worlds takes long, and a reset is to make used ones like new."""
    given: list[tuple[tuple[str, int, int], ParallelEnvs]] = []

    def make_env(spec: TaskSpec, num_envs: int = 3, num_threads: int = 1, **settings: Any) -> ManiSkillVecEnv:
        cfg = dataclasses.replace(spec.default_config(), **settings)
        if num_envs < 1:
            return make(cfg, num_envs, num_threads, "cpu")
        key = (cfg.env_id, num_envs, num_threads)
        worlds = _used[key].pop() if _used[key] else ParallelEnvs(make_env_cfg(cfg), num_envs, num_threads)
        given.append((key, worlds))
        env = make_vec_env(worlds, cfg, make_env_cfg(cfg))
        env.closed = True  # or it would close the worlds with it
        return env

    monkeypatch.setattr(suite, "make", make_env)
    yield
    for key, worlds in given:
        _used[key].append(worlds)
