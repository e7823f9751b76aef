"""Building blocks for the sanity suites of tasks: `Check` (one row of the table) and `roll_out`.

The `doctor` of a task imports nothing above this module; it receives base policies through `MakePolicy`.
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
"""First episode seed of the checks; training and evaluation use other seeds."""

Act = Callable[[Obs, int], Tensor]
"""`act(obs, step) -> action` [B, A]."""


class Policy(Protocol):
    """A base policy as the checks use it."""

    def act(self, obs: Obs) -> Tensor:
        """The actions [B, A] for `obs`."""
        ...

    def reset(self, mask: Tensor) -> None:
        """Clear the state of the envs in `mask` [B] bool, whose episodes ended."""
        ...


MakePolicy = Callable[[str, VecEnv], Policy]
"""`make_policy(id, env)`: a new base policy with its default settings."""


@dataclass(frozen=True)
class Check:
    """One row of the sanity suite's table."""

    name: str
    """The property that is checked."""
    expected: str
    measured: str
    ok: bool
    """Whether the check passed."""


@dataclass
class Rollout:
    """One episode in each of B envs, of up to T steps. Images are left out.

    The rows of an env are valid while `running`.
    """

    seeds: list[int]
    """Episode seed of each env."""
    start: Obs
    """[B, …]: the observations after the reset."""
    obs: Obs
    """[T, B, …]: the true observations after each step."""
    reward: Tensor
    """[T, B]"""
    terms: dict[str, Tensor]
    """Each reward term by name, [T, B]."""
    terminated: Tensor
    truncated: Tensor
    """[T, B] bool."""
    running: Tensor
    """[T, B] bool: whether the step belongs to the env's episode."""
    final: dict[str, Tensor]
    """`final_info` of the episodes that ended, [B] each; zeros for the others."""

    @property
    def ended(self) -> Tensor:
        """[B] bool: whether the episode ended within the T steps."""
        return (self.terminated | self.truncated).any(0)


def roll_out(env: VecEnv, act: Act, seeds: Sequence[int], num_steps: int | None = None) -> Rollout:
    """Run one episode of `act` for each of the B `seeds`, for `num_steps` steps or until all have ended."""
    # Start the episodes. With an empty list of further seeds, an env stays idle once its episode has ended.
    env.episode_seeds.use_list([])
    obs, _ = env.reset(seed=list(seeds))
    start = obs
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)

    # Step the envs and keep a row for each step.
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

    # Stack the rows along T.
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
    """Check that zero actions hold the pose over whole episodes, and close `env`.

    Args:
        env: the envs; each runs one episode.
        names: observations [B, n] that must drift less than `limit`.
        limit: largest allowed drift (Euclidean norm), in the unit of the observation.
        unit: unit of the table, e.g. "mm".
        factor: converts the observation's unit to `unit`.
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
    actions = np.random.default_rng(seed).uniform(-1.0, 1.0, shape)
    return torch.from_numpy(actions.astype(np.float32)).to(env.device)


def doctor_seeds(n: int) -> list[int]:
    """The first `n` seeds of the checks."""
    return list(range(DOCTOR_SEED, DOCTOR_SEED + n))
