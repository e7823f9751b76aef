"""Settings of somebody's Gymnasium env."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from residual_rl.envs.mujoco.gl_backend import headless_backend
from residual_rl.errors import ConfigError
from residual_rl.utils.sensitive import CodeName, CodeNames, Sensitive
from residual_rl.utils.validation import CheckedCfg, NumThreads, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class GymnasiumEnvCfg(CheckedCfg):
    """Any Gymnasium env with bounded continuous actions."""

    env_id: Annotated[str, Sensitive("code", lambda env_id: ":" in env_id)] = ""
    """Id of the env, as `gymnasium.make` takes it."""
    env_kwargs: Annotated[tuple[str, ...], Sensitive("code")] = ()
    """Arguments of `gymnasium.make`, as `key=value`. Values are JSON where they can be read as such (`3`,
    `true`, `[1, 2]`), otherwise text."""
    env_modules: CodeNames = ()
    """Modules to import first, or files `FILE.py`, which register the env with Gymnasium."""
    python: CodeName = ""
    """Interpreter of the processes that step the envs, such as `venv/bin/python`: Python 3.10 or newer with
    NumPy, Gymnasium and the env's packages. It does not need this package. Empty: this interpreter."""
    adapter: CodeName = ""
    """`module:Class` or `FILE.py:Class`: a class that replaces parts of how the env is created, seeded and
    read; see `docs/environments.md`."""
    success_keys: tuple[str, ...] = ()
    """Entries of `info` that report success. Empty: the first of success, is_success, succeed, solved and
    goal_achieved that the env has."""
    success_reward: float | None = None
    """Reward from which on a step counts as success, for envs that report none."""
    end_at_success: bool = True
    """End episodes at success."""
    reward_mode: Literal["sparse", "env"] = "sparse"
    """Reward: `sparse` is 1 in steps with success and 0 otherwise, `env` is the env's own."""
    max_episode_steps: PositiveInt | None = None
    """Steps after which an episode is truncated. None: the limit that the env is registered with."""
    control_hz: PositiveFloat | None = None
    """Steps per second of simulated time [Hz]. None: the env's `render_fps`, or the inverse of its `dt`."""
    render: bool = True
    """Create the envs with render mode `rgb_array` if they have it, for videos."""
    num_workers: NumThreads = 0
    """Number of processes that step the envs; 0 means as many as --num-threads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parsed_kwargs()

    def parsed_kwargs(self) -> dict[str, Any]:
        """`env_kwargs` by name. Raises `ConfigError` for an entry without a name or one given twice."""
        parsed: dict[str, Any] = {}
        for pair in self.env_kwargs:
            name, equals, text = pair.partition("=")
            if not name.isidentifier() or not equals or name in parsed:
                raise ConfigError(f"env_kwargs {pair!r}: expected key=value, each key once")
            try:
                parsed[name] = json.loads(text)
            except json.JSONDecodeError:
                parsed[name] = text
        return parsed

    def worker_settings(self) -> dict[str, Any]:
        """The settings of a worker process, as JSON."""
        make_kwargs = self.parsed_kwargs()
        if self.render:
            make_kwargs.setdefault("render_mode", "rgb_array")
        if self.max_episode_steps is not None:
            make_kwargs["max_episode_steps"] = self.max_episode_steps
        names = ("env_id", "env_modules", "adapter", "success_reward", "end_at_success", "reward_mode")
        return {
            **{name: getattr(self, name) for name in (*names, "max_episode_steps")},
            "success_keys": self.success_keys or None,
            "make_kwargs": make_kwargs,
            "mujoco_gl": headless_backend() if self.render else "",
        }
