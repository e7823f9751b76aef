"""Conversion of demonstrations to transitions for off-policy learners, with residuals on top of the base
policy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.composition import Composition, compose, decompose, make_composition, residual_penalty
from residual_rl.config import TrainCfg
from residual_rl.demos.foreign import episode_in_task
from residual_rl.envs.spaces import BASE_OBS
from residual_rl.errors import ConfigError
from residual_rl.factory import task_settings, with_obs_keys
from residual_rl.registry import TASKS
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Learner, Obs, Transition

if TYPE_CHECKING:
    from residual_rl.demos.episode import Demo
    from residual_rl.demos.reader import Demonstrations

_log = logging.getLogger(__name__)


def load_demonstrations(cfg: TrainCfg, learner: Learner, env: ResidualEnv) -> None:
    """Load the demonstrations `cfg.learner.demos`, if set, into the learner.

    Raises `ConfigError` and `CheckpointError`, which name the file.
    """
    path, share = getattr(cfg.learner, "demos", None), getattr(cfg.learner, "demo_share", 0.0)
    if path is None:
        if share > 0.0:
            raise ConfigError(
                f"demo_share {share} needs demonstrations: set their file with --demos, or leave out "
                "--demo-share"
            )
        return
    from residual_rl.demos.reader import Demonstrations  # imported here because HDF5 is slow to import

    with Demonstrations.open(path) as demos:
        transitions = list(episodes(demos, cfg, env))
        if not any(episode.success is None or episode.success.any() for episode in transitions):
            raise ConfigError(
                f"none of the {len(transitions)} demonstrations in {path} succeeds, so they do not show how "
                f"to solve the task: collect others with `residual-rl demos collect {cfg.task_id} "
                "--only-success`, or leave out --demos"
            )
        # Learners with the setting `demos` have this method.
        learner.load_demonstrations(transitions)  # type: ignore[attr-defined]


def episodes(demos: Demonstrations, cfg: TrainCfg, env: ResidualEnv) -> Iterator[Transition]:
    """Each demonstration up to its first end as transitions [T, …], or [decisions, …] for whole chunks.

    A new base policy is queried with the stored observations. `action` is the executed action, clipped to the
    action space, and `residual_action` is `clip((action - base_action) / scale, -1, 1)` with the final
    residual scale. Where the clip is active, the composed action differs from `action`, and critics of
    composed actions (critic_input `sum`) see `action`. Where an episode ends within a chunk, its remaining
    actions are those of the base policy, with the residuals of one chunk earlier. Rewards are the stored ones
    minus the residual's penalty. An episode without a terminated or truncated step is truncated at its last
    one.
    """
    base_policy = make_base_policy(cfg.base_policy_id, cfg.base, env.vec_env)
    cfg = with_obs_keys(cfg, env)
    obs_keys = tuple(key for key in getattr(cfg.learner, "obs_keys", ("state",)) if key not in BASE_OBS)
    _check(demos, cfg, env, base_policy, obs_keys)
    clipped = total = 0
    count = min(len(demos), getattr(cfg.learner, "demo_episodes", None) or len(demos))
    for first in range(0, count, env.num_envs):
        names = {*base_policy.policy.inputs, *obs_keys}
        last = min(first + env.num_envs, count)
        batch = [episode_in_task(demos, i, names, cfg) for i in range(first, last)]
        slices = [DemoSlice(demo, _length(demo)) for demo in batch]
        base, seen, scales = _query_base_policy(slices, base_policy, cfg, env)
        for env_id, episode in enumerate(slices):
            if episode.demo.rewards is None:
                raise ConfigError(f"{demos.path} has no rewards, which --demos needs: collect it again")
            steps = slice(0, episode.steps + 1)
            of_base = {name: value[steps, env_id] for name, value in seen.items()}
            transition, num_clipped = _episode(
                episode, base[steps, env_id], of_base, scales[steps, env_id], obs_keys, cfg, env
            )
            clipped += num_clipped
            total += episode.steps * env.vec_env.action_unit.numel()
            yield transition
    if clipped > 0.5 * total:
        _log.warning(
            "%.0f %% of the actions in %s need a larger residual on top of %s than the residual scale "
            "allows: a larger --residual-scale would cover more of them",
            100 * clipped / total,
            demos.path,
            base_policy.name,
        )


class DemoSlice(NamedTuple):
    """A demonstration up to its first end."""

    demo: Demo
    """The whole demonstration."""
    steps: int
    """T: number of steps up to the first end."""


def _length(demo: Demo) -> int:
    ends = np.flatnonzero(demo.terminated | demo.truncated)
    return int(ends[0]) + 1 if len(ends) else len(demo)


def _query_base_policy(
    slices: list[DemoSlice], base_policy: BasePolicyExecutor, cfg: TrainCfg, env: ResidualEnv
) -> tuple[Tensor, Obs, Tensor]:
    """Query the base policy at each observation, the final ones included.

    Returns the base actions [T + 1, B, A], what a decision observes of the base policy ([T + 1, B, …] each;
    `base_action` is [T + 1, B, A or n·A]), and the residual scales [T + 1, B, 1].
    """
    whole = cfg.residual.chunk == "whole"
    composition = _final_composition(cfg, env)
    steps = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device) - 1
    steps[: len(slices)] = torch.tensor([episode.steps for episode in slices], device=env.device)
    base_policy.reset(torch.ones(env.num_envs, dtype=torch.bool, device=env.device))
    base, seen, scales = [], [], []
    for t in range(int(steps.max()) + 1):
        if whole:
            base_policy.drop_chunks(steps == t)  # the last observation is evaluated with a new chunk
        base.append(base_policy.act(_observation(slices, t, env, base_policy.policy.inputs), steps >= t))
        observed = {"base_action": base_policy.chunk.flatten(1).clone() if whole else base[-1]}
        observed["elapsed_steps"] = base_policy.elapsed_steps
        seen.append(observed | (base_policy.chunk_obs if env.chunk_obs else {}))
        scale = composition.residual_scale(base_policy.uncertainty)
        scales.append(torch.as_tensor(scale, device=env.device).expand(env.num_envs, 1))
    stacked = {name: torch.stack([obs[name] for obs in seen]) for name in seen[0]}
    return torch.stack(base), stacked, torch.stack(scales)


def _observation(slices: list[DemoSlice], t: int, env: ResidualEnv, names: Any) -> Obs:
    """The observations [B, …] of step `t`; ended episodes and surplus envs repeat the last observation."""
    obs = {}
    for name in names:
        rows = [episode.demo.obs[name][min(t, episode.steps)] for episode in slices]
        rows += [rows[-1]] * (env.num_envs - len(slices))
        obs[name] = _tensor(np.stack(rows), name, env)
    return obs


def _tensor(value: Any, name: str, env: ResidualEnv) -> Tensor:
    space: Any = env.vec_env.single_observation_space
    return torch.as_tensor(np.asarray(value, space[name].dtype), device=env.device)


def _episode(
    episode: DemoSlice,
    base: Tensor,
    of_base: Obs,
    scales: Tensor,
    obs_keys: tuple[str, ...],
    cfg: TrainCfg,
    env: ResidualEnv,
) -> tuple[Transition, int]:
    """The transitions of one episode, and the number of clipped entries of its residual."""
    # The residual of each step, and the penalised reward.
    demo, steps = episode
    n = env.steps_per_action
    action = torch.as_tensor(demo.actions[:steps], device=env.device).clamp(-1.0, 1.0)
    composition = _final_composition(cfg, env)
    exact = decompose(base[:steps], action, composition.in_actions(scales[:steps]))
    residual = exact.clamp(-1.0, 1.0)
    penalty = residual_penalty(residual, scales[:steps], cfg.residual.residual_penalty)
    reward = torch.as_tensor(demo.rewards[:steps], device=env.device) + penalty  # type: ignore[index]

    # Decisions of n steps each.
    decisions = -(-steps // n)
    now = torch.arange(decisions, device=env.device) * n
    later = (now + n).clamp(max=steps)
    ends = later == steps
    terminated = ends & bool(demo.terminated[steps - 1])
    obs = {name: _tensor(demo.obs[name][: steps + 1], name, env) for name in obs_keys}
    obs |= of_base
    chunks = of_base["base_action"]

    def chunked(value: Tensor) -> Tensor:
        """[T, …] → [decisions, n, …], padded with 0."""
        padding = value.new_zeros(decisions * n - steps, *value.shape[1:])
        return torch.cat([value, padding]).unflatten(0, (decisions, n))

    # Steps after the end, as they would have been executed: the action must not show when the episode ended.
    step = torch.arange(decisions * n, device=env.device).view(decisions, n)
    residuals = residual[torch.where(step < steps, step, step - n).clamp(min=0)]
    scale = composition.in_actions(scales[now])
    planned = compose(chunks[now].unflatten(1, (n, -1)), residuals, torch.as_tensor(scale)[:, None])
    actions = torch.where(step[..., None] < steps, chunked(action), planned)

    def effective_scale(at: Tensor) -> float | Tensor | None:
        """The effective scale of the decisions at steps `at`, as in `Transition`."""
        if composition.adaptive:
            return composition.in_actions(scales[at]) if n == 1 else None
        shared = composition.in_actions(composition.scale)
        return shared.repeat(n) if isinstance(shared, Tensor) else shared

    transition = Transition(
        obs={name: value[now] for name, value in obs.items()},
        residual_action=residuals.flatten(1),
        reward=chunked(reward).sum(1) if n > 1 else reward,
        terminated=terminated,
        truncated=ends & ~terminated,
        next_obs={name: value[later] for name, value in obs.items()},
        base_action=chunks[now],
        action=actions.flatten(1),
        effective_scale=effective_scale(now),
        next_effective_scale=effective_scale(later),
        success=None if demo.success is None else ends & bool(demo.success[:steps].any()),
    )
    return transition, int((exact.abs() > 1.0 + 1e-4).sum())


def _final_composition(cfg: TrainCfg, env: ResidualEnv) -> Composition:
    """The composition at the end of training, whose scale is used for demonstrations."""
    return make_composition(cfg.residual, cfg.residual.residual_scale, env.vec_env.residual_unit)


def _check(
    demos: Demonstrations,
    cfg: TrainCfg,
    env: ResidualEnv,
    base_policy: BasePolicyExecutor,
    obs_keys: tuple[str, ...],
) -> None:
    """Raise `ConfigError` if the demonstrations do not fit the task, the learner or the base policy."""
    # Task and actions.
    if demos.names_task and demos.task_id != cfg.task_id:
        raise ConfigError(
            f"{demos.path} has demonstrations of task {demos.task_id!r}, but this run trains on "
            f"{cfg.task_id!r}: collect them with `residual-rl demos collect {cfg.task_id}`"
        )
    action_dim = env.vec_env.action_unit.numel()
    if demos.action_dim != action_dim:
        raise ConfigError(
            f"{demos.path} has actions of size {demos.action_dim}, but those of task {cfg.task_id!r} have "
            f"size {action_dim}"
        )

    # Observations.
    observed: Any = env.vec_env.single_observation_space
    needs = dict.fromkeys(obs_keys, f"learner {cfg.learner_id!r}") | dict.fromkeys(
        base_policy.policy.inputs, base_policy.name
    )
    for name, who in needs.items():
        stored = demos.obs_shapes.get(name)
        if stored is None:
            there = ", ".join(sorted(demos.obs_shapes)) or "no observations"
            raise ConfigError(
                f"{demos.path} lacks the observation {name!r}, which {who} needs; it has {there}"
            )
        if stored != tuple(observed[name].shape):
            here = list(observed[name].shape)
            raise ConfigError(
                f"{demos.path} has {name!r} of shape {list(stored)}, but task {cfg.task_id!r} observes {here}"
            )

    # Task settings: some must be equal, others only give a warning.
    mine = task_settings(cfg, env.vec_env)
    others = {
        name: f"{name} {value!r} (here {mine[name]!r})"
        for name, value in demos.task_settings.items()
        if mine.get(name, value) != value
    }
    must_match = TASKS.get(cfg.task_id).demo_settings
    decisive = [text for name, text in others.items() if name in must_match]
    if decisive:
        raise ConfigError(
            f"{demos.path} was collected with other settings of the task than this run's, which would "
            f"mislead the critics: {', '.join(decisive)}; collect demonstrations with the settings of the run"
        )
    if others:
        _log.warning(
            "%s was collected with other settings of the task: %s", demos.path, ", ".join(others.values())
        )
