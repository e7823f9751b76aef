"""The policy behind a server, with a pool of envs that are assigned to the clients' sessions."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.envs.spaces import conversion_inputs, observed, shape_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError, ResidualRLError, UnknownNameError
from residual_rl.remote.handshake import Handshake, ServedInput
from residual_rl.robots.arm_joints import ArmJoints
from residual_rl.types import ActionChunk, Obs

Protocol = Literal["gr00t", "gr00t-n15", "openpi"]
ActionUnits = Literal["normalized", "hardware"]
Axes = Literal["envs and steps", "steps", "none"]

_log = logging.getLogger(__name__)


class RequestError(ResidualRLError):
    """An invalid request. The message is sent to the client."""


@dataclass(frozen=True)
class Answer:
    """Predicted action chunks for the envs of a client."""

    actions: Tensor
    """[b, K, A] in [-1, 1]"""
    targets: Tensor | None
    """[b, K, J] [rad]; None if clients receive normalised actions."""
    uncertainty: Tensor | None
    """[b, K]"""

    def rows(self, rows: slice) -> Answer:
        """The part of the answer for `rows`."""
        targets, uncertainty = (
            None if value is None else value[rows] for value in (self.targets, self.uncertainty)
        )
        return Answer(self.actions[rows], targets, uncertainty)


class PolicyService:
    """Predicts action chunks for the envs of all sessions. Not thread-safe.

    Args:
        policy: the policy in its executor, which has checked the observations of `env`.
        env: defines spaces, units and kinematics; it is never stepped. Its `num_envs` limits the envs of all
            clients together.
        task: id of the task, for the handshake.
        name: name of the policy, for the handshake.
        protocol: protocol of the server.
        action_units: whether clients receive normalised actions or absolute joint positions.
        keys: keys of the protocol by observation name, where they differ from the defaults.

    Raises `ConfigError` for joint positions of an env without `hardware`, and `UnknownNameError` for unknown
    keys.
    """

    def __init__(
        self,
        policy: BasePolicyExecutor,
        env: VecEnv,
        task: str,
        name: str,
        protocol: Protocol,
        action_units: ActionUnits,
        keys: Mapping[str, str] | None = None,
    ):
        self.env, self._policy, self.name = env, policy.policy, name

        # Joint positions need the robot's units, and further observations for the conversion.
        self.joints = None
        needed: tuple[str, ...] = ()
        if action_units == "hardware":
            if env.hardware is None:
                raise ConfigError(
                    f"task {task!r} has no units of a robot (`hardware`): serve it with --protocol openpi"
                )
            self.joints, needed = ArmJoints(env.hardware), conversion_inputs(env)

        # Describe the policy to clients.
        names = dict.fromkeys([*self._policy.inputs, *needed])
        keys = dict(keys or {})
        if unknown := sorted(keys.keys() - names.keys()):
            raise UnknownNameError("observation that the policy needs", unknown[0], names)
        prefix = "observation/" if protocol == "openpi" else ""
        self.handshake = Handshake(
            protocol=protocol,
            task=task,
            policy=name,
            inputs={
                n: ServedInput(keys.get(n, prefix + n), shape_of(env, n), str(observed(env)[n].dtype))
                for n in names
            },
            chunk_size=self._policy.chunk_size,
            num_action_steps=self._policy.num_action_steps,
            num_obs_steps=self._policy.num_obs_steps,
            action_units=action_units,
            action_unit=tuple(env.action_unit.tolist()),
        )
        self._free = list(range(env.num_envs))

    # --- envs -----------------------------------------------------------------------------------------------

    def take(self, number: int) -> list[int]:
        """Assign `number` free envs, and reset them. Raises `RequestError` if too few are free."""
        if number > len(self._free):
            raise RequestError(
                f"{number} env(s) requested, {len(self._free)} of {self.env.num_envs} free:"
                " close other clients, or raise --max-sessions"
            )
        env_ids = [heapq.heappop(self._free) for _ in range(number)]
        self.reset(env_ids)
        return env_ids

    def give_back(self, env_ids: list[int]) -> None:
        """Free the envs of a session."""
        for env_id in env_ids:
            heapq.heappush(self._free, env_id)

    def reset(self, env_ids: list[int]) -> None:
        """Reset the state of the policy for these envs."""
        mask = torch.zeros(self.env.num_envs, dtype=torch.bool, device=self.env.device)
        mask[env_ids] = True
        with _Hidden("reset"):
            self._policy.reset(mask)

    # --- predictions ----------------------------------------------------------------------------------------

    def observation(self, name: str, value: Any, called: str, axes: Axes) -> Tensor:
        """Check an observation from a client and convert it to a tensor.

        Args:
            name: name of the observation.
            value: the received value, of any type.
            called: the client's key, for messages.
            axes: leading axes of `value`: `envs and steps`, `steps` (of one env), or `none`.

        Returns a tensor [b, …], or [b, H, …] for a policy with an observation history of H > 1 steps.
        Raises `RequestError`.
        """
        # Check type and shape.
        steps, served = self.handshake.num_obs_steps, self.handshake.inputs[name]
        array = numeric(value, called, served.dtype)
        expected = served.shape if axes == "none" else (steps, *served.shape)
        batched = axes == "envs and steps"
        if array.shape[batched:] != expected or array.ndim != batched + len(expected) or not array.size:
            shown = ", ".join(["envs"] * batched + [str(n) for n in expected])
            raise RequestError(f"{called} has shape {array.shape}; expected ({shown})")

        # Convert, and refuse numbers that the type cannot represent.
        with np.errstate(over="ignore"):
            array = array.astype(served.dtype)
        if not np.isfinite(array).all():
            raise RequestError(f"{called} has NaN, infinity, or numbers out of the range of {served.dtype}")

        # Flatten to one row for each env.
        rows = torch.from_numpy(array).to(self.env.device).reshape(-1, steps, *served.shape)
        return rows if steps > 1 else rows[:, 0]

    @torch.no_grad()
    def predict(self, env_ids: list[int], obs: Obs) -> Answer:
        """Predict action chunks for the envs `env_ids` from `obs`, one row for each.

        An error of the policy is logged, and raised as a `RequestError` without details.
        """
        inputs = {name: obs[name] for name in self._policy.inputs}
        with _Hidden("predict"):
            chunk = self._policy.predict_action_chunk(
                inputs, torch.tensor(env_ids, dtype=torch.int64, device=self.env.device)
            )

            # Check the shape and the values of the chunk.
            actions, uncertainty = (
                (chunk.actions, chunk.uncertainty) if isinstance(chunk, ActionChunk) else (chunk, None)
            )
            expected = (len(env_ids), self.handshake.chunk_size, len(self.env.action_unit))
            if tuple(actions.shape) != expected or not torch.isfinite(actions).all():
                raise ValueError(
                    f"it gave {tuple(actions.shape)}, or numbers that are not finite; expected finite"
                    f" {expected}"
                )
            actions = actions.float().clamp(-1.0, 1.0)  # the executor clips in the same way

            # Convert to joint positions, relative to the latest observation.
            targets = None
            if self.joints is not None:
                now = (
                    {name: value[:, -1] for name, value in obs.items()}
                    if self.handshake.num_obs_steps > 1
                    else obs
                )
                targets = self.env.actions_to_targets(actions, now).cpu()
        return Answer(actions.cpu(), targets, None if uncertainty is None else uncertainty.float().cpu())


def numeric(value: Any, called: str, dtype: str) -> NDArray[Any]:
    """`value`, which must be an array, of uint8 for images and only for them. Raises `RequestError`."""
    if not isinstance(value, np.ndarray):
        raise RequestError(f"{called} is a {type(value).__name__}; expected an array of {dtype}")
    if (value.dtype == np.uint8) != (dtype == "uint8"):
        raise RequestError(f"{called} is an array of {value.dtype}; expected {dtype}")
    return value


class _Hidden:
    """Context manager that logs an exception and raises a `RequestError` without its details."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None and isinstance(error, Exception):
            _log.error("the policy failed to %s", self._what, exc_info=error)
            raise RequestError("the policy failed; the log of the server has the reason") from error
