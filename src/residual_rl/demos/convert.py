"""Conversion of demonstrations of another program to a file of ours, for a task that the user names."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from residual_rl.config import TrainCfg
from residual_rl.demos.episode import Demo
from residual_rl.demos.foreign import episode_in_task
from residual_rl.demos.reader import Demonstrations
from residual_rl.envs.spaces import observed
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError

_log = logging.getLogger(__name__)


def episodes_for_env(demos: Demonstrations, cfg: TrainCfg, env: VecEnv) -> Iterator[Demo]:
    """The episodes of `demos` with the observations that `env`, an env of the task of `cfg`, has too.

    Raises `ConfigError` if `demos` names a task itself, or does not fit the env.
    """
    names = _matching(demos, cfg, env)
    longest = 0
    for index in range(len(demos)):
        demo = episode_in_task(demos, index, names, cfg)
        longest = max(longest, len(demo))
        yield demo
    if longest > env.max_episode_steps:
        _log.warning(
            "%s has episodes of up to %d steps, but task %r ends them after %d: evaluations may need a "
            "longer limit",
            demos.path,
            longest,
            cfg.task_id,
            env.max_episode_steps,
        )


def _matching(demos: Demonstrations, cfg: TrainCfg, env: VecEnv) -> list[str]:
    """The names of the observations that both have."""
    # what the file says of itself
    if demos.names_task:
        raise ConfigError(
            f"{demos.path} names its task, {demos.task_id!r}: it can be used as it is, without a conversion"
        )
    for name, value in demos.task_settings.items():
        mine = getattr(cfg.task, name, value)
        if mine != value:
            raise ConfigError(
                f"{demos.path} was recorded with {name} {value!r}, but task {cfg.task_id!r} is given {mine!r}"
            )
    # its actions and observations
    if demos.action_dim != len(env.action_unit):
        raise ConfigError(
            f"{demos.path} has actions of size {demos.action_dim}, but those of task {cfg.task_id!r} have "
            f"size {len(env.action_unit)}"
        )
    here = observed(env)
    for name, shape in demos.obs_shapes.items():
        if name in here and tuple(here[name].shape or ()) != shape:
            raise ConfigError(
                f"{demos.path} has {name!r} of shape {list(shape)}, but task {cfg.task_id!r} observes "
                f"{list(here[name].shape or ())}"
            )
    names = [name for name in demos.obs_shapes if name in here]
    if not names:
        raise ConfigError(
            f"{demos.path} has the observations {', '.join(sorted(demos.obs_shapes))}, of which task "
            f"{cfg.task_id!r} has none; it has {', '.join(sorted(here))}"
        )
    left_out = sorted(set(demos.obs_shapes) - set(names))
    if left_out:
        _log.warning("%s: left out, as the task does not observe it: %s", demos.path, ", ".join(left_out))
    return names
