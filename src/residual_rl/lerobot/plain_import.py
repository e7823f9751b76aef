"""Import of a LeRobot dataset of an env without an arm, such as PushT, as demonstrations.

LeRobot stores the observation `agent_pos` of an env as `observation.state`, and `environment_state` as
`observation.environment_state`; `action` is in the env's own units. T frames become T - 1 steps, since the
observation after the last action is not stored.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import torch

from residual_rl.demos.episode import Array, Demo, ends_of
from residual_rl.envs.spaces import observed
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.lerobot.dataset_export import FPS_TOLERANCE, REWARD, SUCCESS
from residual_rl.lerobot.dataset_import import Conversion, ImportCfg
from residual_rl.lerobot.recording import RecordedEpisode, Recording
from residual_rl.lerobot.support import ACTION, ENVIRONMENT_STATE, STATE

FEATURES = {"agent_pos": STATE, "environment_state": ENVIRONMENT_STATE}
"""LeRobot's feature for each observation of an env, as LeRobot names them."""
_CLIPPED = 1e-3
"""Distance from the range of actions from which on a value counts as clipped."""
_log = logging.getLogger(__name__)


class PlainConverter:
    """Converts the episodes of a recording to demonstrations of an env whose actions are its own.

    Args:
        recording: the dataset.
        env: one env of the task, with an `action_centre`.
        task_id: id of the task.
        cfg: the settings, of which those of joints, rates and images must be the defaults.

    Raises:
        ConfigError: observations or actions do not fit.
    """

    def __init__(self, recording: Recording, env: VecEnv, task_id: str, cfg: ImportCfg):
        assert env.action_centre is not None
        changed = [name for name in ("joint_offsets", "clip", "resample") if getattr(cfg, name)]
        if changed:
            raise ConfigError(f"{changed[0]} applies to datasets of a robot arm only: leave it out")
        if abs(recording.fps - env.control_hz) > FPS_TOLERANCE * env.control_hz:
            _log.warning(
                "%s has %g frames per second, but task %r runs at %.4g Hz",
                recording.source,
                recording.fps,
                task_id,
                env.control_hz,
            )
        self._recording = recording
        self._centre, self._unit = env.action_centre.double().numpy(), env.action_unit.double().numpy()
        self._sources = self._find_sources(env, task_id)
        self.conversion = Conversion(bounds="the range of actions")

    def _find_sources(self, env: VecEnv, task_id: str) -> dict[str, tuple[str, ...]]:
        """The features that make up each observation of the env."""
        spaces, features = observed(env), self._recording.features
        sizes = {name: int(np.prod(feature["shape"])) for name, feature in features.items()}
        present = [name for name, feature in FEATURES.items() if name in spaces and feature in sizes]
        found: dict[str, tuple[str, ...]] = {name: (FEATURES[name],) for name in present}
        # `state` is all numbers side by side, in the env's order
        first, _ = env.reset(seed=0)
        for order in itertools.permutations(present):
            if order and torch.equal(torch.cat([first[name] for name in order], 1), first["state"]):
                found["state"] = tuple(FEATURES[name] for name in order)
                break
        # or the only observation of the env
        same = [name for name in (ENVIRONMENT_STATE, STATE) if (sizes.get(name),) == spaces["state"].shape]
        if not present and same:
            found["state"] = (same[0],)
        if "state" not in found:
            has = ", ".join(f"{name} [{sizes[name]}]" for name in FEATURES.values() if name in sizes)
            observes = ", ".join(f"{name} {list(space.shape or ())}" for name, space in spaces.items())
            raise ConfigError(
                f"{self._recording.source} has {has}, of which the observations of task {task_id!r} cannot be"
                f" made: {observes}"
            )
        # the sizes
        wanted = {name: (parts, spaces[name].shape) for name, parts in found.items()}
        for name, (parts, shape) in {**wanted, "the action": ((ACTION,), self._unit.shape)}.items():
            size = sum(sizes[part] for part in parts)
            if shape != (size,):
                raise ConfigError(
                    f"{self._recording.source} has {' and '.join(parts)} of size {size}, but {name} of task "
                    f"{task_id!r} has shape {list(shape or ())}"
                )
        return found

    def episodes(self) -> Iterator[Demo]:
        """The episodes as demonstrations."""
        return map(self._demo, self._recording.episodes())

    def _demo(self, episode: RecordedEpisode) -> Demo:
        where = f"{self._recording.source}: episode {episode.number}"
        values, frames = episode.values, episode.frames
        if len(frames.order) < 2:
            raise ConfigError(f"{where} has {len(frames.order)} frame(s); at least two are needed")
        if frames.gap:
            raise ConfigError(f"{where}: {frames.gap}, but frames must follow each other")
        for name in (ACTION, *itertools.chain.from_iterable(self._sources.values())):
            if not np.isfinite(values[name]).all():
                raise ConfigError(f"{where}: {name} is NaN or infinite")
        # actions and observations
        actions = (_flat(values[ACTION])[:-1] - self._centre) / self._unit
        self.conversion.steps += len(actions)
        self.conversion.clipped += int((np.abs(actions) > 1.0 + _CLIPPED).sum())
        obs = {
            name: np.concatenate([_flat(values[part]) for part in parts], 1).astype(np.float32)
            for name, parts in self._sources.items()
        }
        # rewards and ends
        flags = {name: values[name].reshape(-1)[:-1] for name in (REWARD, SUCCESS) if name in values}
        success = flags[SUCCESS].astype(bool) if SUCCESS in flags else None
        terminated, truncated = ends_of(len(actions), success)
        return Demo(
            actions=actions.clip(-1.0, 1.0).astype(np.float32),
            obs=obs,
            terminated=terminated,
            truncated=truncated,
            rewards=flags[REWARD].astype(np.float32) if REWARD in flags else None,
            success=success,
        )


def _flat(values: Array) -> Array:
    """[T, …] as [T, n] float64."""
    return values.reshape(len(values), -1).astype(np.float64)
