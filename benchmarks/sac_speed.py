"""Gradient steps of SAC per CPU-second, compared with Stable-Baselines3.

    python benchmarks/sac_speed.py

Both use batches of 256, equal networks and equally many updates of the actor, and sample from a full buffer
of random transitions (25 observations, 6 actions) on one torch thread. They alternate, in alternating order.
Results are medians over turns, and the interval of the ratio is that of the middle half. The last row is for
the defaults of this package: four critics, LayerNorm, n-step returns, an update of the actor in every other
step, and an average of its weights. Needs `pip install 'residual-rl[sb3]'`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger

from residual_rl.learners.off_policy.sac import SAC, SACCfg
from residual_rl.types import Transition
from residual_rl.utils.files import write_json
from residual_rl.utils.provenance import git_state, machine

OBS, ACTIONS, NUM_ENVS, ROWS, STEPS = 25, 6, 16, 1000, 64
SIZE = {"buffer_size": ROWS * NUM_ENVS}
ALIKE: dict[str, Any] = {
    "n_step": 1,
    "actor_every": 1,
    "critic_layer_norm": False,
    "actor_layer_norm": False,
    "actor_ema_power": 0.0,
}
ALIKE |= {
    "num_critics": 2,
    "num_target_critics": 2,
    "actor_value": "min",
    "critic_base_action": False,
    "actor_input": "obs",
    "normalize_obs": False,
}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sac-speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    sides = {
        "residual_rl": ours(SACCfg(**ALIKE, **SIZE)),
        "stable_baselines3": theirs(),
        "residual_rl, defaults": ours(SACCfg(**SIZE)),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for turn in range(options.turns):
        order = list(sides) if turn % 2 else list(reversed(sides))
        for name in order:
            start = time.process_time()
            sides[name]()
            rates[name].append(STEPS / (time.process_time() - start))
    base = rates["stable_baselines3"]
    result: dict[str, Any] = {
        "git": git_state()[0],
        "machine": machine(),
        "turns": options.turns,
        "updates_per_cpu_second": {},
    }
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        result["updates_per_cpu_second"][name] = {
            "median": median(values),
            "ratio": median(ratios),
            "ratio_middle_half": [low, high],
        }
        print(
            f"{name:<24} {median(values):7.0f} updates per CPU-second, "
            f"{median(ratios):.2f} times [{low:.2f}, {high:.2f}]"
        )
    write_json(options.output, result)


def ours(cfg: SACCfg) -> Callable[[], None]:
    """A function that does `STEPS` gradient steps of this package's SAC, with a full buffer."""
    learner = SAC(cfg, {"state": (OBS,), "base_action": (ACTIONS,)}, ACTIONS, NUM_ENVS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(ROWS):
        learner.observe(random_step(generator))
    learner._new_rows = 0  # so that the first call does as many updates as later ones

    def steps() -> None:
        for _ in range(STEPS // NUM_ENVS):
            learner.observe(random_step(generator))
        learner.update()

    return steps


def random_step(generator: torch.Generator) -> Transition:
    """A random transition of all envs."""

    def actions() -> torch.Tensor:
        return 2.0 * torch.rand(NUM_ENVS, ACTIONS, generator=generator) - 1.0

    def obs() -> dict[str, torch.Tensor]:
        return {"state": torch.randn(NUM_ENVS, OBS, generator=generator), "base_action": actions()}

    seen, never = obs(), torch.zeros(NUM_ENVS, dtype=torch.bool)
    return Transition(
        seen,
        actions(),
        torch.randn(NUM_ENVS, generator=generator),
        never,
        never,
        obs(),
        seen["base_action"],
        actions(),
        0.6,
        0.6,
    )


class Spaces(gymnasium.Env[Any, Any]):
    """The spaces that Stable-Baselines3 needs; it is never stepped."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)


def theirs() -> Callable[[], None]:
    """A function that does `STEPS` gradient steps of SAC of Stable-Baselines3, with a full buffer."""
    model = stable_baselines3.SAC(
        "MlpPolicy",
        Spaces(),
        batch_size=256,
        buffer_size=ROWS * NUM_ENVS,
        policy_kwargs={"net_arch": [128, 128]},
    )
    model.set_logger(Logger(None, []))
    rng = np.random.default_rng(0)
    for _ in range(ROWS * NUM_ENVS):
        obs, next_obs = rng.standard_normal((2, 1, OBS), dtype=np.float32)
        model.replay_buffer.add(
            obs, next_obs, rng.uniform(-1, 1, (1, ACTIONS)), rng.standard_normal(1), np.zeros(1), [{}]
        )
    return lambda: model.train(gradient_steps=STEPS, batch_size=256)


if __name__ == "__main__":
    main()
