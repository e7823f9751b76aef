"""Demonstrations as an off-policy learner stores them: what was executed as a residual on top of what the base policy says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.composition import Composition, decompose, make_composition, residual_penalty
from residual_rl.config import TrainCfg
from residual_rl.errors import ConfigError
from residual_rl.factory import task_settings
from residual_rl.registry import TASKS
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Learner, Obs, Transition

if TYPE_CHECKING:
    from residual_rl.demos.episode import Demo
    from residual_rl.demos.reader import Demonstrations

_log = logging.getLogger(__name__)


def load_demonstrations(cfg: TrainCfg, learner: Learner, env: ResidualEnv) -> None:
    """Give the learner the demonstrations that its settings name; without such a setting nothing happens. Raises `ConfigError` and
    `CheckpointError` naming the file."""
    path, share = getattr(cfg.learner, "demos", None), getattr(cfg.learner, "demo_share", 0.0)
    if path is None:
        if share > 0.0:
            raise ConfigError(
                f"demo_share {share} needs demonstrations: name their file by --demos, or leave out --demo-share"
            )
        return
    from residual_rl.demos.reader import Demonstrations  # HDF5, which other runs need not wait for

    with Demonstrations.open(path) as demos:
        learner.load_demonstrations(list(episodes(demos, cfg, env)))  # type: ignore[attr-defined]  # who has the setting has the method


def episodes(demos: Demonstrations, cfg: TrainCfg, env: ResidualEnv) -> Iterator[Transition]:
    """Each demonstration up to its first end, with the time in front: [T, …], or [decisions, …] of whole chunks.

    The base policy is a fresh one that sees the stored observations as it would have seen them in `env`, whose observations and actions
    they must fit. `action` is what was executed, clipped to the action space, and `residual_action` is
    `clip((action - base_action) / scale, -1, 1)` with the final residual scale. Beyond its reach the two differ, and critics of composed
    actions (critic_input `sum`) see what was executed. Rewards are those that are stored, less the residual's penalty. An episode that
    ends without an end is truncated.
    """
    base_policy = make_base_policy(cfg.base_policy_id, cfg.base, env.vec_env)
    obs_keys = tuple(key for key in getattr(cfg.learner, "obs_keys", ("state",)) if key != "base_action")
    _check(demos, cfg, env, base_policy, obs_keys)
    beyond = total = 0
    for first in range(0, len(demos), env.num_envs):
        names = {*base_policy.policy.inputs, *obs_keys}
        batch = [demos.episode(i, names) for i in range(first, min(first + env.num_envs, len(demos)))]
        shown = [_Shown(demo, _length(demo)) for demo in batch]
        base, plans, scales = _plan(shown, base_policy, cfg, env)
        for env_id, episode in enumerate(shown):
            if episode.demo.rewards is None:
                raise ConfigError(
                    f"{demos.path} holds no rewards, which --demos needs: collect them with this release"
                )
            steps = slice(0, episode.steps + 1)
            transition, out_of_reach = _episode(
                episode, base[steps, env_id], plans[steps, env_id], scales[steps, env_id], obs_keys, cfg, env
            )
            beyond, total = beyond + out_of_reach, total + episode.steps * env.vec_env.action_unit.numel()
            yield transition
    if beyond > 0.5 * total:
        _log.warning(
            "%.0f %% of what %s shows lies beyond the residual's reach on top of %s: a larger --residual-scale would reach more of it",
            100 * beyond / total, demos.path, base_policy.name,
        )  # fmt: skip


class _Shown(NamedTuple):
    demo: Demo
    steps: int
    """T: up to its first end."""


def _length(demo: Demo) -> int:
    ends = np.flatnonzero(demo.terminated | demo.truncated)
    return int(ends[0]) + 1 if len(ends) else len(demo)


def _plan(
    shown: list[_Shown], base_policy: BasePolicyExecutor, cfg: TrainCfg, env: ResidualEnv
) -> tuple[Tensor, Tensor, Tensor]:
    """What the base policy says to each observation, the final ones included: base actions [T + 1, B, A], what a decision sees of them
    [T + 1, B, A or n·A], and the residual scales [T + 1, B, 1]."""
    whole = cfg.residual.chunk == "whole"
    composition = _final_composition(cfg, env)
    steps = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device) - 1
    steps[: len(shown)] = torch.tensor([episode.steps for episode in shown], device=env.device)
    base_policy.reset(torch.ones(env.num_envs, dtype=torch.bool, device=env.device))
    base, plans, scales = [], [], []
    for t in range(int(steps.max()) + 1):
        if whole:
            base_policy.drop_chunks(steps == t)  # the value of the last observation is that of a new plan
        base.append(base_policy.act(_observation(shown, t, env, base_policy.policy.inputs), steps >= t))
        plans.append(base_policy.chunk.flatten(1).clone() if whole else base[-1])
        scale = composition.residual_scale(base_policy.uncertainty)
        scales.append(torch.as_tensor(scale, device=env.device).expand(env.num_envs, 1))
    return torch.stack(base), torch.stack(plans), torch.stack(scales)


def _observation(shown: list[_Shown], t: int, env: ResidualEnv, names: Any) -> Obs:
    """The observations [B, …] of step `t`, in envs that are over or too many the last ones."""
    rows = [episode.demo.obs for episode in shown]
    last = [min(t, episode.steps) for episode in shown]
    filling = env.num_envs - len(shown)
    return {
        name: _tensor(
            np.stack(
                [
                    *(row[name][i] for row, i in zip(rows, last, strict=True)),
                    *[rows[-1][name][last[-1]]] * filling,
                ]
            ),
            name,
            env,
        )
        for name in names
    }


def _tensor(value: Any, name: str, env: ResidualEnv) -> Tensor:
    space: Any = env.vec_env.single_observation_space
    return torch.as_tensor(np.asarray(value, space[name].dtype), device=env.device)


def _episode(
    shown: _Shown,
    base: Tensor,
    plans: Tensor,
    scales: Tensor,
    obs_keys: tuple[str, ...],
    cfg: TrainCfg,
    env: ResidualEnv,
) -> tuple[Transition, int]:
    """The transitions of one episode, and how many of its numbers were beyond the residual's reach."""
    demo, steps = shown
    n = env.steps_per_action
    action = torch.as_tensor(demo.actions[:steps], device=env.device).clamp(-1.0, 1.0)
    composition = _final_composition(cfg, env)
    exact = decompose(base[:steps], action, composition.in_actions(scales[:steps]))
    residual = exact.clamp(-1.0, 1.0)
    penalty = residual_penalty(residual, scales[:steps], cfg.residual.residual_penalty)
    reward = torch.as_tensor(demo.rewards[:steps], device=env.device) + penalty  # type: ignore[index]  # checked before

    decisions = -(-steps // n)
    now = torch.arange(decisions, device=env.device) * n
    later = (now + n).clamp(max=steps)
    ends = later == steps
    terminated = ends & bool(demo.terminated[steps - 1])
    obs = {name: _tensor(demo.obs[name][: steps + 1], name, env) for name in obs_keys} | {
        "base_action": plans
    }

    def joined(value: Tensor) -> Tensor:
        """[T, A] → [decisions, n·A], 0 after the end."""
        return (
            torch.cat([value, value.new_zeros(decisions * n - steps, *value.shape[1:])])
            .unflatten(0, (decisions, n))
            .flatten(1)
        )

    def told(at: Tensor) -> float | Tensor | None:
        """What the composition scales decisions by, as the env tells it."""
        if composition.adaptive:
            return composition.in_actions(scales[at]) if n == 1 else None
        shared = composition.in_actions(composition.scale)
        return shared.repeat(n) if isinstance(shared, Tensor) else shared

    transition = Transition(
        obs={name: value[now] for name, value in obs.items()},
        residual_action=joined(residual),
        reward=joined(reward).sum(1) if n > 1 else reward,
        terminated=terminated,
        truncated=ends & ~terminated,
        next_obs={name: value[later] for name, value in obs.items()},
        base_action=plans[now],
        action=joined(action),
        effective_scale=told(now),
        next_effective_scale=told(later),
    )
    return transition, int((exact.abs() > 1.0 + 1e-4).sum())


def _final_composition(cfg: TrainCfg, env: ResidualEnv) -> Composition:
    """The composition at the end of training, whose scale demonstrations are stored with."""
    return make_composition(cfg.residual, cfg.residual.residual_scale, env.vec_env.residual_unit)


def _check(
    demos: Demonstrations,
    cfg: TrainCfg,
    env: ResidualEnv,
    base_policy: BasePolicyExecutor,
    obs_keys: tuple[str, ...],
) -> None:
    """Raise `ConfigError` where the demonstrations are not of this task, or lack what the learner or the base policy needs."""
    if demos.task_id != cfg.task_id:
        raise ConfigError(
            f"{demos.path} holds demonstrations of task {demos.task_id!r}, and this run trains on {cfg.task_id!r}: "
            f"collect them with `residual-rl demos collect {cfg.task_id}`"
        )
    action_dim = env.vec_env.action_unit.numel()
    if demos.action_dim != action_dim:
        raise ConfigError(
            f"{demos.path} holds actions of {demos.action_dim} numbers, and task {cfg.task_id!r} takes {action_dim}"
        )
    observed: Any = env.vec_env.single_observation_space
    needs = dict.fromkeys(obs_keys, f"learner {cfg.learner_id!r}") | dict.fromkeys(
        base_policy.policy.inputs, base_policy.name
    )
    for name, who in needs.items():
        stored = demos.obs_shapes.get(name)
        if stored is None:
            there = ", ".join(sorted(demos.obs_shapes)) or "none at all"
            raise ConfigError(
                f"{demos.path} lacks the observation {name!r}, which {who} needs; it holds {there}"
            )
        if stored != tuple(observed[name].shape):
            raise ConfigError(
                f"{demos.path} holds {name!r} of shape {list(stored)}, and task {cfg.task_id!r} observes {list(observed[name].shape)}"
            )
    mine = task_settings(cfg, env.vec_env)
    others = {
        name: f"{name} {value!r} (here {mine[name]!r})"
        for name, value in demos.task_settings.items()
        if mine.get(name, value) != value
    }
    decisive = [told for name, told in others.items() if name in TASKS.get(cfg.task_id).demo_settings]
    if decisive:
        raise ConfigError(
            f"{demos.path} was collected with other tasks, actions or rewards than this run's, and critics would take both for one: "
            f"{', '.join(decisive)}; collect demonstrations with the settings of the run"
        )
    if others:
        _log.warning(
            "%s was collected with other settings of the task: %s", demos.path, ", ".join(others.values())
        )
