"""The state of a torch module as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from residual_rl.errors import CheckpointError
from residual_rl.types import State

if TYPE_CHECKING:
    from gymnasium.spaces import Dict

    ObsSpace = Dict | Mapping[str, tuple[int, ...]]


def module_state(module: nn.Module) -> State:
    """Copies of the parameters and buffers of a module by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def load_module_state(module: nn.Module, state: State, what: str) -> None:
    """Load a state of `module_state`. `what` is the name of the module in errors.

    Raises `CheckpointError`, with the module unchanged, if names or shapes differ.
    """
    check_module_state(module, state, what)
    module.load_state_dict(state)


def check_module_state(module: nn.Module, state: State, what: str) -> None:
    """Raise `CheckpointError` unless `state` has the names and shapes of the module's tensors."""
    own = module.state_dict()
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{what} is not a set of tensors by name")
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise CheckpointError(
            f"{what} does not fit its settings: missing {missing or 'nothing'}, unknown {extra or 'nothing'}"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{what}: {name} has shape {list(state[name].shape)}, "
                f"the settings make it {list(tensor.shape)}"
            )
