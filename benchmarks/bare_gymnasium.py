"""One bare process of `gymnasium_stepping.py`, which steps a Gymnasium env in a loop.

It runs in the env's interpreter. It reads a duration [s] per line and answers with the number of steps, the
wall time and the CPU time.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from typing import Any

import gymnasium
import numpy as np


def main() -> None:
    """Create the env of the settings (see `GymnasiumEnvCfg.worker_settings`), and answer."""
    settings = json.loads(sys.argv[1])
    for module in settings["env_modules"]:
        importlib.import_module(module)
    adapter = load(settings["adapter"])() if settings["adapter"] else None
    make_env = getattr(adapter, "make", lambda env_id, kwargs: gymnasium.make(env_id, **kwargs))
    env = make_env(settings["env_id"], settings["make_kwargs"])
    limit, seed, length = settings["max_episode_steps"], int(sys.argv[2]), 0
    env.reset(seed=seed)
    low, high = env.action_space.low, env.action_space.high
    generator = np.random.default_rng(seed)
    print("ready", flush=True)
    for line in sys.stdin:
        start, cpu, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < float(line):
            _, _, terminated, truncated, _ = env.step(generator.uniform(low, high).astype(low.dtype))
            steps, length = steps + 1, length + 1
            if terminated or truncated or length == limit:
                seed, length = seed + 1000, 0
                if hasattr(adapter, "seed"):
                    adapter.seed(env, seed)
                env.reset(seed=seed)
        print(steps, time.perf_counter() - start, time.process_time() - cpu, flush=True)


def load(reference: str) -> Any:
    """The class `module:Class` or `FILE.py:Class`."""
    place, _, name = reference.rpartition(":")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)
    spec = importlib.util.spec_from_file_location("adapter_file", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


if __name__ == "__main__":
    main()
