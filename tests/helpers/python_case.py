"""Settings of the base policy `python` for the contract tests, and the policies that they and others name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residual_rl.base_policies.python import PythonCfg


class TowardsGoal:
    """A policy for one env with state: it moves towards the goal, and less so in later steps. It returns two
    actions at once."""

    def __init__(self) -> None:
        self.steps = 0

    def reset(self) -> None:
        self.steps = 0

    def __call__(self, obs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        assert obs["goal"].ndim == 1
        self.steps += 1
        first = np.zeros(6, np.float32)
        first[:3] = obs["goal"][:3] * np.float32(2.0) / np.float32(self.steps)
        return np.stack([first, first / 2.0])

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def make_case(folder: Path) -> PythonCfg:
    """`TowardsGoal`, of whose two actions both are executed."""
    return PythonCfg("python_case:TowardsGoal", input_keys=("goal", "joint_position"), chunk_size=2)


# --- policies for `fakes.PointEnv` --------------------------------------------------------------------------

calls: list[Any] = []
"""The arguments of all calls of the functions below."""


def one(obs: Any) -> list[float]:
    """A function for one env."""
    calls.append(obs)
    return [float(len(calls)), -2.0]


def together(obs: Any) -> NDArray[np.float64]:
    """A function for a batch."""
    calls.append(obs)
    return np.stack([obs[:, 0], np.zeros(len(obs))], 1)


class Batched:
    """A policy for a batch with state: it counts the steps of each episode."""

    def __init__(self) -> None:
        self.steps = np.zeros(3)

    def reset(self, mask: NDArray[np.bool_]) -> None:
        calls.append(mask.tolist())
        self.steps[mask] = 0.0

    def __call__(self, obs: Any, env_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        calls.append(env_ids.tolist())
        self.steps[env_ids] += 1.0
        return np.stack([0.125 * self.steps[env_ids], obs["position"][:, 0] * 0.0], 1)


class Forgetful:
    """A policy for one env that cannot be saved."""

    def __init__(self) -> None:
        self.steps = 0

    def reset(self) -> None:
        self.steps = 0

    def __call__(self, obs: Any) -> list[float]:
        self.steps += 1
        return [0.25 * self.steps, 0.0]


class NoIds:
    """A batched policy with state that does not take the indices of the envs."""

    def reset(self, mask: Any) -> None:
        pass

    def __call__(self, obs: Any) -> Any:
        return np.zeros((len(obs), 2))


def modifies(obs: Any) -> list[float]:
    """A function that writes to what it is given."""
    obs["position"] += 100.0
    return [0.0, 0.0]


def fails(obs: Any) -> list[float]:
    raise RuntimeError("out of ideas")


number = 3
