"""The base policy `python`: settings and registration."""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.errors import ConfigError
from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.sensitive import CodeName
from residual_rl.utils.validation import CheckedCfg, ChunkLength


@dataclass(frozen=True)
class PythonCfg(CheckedCfg):
    """Settings of the `python` base policy."""

    function: CodeName = ""
    """Your policy MODULE:NAME, which maps an observation to an action: a function, or a class of such
    callables with an optional `reset()`, of which each env gets its own."""
    batched: bool = False
    """Whether it maps the observations [b, …] of several envs to actions [b, A]. If it has a `reset`, that
    takes a mask [B] bool, and the policy is called with the indices [b] of the envs as `env_ids`, too."""
    input_keys: tuple[str, ...] = ()
    """Observations that it receives, as NumPy arrays: of one name the array, otherwise a dict. Default: a
    dict of all."""
    chunk_size: ChunkLength = 1
    """Number of actions that it returns at once, as [K, A], or [b, K, A] if it is batched."""
    num_action_steps: ChunkLength | None = None
    """Number of actions executed of each chunk; None: all."""
    action_range: tuple[float, float] = (-1.0, 1.0)
    """Lowest and highest value of its actions, if it acts in the units of an env whose actions are
    normalised to [-1, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.action_range[0] < self.action_range[1]:
            raise ConfigError(f"action_range must be a lower and a higher number, not {self.action_range}")
        if (self.num_action_steps or 1) > self.chunk_size:
            raise ConfigError(
                f"num_action_steps must be from 1 to chunk_size {self.chunk_size},"
                f" not {self.num_action_steps}"
            )


register_base_policy(
    BasePolicySpec(
        id="python",
        summary="your own Python function or class, policy(obs) -> action",
        make="residual_rl.base_policies.python_policy:make",
        config=f"{__name__}:PythonCfg",
    )
)
