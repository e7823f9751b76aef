"""Client for a policy on a GR00T inference server.

The server is that of Isaac-GR00T N1.5 (flat keys), N1.6 or N1.7 (nested keys, batches), or
`residual-rl serve`.
The wire formats are those of NVIDIA/Isaac-GR00T: `gr00t/eval/service.py` (N1.5) and
`gr00t/policy/server_client.py` (N1.6, N1.7). Their SO-100/101 models return absolute joint positions in the
units of the robot's own software.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.base_policies.gr00t import Gr00tCfg
from residual_rl.envs.spaces import conversion_inputs, is_image, observed, shape_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.remote.client import ACTIONS, UNCERTAINTY, numbers
from residual_rl.remote.handshake import HANDSHAKE, Handshake
from residual_rl.remote.zmq_client import RefusedError, ZmqLink
from residual_rl.robots.arm_joints import ArmJoints
from residual_rl.types import ActionChunk, BasePolicy, Obs
from residual_rl.utils.network import secret
from residual_rl.utils.text import parse_pairs

CHUNK_SIZE, NUM_ACTION_STEPS = 16, 8
LANGUAGE_KEY = "annotation.human.task_description"


PROTOCOLS = {"n1.5": "gr00t-n15", "n1.6": "gr00t"}
"""Value of `residual-rl serve --protocol` for each layout."""


@dataclass(frozen=True)
class Source:
    """One entry of a request, `{modality}.{key}`, and the observation that it is made from."""

    modality: Literal["video", "state"]
    key: str
    name: str
    """Name of the env's observation."""
    part: Literal["all", "arm", "gripper"] = "all"
    rows: tuple[int, ...] = (0,)
    """Indices into the observation history; 0 is the oldest observation that the policy receives."""


class Gr00tPolicy(BasePolicy):
    """Sends the observations of the envs and converts the returned joint positions to actions.

    Args:
        cfg: the settings.
        env: must define the units of its robot (`hardware`), and its actions must command joint targets.

    Raises `ConfigError` where the env, the settings and the server do not match.
    """

    remote = True

    def __init__(self, cfg: Gr00tCfg, env: VecEnv):
        if env.hardware is None:
            raise ConfigError("it needs an env with the units of a robot (`hardware`); this env has none")
        self.cfg, self._env = cfg, env
        self._joints = ArmJoints(env.hardware, cfg.invert_gripper, cfg.units == "rad")
        needed = conversion_inputs(env)

        # Connect, and read which inputs the server expects.
        self._link = ZmqLink(cfg.host, cfg.port, cfg.timeout, cfg.reconnect, secret(cfg.api_token))
        try:
            description = self._link.describe({HANDSHAKE: True})
        except RefusedError as error:
            raise ConfigError(
                f"{error}; set the server's token as RESIDUAL_RL_TOKEN or --base.api-token"
            ) from error
        config = _modalities(description, self._link.server)

        # `residual-rl serve` also sends a handshake with its names, shapes and scaling.
        self._handshake = (
            Handshake.from_wire(description[HANDSHAKE], self._link.server) if HANDSHAKE in config else None
        )
        self._exact = self._handshake is not None and self._handshake.same_action_scaling(env)
        """Whether to use the server's normalised actions; joint positions are rounded and clipped."""
        self._language_key = cfg.language_key or LANGUAGE_KEY
        if self._handshake is not None:
            self._sources = self._sources_for_ours(self._handshake)
            self._link.close_session()
        else:
            self._sources = self._sources_for_others(config)
        self._set_sizes(config)

        # Collect the observations to send, and those that converting the reply needs.
        present = ["joint_position"] if cfg.action_mode == "relative" else []
        names = dict.fromkeys([*needed, *present, *(source.name for source in self._sources)])
        self.inputs = {name: shape_of(env, name) for name in names if name in observed(env)}  # type: ignore[misc]
        if missing := [name for name in names if name not in self.inputs]:
            raise ConfigError(
                f"it needs the observation(s) {', '.join(missing)}; the env has {', '.join(observed(env))}"
            )

    # --- inputs of the policy -------------------------------------------------------------------------------

    def _sources_for_ours(self, handshake: Handshake) -> list[Source]:
        """The inputs of a policy behind `residual-rl serve`, which has the names and units of the env."""
        handshake.check(self._env, PROTOCOLS[self.cfg.layout], self._link.server)
        # The handshake decides all of these; a setting could only contradict it.
        for name in ("units", "action_mode", "invert_gripper", "arm_key", "gripper_key"):
            if getattr(self.cfg, name) != getattr(Gr00tCfg(), name):
                raise ConfigError(
                    f"{name} is defined by {self._link.server}, which is residual-rl serve: leave it out"
                )

        # The policy receives all of its observation history.
        rows = tuple(range(handshake.num_obs_steps))
        self.num_obs_steps = handshake.num_obs_steps
        spaces = observed(self._env)
        return [
            Source("video" if is_image(spaces[name]) else "state", served.key, name, rows=rows)
            for name, served in handshake.inputs.items()
        ]

    def _sources_for_others(self, config: Mapping[str, Any]) -> list[Source]:
        """The inputs that the settings define, checked against the modality configuration of the server."""
        cfg, spaces = self.cfg, observed(self._env)

        # List all inputs that the settings map to a key of the server.
        offered = [Source("state", cfg.arm_key, "joint_position", "arm")]
        if self._joints.gripper:
            offered.append(Source("state", cfg.gripper_key, "joint_position", "gripper"))
        offered += [
            Source("state", key, name) for key, name in parse_pairs(cfg.extra_state, "extra_state").items()
        ]
        offered += [Source("video", key, name) for key, name in parse_pairs(cfg.cameras, "cameras").items()]

        # Each of them must be an observation of the env, and of the right kind.
        for source in offered:
            if source.name not in spaces or (source.modality == "video") != is_image(spaces[source.name]):
                kind = "camera" if source.modality == "video" else "state"
                has = [name for name, space in spaces.items() if is_image(space) == (kind == "camera")]
                wanted = f"{source.modality}.{source.key}"
                raise ConfigError(
                    f"{wanted}: the env has no {kind} {source.name!r}; it has {', '.join(has) or 'none'}"
                )
        if not config:
            return offered  # the server has no modality configuration to check against

        # Determine the length of the observation history from the delta indices, e.g. (-1, 0).
        steps = {modality: config[modality][1] for modality in ("video", "state") if modality in config}
        if any(step > 0 for deltas in steps.values() for step in deltas):
            raise ConfigError(f"{self._link.server} requires future observations: {steps}")
        oldest = min((step for deltas in steps.values() for step in deltas), default=0)
        self.num_obs_steps = 1 - oldest

        # Select the inputs that the server requires.
        sources, missing = [], []
        for modality in ("video", "state", "language"):
            for key in config.get(modality, ((), ()))[0]:
                if modality == "language":
                    self._language_key = cfg.language_key or key
                    continue
                found = [s for s in offered if (s.modality, s.key) == (modality, key)]
                if not found:
                    missing.append(f"{modality}.{key}")
                sources += [
                    Source(s.modality, s.key, s.name, s.part, tuple(d - oldest for d in steps[modality]))
                    for s in found
                ]
        if missing:
            raise ConfigError(
                f"{self._link.server} needs {', '.join(missing)}, and nothing is mapped to it; the env has"
                f" {', '.join(spaces)}: add --base.cameras ENV_NAME=KEY for video, --base.extra-state"
                " ENV_NAME=KEY for state"
            )
        return sources

    def _set_sizes(self, config: Mapping[str, Any]) -> None:
        """Set `chunk_size` and `num_action_steps` from the server, the settings or the defaults."""
        handshake = self._handshake
        steps = len(config["action"][1]) if "action" in config else 0
        size = handshake.chunk_size if handshake else steps
        if self.cfg.chunk_size is not None and size and size != self.cfg.chunk_size:
            raise ConfigError(
                f"{self._link.server} predicts {size} actions, not chunk_size {self.cfg.chunk_size}"
            )
        self.chunk_size = size or self.cfg.chunk_size or CHUNK_SIZE
        default = handshake.num_action_steps if handshake else min(NUM_ACTION_STEPS, self.chunk_size)
        self.num_action_steps = self.cfg.num_action_steps or default

    # --- requests -------------------------------------------------------------------------------------------

    def reset(self, mask: Tensor) -> None:
        """Reset the envs of `mask` on the server.

        `residual-rl serve` resets single envs. The other servers reset everything at once: with
        nested keys they get the request only if `mask` contains all envs, and with flat keys never.
        """
        env_ids = mask.nonzero().flatten().tolist()
        if self.cfg.layout == "n1.5":
            if self._handshake is not None and env_ids:
                self._link.request_all("reset", dict.fromkeys(env_ids))
        elif env_ids and self._handshake is not None:
            self._link.request("reset", {"options": {"env_ids": env_ids}})
        elif mask.all():
            with contextlib.suppress(RefusedError):  # some versions have no such endpoint
                self._link.request("reset", {"options": None})

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor | ActionChunk:
        # Request a chunk for each env.
        sent: dict[str, dict[str, NDArray[Any]]] = {"video": {}, "state": {}}
        for source in self._sources:
            sent[source.modality][source.key] = self._values(source, obs)
        request = self._request_flat if self.cfg.layout == "n1.5" else self._request_nested
        arm, gripper, exact = request(sent, env_ids.tolist())

        # Convert joint positions to actions, unless the reply contains the actions themselves.
        now = {name: value[:, -1] for name, value in obs.items()} if self.num_obs_steps > 1 else obs
        if ACTIONS in exact:
            actions = exact[ACTIONS]
        else:
            if self.cfg.action_mode == "relative":
                arm = arm + self._joints.to_server(now["joint_position"].cpu())[0][:, None]
            actions = self._env.targets_to_actions(
                self._joints.from_server(arm, gripper).to(self._env.device), now
            )
        return ActionChunk(actions, exact[UNCERTAINTY]) if UNCERTAINTY in exact else actions

    def _values(self, source: Source, obs: Obs) -> NDArray[Any]:
        """The array [b, T, …] to send for `source`."""
        value = obs[source.name]
        value = value[:, list(source.rows)] if self.num_obs_steps > 1 else value[:, None]
        if source.part != "all":
            arm, gripper = self._joints.to_server(value)
            value = arm if source.part == "arm" else gripper
        array: NDArray[Any] = value.cpu().numpy()
        return array.astype(np.float32) if source.modality == "state" else array

    def _request_nested(
        self, sent: Mapping[str, Mapping[str, Any]], env_ids: list[int]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Request chunks in the layout of N1.6 and N1.7: one batch for all envs.

        Returns the joint positions of arm and gripper, and the entries that `_exact_entries` reads.
        """
        language = {self._language_key: [[self.cfg.task_description]] * len(env_ids)}
        options = {"env_ids": env_ids} | ({ACTIONS: True} if self._exact else {})
        reply = self._link.request(
            "get_action", {"observation": {**sent, "language": language}, "options": options}
        )
        if (
            not isinstance(reply, list)
            or len(reply) != 2
            or not all(isinstance(part, dict) for part in reply)
        ):
            raise BasePolicyError(
                f"{self._link.server} gave a {type(reply).__name__}; expected a list of two dicts: actions"
                " and info"
            )
        return *self._parts(reply[0], "", (len(env_ids),)), self._exact_entries(reply[1], (len(env_ids),))

    def _request_flat(
        self, sent: Mapping[str, Mapping[str, Any]], env_ids: list[int]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Request chunks in the layout of N1.5, one for each env; returns the same as `_request_nested`."""
        requests = {}
        for row, env_id in enumerate(env_ids):
            request: dict[str, Any] = {
                f"{modality}.{key}": v[row] for modality, values in sent.items() for key, v in values.items()
            }
            request |= {ACTIONS: True} if self._exact else {}
            requests[env_id] = {**request, self._language_key: [self.cfg.task_description]}

        # Send them all, and stack the replies in the order of `env_ids`.
        replies = self._link.request_all("get_action", requests)
        parts = [self._parts(replies[env_id], "action.", ()) for env_id in env_ids]
        entries = [self._exact_entries(replies[env_id], ()) for env_id in env_ids]
        both = {
            name: torch.stack([values[name] for values in entries])
            for name in (ACTIONS, UNCERTAINTY)
            if all(name in values for values in entries)
        }
        return torch.stack([arm for arm, _ in parts]), torch.stack([gripper for _, gripper in parts]), both

    def _exact_entries(self, reply: Mapping[str, Any], batch: tuple[int, ...]) -> dict[str, Tensor]:
        """Normalised actions [*batch, K, A] and uncertainty [*batch, K] in a reply of `residual-rl serve`."""
        if not self._exact:
            return {}
        steps, server = (*batch, self.chunk_size), self._link.server
        shape = (*steps, len(self._env.action_unit))
        entries = {ACTIONS: numbers(reply.get(ACTIONS), ACTIONS, [shape], server)}
        if UNCERTAINTY in reply:
            entries[UNCERTAINTY] = numbers(reply[UNCERTAINTY], UNCERTAINTY, [steps], server)
        return entries

    def _parts(self, action: Any, prefix: str, batch: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Joint positions of the arm [*batch, K, arm] and the gripper [*batch, K, 1] in a reply.

        Some models return both under the key of the arm.
        """
        server, steps = self._link.server, (*batch, self.chunk_size)
        arm_key, gripper_key = prefix + self.cfg.arm_key, prefix + self.cfg.gripper_key
        if not isinstance(action, dict) or arm_key not in action:
            got = ", ".join(map(str, action)) if isinstance(action, dict) else type(action).__name__
            raise BasePolicyError(f"{server} gave {got or 'nothing'}; expected actions with {arm_key!r}")

        # Read the arm, whose array may have the gripper as its last column.
        size, joints = len(self._joints.arm), self._joints
        shapes = [(*steps, size)] + ([(*steps, size + 1)] if joints.gripper else [])
        arm = numbers(action[arm_key], arm_key, shapes, server)
        if not joints.gripper:
            return arm, arm[..., :0]
        if arm.shape[-1] == size + 1:
            return arm[..., :size], arm[..., size:]

        # The gripper has a separate key, with or without an axis of size 1.
        if gripper_key not in action:
            raise BasePolicyError(
                f"{server} gave {', '.join(map(str, action))}; expected {gripper_key!r} besides the arm's"
                f" {size} joints"
            )
        gripper = numbers(action[gripper_key], gripper_key, [(*steps, 1), steps], server)
        return arm, gripper.reshape(*steps, 1)


def _modalities(description: Any, server: str) -> dict[str, Any]:
    """`{modality: (keys, delta indices)}` from a server's modality configuration, with its handshake."""
    if not isinstance(description, dict):
        return {}
    config: dict[str, Any] = {}
    for modality in ("video", "state", "action", "language"):
        if modality not in description:
            continue
        try:
            # N1.5 writes the modality in front of each key.
            keys = tuple(
                str(key).removeprefix(f"{modality}.") for key in description[modality]["modality_keys"]
            )
            steps = tuple(int(step) for step in description[modality]["delta_indices"])
        except (KeyError, TypeError, ValueError) as error:
            raise BasePolicyError(
                f"{server} sent a modality configuration whose {modality!r} cannot be read: {error!r}"
            ) from error
        # The history is kept in memory: refuse a length that no policy uses.
        if max((abs(step) for step in steps), default=0) > 1000:
            raise BasePolicyError(
                f"{server} requires {modality} of the steps {steps[:4]}…: at most 1000 steps are supported"
            )
        config[modality] = (keys, steps)
    return config | ({HANDSHAKE: description[HANDSHAKE]} if HANDSHAKE in description else {})


def make(cfg: Gr00tCfg, env: VecEnv) -> Gr00tPolicy:
    """Return a connected client."""
    return Gr00tPolicy(cfg, env)
