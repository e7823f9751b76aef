"""Disjoint ranges of episode seeds, and random numbers that depend on an episode's seed alone.

Training, evaluation during training, confirmation of the best model, final evaluation, demonstrations and
probes have separate ranges. The random numbers are counter-based (SplitMix64; Steele, Lea and Flood, OOPSLA
2014): they are batched over envs, run on any device, and do not depend on the env or on the order of calls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

EVAL_SEED = 10_000_000
"""First episode seed of `residual-rl eval`."""
TRAINING_EVAL_SEED = 20_000_000
"""First episode seed of the evaluations during training."""
DEMO_SEED = 40_000_000
"""First episode seed of collected demonstrations."""
PROBE_SEED = 50_000_000
"""First episode seed of `residual-rl probe`."""
CONFIRMATION_SEED = 60_000_000
"""First episode seed of the comparison of a run's best model with the base policy."""
_TRAINING_SEED = 1 << 40
_EPISODES_PER_RUN = 1 << 36

_SIMULATOR_SEEDS = 1 << 31
"""Upper bound of the seeds of simulators: NumPy's older generators take at most 32 bits."""

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64


def training_seed_start(seed: int) -> int:
    """First episode seed of the training run `seed`.

    Each run has a range of 2^36 episode seeds, disjoint from those of evaluations and of other runs. Raises
    `ConfigError` unless `seed` is from 0 to 2^22 - 1.
    """
    if not 0 <= seed < 1 << 22:
        from residual_rl.errors import ConfigError

        raise ConfigError(f"seed must be from 0 to {(1 << 22) - 1}, not {seed}")
    return _TRAINING_SEED + seed * _EPISODES_PER_RUN


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical shift: that of int64 keeps the sign


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift_right(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shift_right(z, 31)


def splitmix64(seed: Tensor, n: int) -> Tensor:
    """The first `n` outputs of SplitMix64 for each `seed` [B] int64.

    Returns int64 [B, n] with the bits of the unsigned outputs.
    """
    counter = torch.arange(1, n + 1, device=seed.device)
    return _mix(seed[:, None] + counter * _GAMMA)


def simulator_seeds(seeds: Tensor) -> Tensor:
    """Seeds of a simulator for the episode `seeds` [n] int64 >= 0.

    Those that fit into 31 bits stay the same; others are hashed.
    """
    return torch.where(seeds < _SIMULATOR_SEEDS, seeds, splitmix64(seeds, 1)[:, 0] & (_SIMULATOR_SEEDS - 1))


def uniform(seed: Tensor, stream: int | Tensor, n: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [B, n], as a function of `seed` [B] int64 and `stream`.

    `stream` is one number or [B] int64. Seeds are mixed before use as a counter, so neighbouring seeds give
    unrelated numbers.
    """
    start = _mix(_mix(seed) + torch.as_tensor(stream).to(seed) * _GAMMA)  # a tensor product wraps around
    return _shift_right(splitmix64(start, n), 11).double() * 2.0**-53


def normal(seed: Tensor, stream: int | Tensor, n: int) -> Tensor:
    """Standard normal numbers, float64 [B, n], as a function of `seed` and `stream` (see `uniform`).

    Source: Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """
    # Each pair of uniform numbers gives two normal ones.
    half = (n + 1) // 2
    radius, angle = uniform(seed, stream, 2 * half).split(half, 1)
    radius = (-2.0 * (1.0 - radius).log()).sqrt()  # 1 - u is never 0
    angle = 2.0 * math.pi * angle
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :n]


def noise_of(obs_window: Tensor | Mapping[str, Tensor], seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers for each row of `obs_window`, as a function of the row's bits and of `seed`.

    With this noise, a policy that samples needs no random generator: equal observations give equal actions,
    independent of earlier queries and of the batch.

    Args:
        obs_window: [b, …] float32 or uint8, or several by name, in any order.
        seed: seed of the policy.
        shape: shape of the numbers of one row.

    Returns:
        float64 [b, *shape].
    """
    parts = dict(obs_window) if isinstance(obs_window, Mapping) else {"": obs_window}
    hashes = [_hash_rows(parts[name]) for name in sorted(parts)]
    key = functools.reduce(lambda done, part: _mix(done) + part, hashes)
    return normal(key, seed, math.prod(shape)).unflatten(1, tuple(shape))


def _hash_rows(rows: Tensor) -> Tensor:
    """A hash [b] int64 of the bits of each row [b, …].

    It is the sum of all words, each mixed with its position. Integer addition does not depend on the order.
    """
    flat = rows.flatten(1)
    if flat.dtype == torch.uint8:
        words = flat.long()
    else:
        words = (flat.float() + 0.0).view(torch.int32).long()  # -0 + 0 is 0, so equal numbers are equal words
    place = torch.arange(1, flat.shape[1] + 1, device=flat.device) * _GAMMA
    return _mix(_mix(words + place).sum(1) + flat.shape[1])
