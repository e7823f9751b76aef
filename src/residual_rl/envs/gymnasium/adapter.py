"""How a worker creates, seeds and reads an env: the parts that an adapter can replace.

The worker may run in another interpreter, so this file is loaded by its path and imports no part of this
package. An adapter of a user is any class with some of the methods of `Adapter`; it need not inherit from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np


class EnvRefusedError(Exception):
    """The env cannot be used; the message says why and what would help."""

    exit_code = 2
    """The pool raises errors with an exit code as errors of the user."""


class Adapter:
    """The default behaviour, for envs that follow Gymnasium's API. Each env has its own instance.

    Attributes:
        success_keys: entries of `info` that report success; the first that is there counts.
        success_reward: reward from which on a step counts as success; None: only `info` counts.
    """

    success_keys: ClassVar[tuple[str, ...]] = ("success", "is_success", "succeed", "solved", "goal_achieved")
    success_reward: ClassVar[float | None] = None

    def make(self, env_id: str, kwargs: dict[str, Any]) -> Any:
        """Create the env.

        Args:
            env_id: the setting `env_id`.
            kwargs: the setting `env_kwargs`; with `render_mode` if frames may be wanted, and with
                `max_episode_steps` if that setting is given.
        """
        import gymnasium

        if "render_mode" in kwargs and not _has_render_mode(env_id, kwargs["render_mode"]):
            kwargs = {name: value for name, value in kwargs.items() if name != "render_mode"}
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)

    def seed(self, env: Any, seed: int) -> None:
        """Called before each `env.reset(seed=seed)`, for envs that ignore that argument."""

    def success(self, env: Any, obs: Any, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether the task is solved in this step."""
        for key in self.success_keys:
            if key in info:
                value = info[key]
                return bool(value if np.isscalar(value) else np.any(value))
        return self.success_reward is not None and reward >= self.success_reward

    def reward(self, env: Any, obs: Any, action: Any, reward: float, info: Mapping[str, Any]) -> float:  # noqa: ARG002
        """The reward of this step with the setting `reward_mode` env; `action` is in the env's units."""
        return reward

    def observe(self, env: Any, obs: Any) -> Any:  # noqa: ARG002
        """The observation to use instead of `obs`: an array, or dicts and tuples of arrays."""
        return obs

    def expert(self, env: Any, obs: Any) -> Any:
        """The action of a scripted policy in the env's units, as an array of the action space's shape.

        It is called once after each reset and step, with the env's own observation.
        """
        raise NotImplementedError


def _has_render_mode(env_id: str, mode: str) -> bool:
    """Whether the class of an env lists a render mode; others may not even take the argument."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    entry = gymnasium.spec(env_id).entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    return mode in getattr(creator, "metadata", {}).get("render_modes", ())
