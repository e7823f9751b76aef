"""What the sanity suites of tasks are made of: one row of their table, and episodes run from outside.

A task's own `doctor` needs nothing above this module: what it does not make itself, it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.types import Obs

DOCTOR_SEED = 30_000_000
"""First episode seed of the checks: apart from those of training and of the evaluations."""

Act = Callable[[Obs, int], Tensor]
"""The actions [B, A] for an observation and the number of steps before it."""


class Policy(Protocol):
    """A base policy as the checks use it."""

    def act(self, obs: Obs) -> Tensor:
        """The actions [B, A] for an observation."""
        ...

    def reset(self, mask: Tensor) -> None:
        """Forget the worlds of `mask` [B], whose episodes ended."""
        ...


MakePolicy = Callable[[str, VecEnv], Policy]
"""A fresh base policy for an env, by its id, with its defaults."""


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    expected: str
    measured: str
    ok: bool


@dataclass
class Rollout:
    """One episode in each of B worlds, T steps. Rows of a world count while `running`; images are left out."""

    seeds: list[int]
    start: Obs
    obs: Obs
    """[T, B, …]: the true observations after each step."""
    reward: Tensor
    """[T, B]"""
    terms: dict[str, Tensor]
    """Each [T, B]."""
    terminated: Tensor
    truncated: Tensor
    """[T, B] bool."""
    running: Tensor
    """[T, B] bool: whether the step belongs to the world's episode."""
    final: dict[str, Tensor]
    """The episodes' figures [B], of those that ended."""

    @property
    def ended(self) -> Tensor:
        """Whether the episode ended within the T steps [B] bool."""
        return (self.terminated | self.truncated).any(0)


def roll_out(env: VecEnv, act: Act, seeds: Sequence[int], num_steps: int | None = None) -> Rollout:
    """Run the episode of each of the B `seeds`, for `num_steps` or to the end of the last one; `act` gives the actions."""
    env.episode_seeds.use_list([])  # a world whose episode ended stands still
    obs, _ = env.reset(seed=list(seeds))
    start, running = obs, torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    steps: list[dict[str, Any]] = []
    final: dict[str, Tensor] = {}
    while running.any() and len(steps) < (num_steps or env.max_episode_steps + 1):
        obs, reward, terminated, truncated, info = env.step(act(obs, len(steps)))
        true_obs = {name: value for name, value in info["final_obs"].items() if value.is_floating_point()}
        row = {"obs": true_obs, "terms": info["reward_terms"], "reward": reward}
        steps.append({**row, "terminated": terminated, "truncated": truncated, "running": running})
        ended = info["_final_info"] & running
        for name, value in info["final_info"].items():
            final[name] = torch.where(ended, value, final.get(name, torch.zeros_like(value)))
        running = running & ~ended

    def stacked(name: str) -> Tensor:
        return torch.stack([step[name] for step in steps])

    def stacked_by_name(name: str) -> dict[str, Tensor]:
        return {key: torch.stack([step[name][key] for step in steps]) for key in steps[0][name]}

    named = {name: stacked_by_name(name) for name in ("obs", "terms")}
    flat = {name: stacked(name) for name in ("reward", "terminated", "truncated", "running")}
    return Rollout(list(seeds), start, final=final, **named, **flat)  # type: ignore[arg-type]


def check_poses_hold(
    env: VecEnv, names: Sequence[str], limit: float, unit: str, factor: float = 1.0
) -> Iterator[Check]:
    """Zero actions hold the pose over whole episodes: each of the observations `names` [B, n] drifts less than `limit`.

    The rows tell it in `unit`, of which `factor` make one of the observation's.
    """
    zero = torch.zeros(env.num_envs, len(env.action_unit), device=env.device)
    log = roll_out(env, lambda *_: zero, doctor_seeds(env.num_envs))
    env.close()
    for name in names:
        drift = (log.obs[name] - log.start[name]).norm(dim=2)[log.running].max().item()
        expected = f"{name} drifts less than {limit * factor:g} {unit} in {len(log.reward)} steps"
        yield Check("zero action holds the pose", expected, f"{drift * factor:.4f} {unit}", drift < limit)


def random_actions(env: VecEnv, seed: int) -> Tensor:
    """Actions [B, A], uniform in [-1, 1]."""
    shape = (env.num_envs, len(env.action_unit))
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)).to(
        env.device
    )


def doctor_seeds(n: int) -> list[int]:
    """The first `n` seeds of the checks."""
    return list(range(DOCTOR_SEED, DOCTOR_SEED + n))
