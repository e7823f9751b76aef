"""A reference implementation of SplitMix64."""

from __future__ import annotations


def reference_splitmix64(seed: int, n: int) -> list[int]:
    """The first `n` outputs for `seed`, with Python integers (Steele, Lea and Flood, 2014)."""
    word, state, out = (1 << 64) - 1, seed & ((1 << 64) - 1), []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & word
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        out.append(z ^ (z >> 31))
    return out
