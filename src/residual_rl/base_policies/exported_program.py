"""A program exported with `torch.export` as a base policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram

from residual_rl.base_policies.model_inputs import check_size, input_shapes, join_inputs, probe
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.types import BasePolicy, Obs


class ProgramPolicy(BasePolicy):
    """An exported program that maps joined observations [b, O] to actions [b, A] or chunks [b, K, A].

    It runs with a batch of one, so that its float32 results do not depend on the number of envs, and so that
    programs exported for a batch of one can be used.

    Args:
        program: the result of `trusted.read_exported_program`.
        input_keys: observations that are joined for the program, in order.
        num_action_steps: number of actions of a chunk that are executed; None means all.
        env: the env, whose observations and actions must fit `program`.
        name: name of the policy in error messages.

    Raises:
        ConfigError: `program` does not fit `env`.
    """

    def __init__(
        self,
        program: ExportedProgram,
        input_keys: Sequence[str],
        num_action_steps: int | None,
        env: VecEnv,
        name: str,
    ):
        self._module = program.module()
        self._keys = tuple(input_keys)
        self.inputs = input_shapes(self._keys, env, name)  # type: ignore[misc]
        wanted = _input_shapes(program)
        if len(wanted) != 1 or len(wanted[0]) != 2:
            raise ConfigError(
                f"{name} takes inputs of shapes {wanted}; expected one input, the joined observations [b, O]"
            )
        check_size(self.inputs, wanted[0][1:], name)
        chunk = probe(self, env, name)
        if chunk.shape[0] != 1 or chunk.shape[-1] != len(env.action_unit):
            raise ConfigError(
                f"{name} returns {list(chunk.shape)} for one env; "
                f"this env takes actions of {len(env.action_unit)} numbers"
            )
        self.chunk_size = chunk.shape[1]
        self.num_action_steps = self.chunk_size if num_action_steps is None else num_action_steps

    @torch.no_grad()
    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:  # noqa: ARG002
        outputs = [self._module(row) for row in join_inputs(obs, self._keys).cpu().split(1)]
        if not all(isinstance(output, Tensor) and output.dim() in (2, 3) for output in outputs):
            raise ConfigError("the program must return one tensor, [b, A] or [b, K, A]")
        actions = torch.cat(outputs)
        return actions[:, None] if actions.dim() == 2 else actions


def _input_shapes(program: ExportedProgram) -> list[tuple[int, ...]]:
    names = program.graph_signature.user_inputs
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return [
        tuple(nodes[name].shape) if isinstance(name, str) and isinstance(nodes[name], Tensor) else ()
        for name in names
    ]
