"""The vec_env contract on ManiSkill's CPU simulation, with worker processes that earlier tests have used."""

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
"""One task whose resets keep the scene, and one whose resets rebuild it."""
NOT_APPLICABLE = {
    # The task has no oracle; test_sim_env.py pushes the cube instead.
    "test_vec_env_step__success_terminates_and_does_not_truncate",
    # PhysX does not restore contacts; test_restoring.py compares with a tolerance.
    "test_vec_env_restore__episodes_go_on_bit_for_bit_in_other_envs",
    # These are about `physics`, which only MuJoCo envs have; test_vec_env.py tests NaN values.
    "test_physics_read__does_not_write_to_returned_tensors",
    "test_physics_step__nan_is_an_error_in_the_step_where_it_appears",
}

pytestmark = [
    pytest.mark.maniskill,
    pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.config_overrides["env_id"]),
]
globals().update(
    {
        name: test
        for name, test in vars(suite).items()
        if name.startswith("test_") and name not in NOT_APPLICABLE
    }
)

_used: dict[tuple[str, int, int], list[ParallelEnvs]] = defaultdict(list)
"""Unused envs, by task, number of envs and number of worker processes."""


@pytest.fixture(scope="module", autouse=True)
def _close() -> Iterator[None]:
    yield
    for unused in _used.values():
        for sim in unused:
            sim.close()


@pytest.fixture(autouse=True)
def _reuse_envs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reuse envs: creating them is slow, and a reset must make a used env equal to a new one."""
    given: list[tuple[tuple[str, int, int], ParallelEnvs]] = []

    def make_env(spec: TaskSpec, num_envs: int = 3, num_threads: int = 1, **settings: Any) -> ManiSkillVecEnv:
        cfg = dataclasses.replace(spec.default_config(), **settings)
        if num_envs < 1:
            return make(cfg, num_envs, num_threads, "cpu")
        key = (cfg.env_id, num_envs, num_threads)
        sim = _used[key].pop() if _used[key] else ParallelEnvs(make_env_cfg(cfg), num_envs, num_threads)
        given.append((key, sim))
        env = make_vec_env(sim, cfg, make_env_cfg(cfg))
        env.closed = True  # keeps the garbage collector from closing `sim`
        return env

    monkeypatch.setattr(suite, "make", make_env)
    yield
    for key, sim in given:
        _used[key].append(sim)
