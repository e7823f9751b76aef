"""ManiSkill envs in worker processes, for the CPU simulation, which steps one env at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.envs.maniskill.sim_env import Step
from residual_rl.envs.maniskill.spec import EnvDescription, ManiSkillEnvCfg
from residual_rl.envs.workers.pool import WorkerPool
from residual_rl.envs.workers.shared_memory import ArraySpec
from residual_rl.types import Obs

_WORKER = "residual_rl.envs.maniskill.env_worker"


class ParallelEnvs:
    """B envs, divided evenly among worker processes.

    Args:
        cfg: the envs' settings.
        num_envs: B.
        num_workers: number of processes; at most B are started.

    Raises:
        ConfigError: the env cannot be created.
        WorkerError: a worker failed; the pool is then closed. Other methods raise it as well.
    """

    device = torch.device("cpu")
    remote = True

    def __init__(self, cfg: ManiSkillEnvCfg, num_envs: int, num_workers: int):
        self.num_envs = num_envs
        self.pool = WorkerPool(
            "ManiSkill",
            f"{_WORKER}:make",
            cfg.to_json(),
            num_envs,
            num_workers,
            preload=("mani_skill.envs", _WORKER),
        )
        # all workers have the same kind of env; its description gives the shapes of the shared arrays
        self.description = EnvDescription.from_json(self.pool.descriptions[0])
        self.deterministic = self.description.deterministic
        arrays = self.pool.share(shared_arrays(self.description))
        self._arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def reset(self, env_ids: Tensor, seeds: Tensor) -> None:
        """Start the episodes of `seeds` [n], each in [0, 2^31), in the envs `env_ids` [n]."""
        active = torch.zeros(self.num_envs, dtype=torch.bool)
        active[env_ids] = True
        self._arrays["seed"][env_ids] = seeds
        self._call("reset", active)

    def step(self, actions: Tensor, active: Tensor) -> Step:
        """Execute `actions` [B, A] in the `active` [B] envs. The others return the results of their last
        step again."""
        self._arrays["action"].copy_(actions)
        self._call("step", active)
        # copies: the workers overwrite the shared arrays in the next step
        reward, success, fail = (self._arrays[name].clone() for name in ("reward", "success", "fail"))
        return Step(self.observations(), reward, success, fail, self._copies("metrics/"))

    def observations(self) -> Obs:
        """The observations of all envs after their last reset or step."""
        return self._copies("obs/")

    def states(self) -> Tensor:
        """[B, 1 + S] float64: the episode's seed and the simulator's state of each env."""
        self.pool.call("states")
        return self._arrays["state"].clone()

    def set_states(self, env_ids: Tensor, states: Tensor) -> None:
        """Set the parts `state_parts` of the state in the envs `env_ids` [n] to `states` [n, S]."""
        active = torch.zeros(self.num_envs, dtype=torch.bool)
        active[env_ids] = True
        self._arrays["state"][env_ids, 1 : 1 + states.shape[1]] = states.double()
        self._call("set_states", active)

    def close(self) -> None:
        """End the processes."""
        self.pool.close()

    def _call(self, method: str, active: Tensor) -> None:
        self._arrays["active"].copy_(active)
        self.pool.call(method, active.tolist())

    def _copies(self, prefix: str) -> Obs:
        return {
            name.removeprefix(prefix): array.clone()
            for name, array in self._arrays.items()
            if name.startswith(prefix)
        }


def shared_arrays(description: EnvDescription) -> dict[str, ArraySpec]:
    """The shared arrays of one env: inputs, results of a step, observations (`obs/…`) and metrics
    (`metrics/…`)."""
    arrays = {
        "action": ArraySpec((len(description.action_unit),), "float32"),
        "active": ArraySpec((), "bool"),
        "seed": ArraySpec((), "int64"),
        "reward": ArraySpec((), "float32"),
        "success": ArraySpec((), "bool"),
        "fail": ArraySpec((), "bool"),
        "state": ArraySpec((description.state_size,), "float64"),
    }
    arrays |= {f"metrics/{name}": ArraySpec((), "float32") for name in description.metrics}
    return arrays | {f"obs/{name}": spec for name, spec in description.observations.items()}
