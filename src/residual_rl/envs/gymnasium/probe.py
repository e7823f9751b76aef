"""What only stepping an env shows: whether its episodes can be repeated, and what it reports.

Loaded by path in worker processes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adapter import EnvRefusedError
from .single_env import SingleEnv, Step

NUM_STEPS = 20
"""Steps of each of the three episodes."""
_SEEDS = (1, 2, 1)


def probe(env: SingleEnv, name: str, max_episode_steps: int | None) -> dict[str, Any]:
    """Run random actions in an episode, in one of another seed, and in the first one again.

    The two runs of the first episode differ in an env that ignores seeds, that keeps something across resets
    (which a repetition in a new env would not show), or that draws from the global random generators, which
    other envs of the process use as well.

    Args:
        env: the env.
        name: its name, for messages.
        max_episode_steps: the limit of its episodes; None: it has none.

    Returns:
        `difference`: the first value that differed, empty if both runs were equal bit for bit; `metrics`:
        names of the numbers that every `info` has; `reports_action`: whether the env reports the actions that
        it executes.

    Raises:
        EnvRefusedError: nothing reports success.
    """
    first, _, again = (_episode(env, seed, scramble=i) for i, seed in enumerate(_SEEDS))
    difference = _difference(first, again)
    steps = [step for episode in (first, again) for step in episode if isinstance(step, Step)]
    info: Mapping[str, Any] = {key: value for step in steps for key, value in step.info.items()}
    if not env.reports_success(info):
        info = {**info, **_info_to_the_end(env, max_episode_steps or 0)}
    if not env.reports_success(info):
        entries = ", ".join(map(str, info)) or "no entries"
        raise EnvRefusedError(
            f"{name} reports no success: its info has {entries}; name an entry with --success-keys, or set"
            " --success-reward, or write an adapter with a method `success`"
        )
    common = set.intersection(*(set(step.metrics()) for step in steps))
    return {
        "difference": difference,
        "metrics": sorted(common - {"executed_action"}),
        "reports_action": any("executed_action" in step.info for step in steps),
    }


def _episode(env: SingleEnv, seed: int, scramble: int) -> list[Step | dict[str, NDArray[Any]]]:
    """The first observation and the steps of an episode with random actions.

    `scramble` seeds the global generators before each step.
    """
    generator = np.random.default_rng(seed)
    found: list[Any] = [env.reset(seed)]
    for i in range(NUM_STEPS):
        random.seed(1000 * scramble + i)
        np.random.seed(1000 * scramble + i)  # noqa: NPY002
        action = generator.uniform(-1.0, 1.0, len(env.actions.unit)).astype(np.float32)
        found.append(env.step(env.actions.raw(action)))
        if found[-1].terminated or found[-1].truncated:
            break
    return found


def _info_to_the_end(env: SingleEnv, max_episode_steps: int) -> dict[str, Any]:
    """The entries of `info` of an episode; some envs report success only at its end."""
    info: dict[str, Any] = {}
    env.reset(_SEEDS[0])
    action = env.actions.raw(np.zeros(len(env.actions.unit), np.float32))
    for _ in range(max_episode_steps):
        step = env.step(action)
        info.update(step.info)
        if step.terminated or step.truncated:
            break
    return info


def _difference(first: list[Any], again: list[Any]) -> str:
    """The first value that differs, in words; empty if none does."""
    for i, (one, other) in enumerate(zip(first, again, strict=False)):  # the lengths are compared below
        values, others = _values(one), _values(other)
        for name, value in values.items():
            if value != others[name]:
                return f"{name} after {i} steps"
    return "" if len(first) == len(again) else "length"


def _values(item: Step | dict[str, NDArray[Any]]) -> dict[str, Any]:
    if isinstance(item, dict):
        return {name: value.tobytes() for name, value in item.items()}
    flags = {"success": item.success, "terminated": item.terminated, "truncated": item.truncated}
    reward = np.float32(item.reward).tobytes()
    return {**_values(item.obs), "reward": reward, **flags}
