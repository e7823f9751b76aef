"""Client for a policy on an openpi server (such as π0), or `residual-rl serve --protocol openpi`.

The wire format is that of Physical-Intelligence/openpi (`packages/openpi-client`,
`src/openpi/serving/websocket_policy_server.py`): a websocket, msgpack, a flat observation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_rl.base_policies.openpi import OpenPiCfg
from residual_rl.envs.spaces import conversion_inputs, observed, shape_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.remote.client import numbers
from residual_rl.remote.handshake import HANDSHAKE, Handshake
from residual_rl.remote.websocket_client import WebsocketLink
from residual_rl.robots.arm_joints import ArmJoints
from residual_rl.types import ActionChunk, BasePolicy, Obs
from residual_rl.utils.network import secret
from residual_rl.utils.text import parse_pairs

NUM_ACTION_STEPS = 8
PROTOCOL = "openpi"
RESET = {"__ctrl__": "reset"}
"""Message that resets an env of `residual-rl serve`."""


class OpenPiPolicy(BasePolicy):
    """Sends the observations of each env over a separate connection.

    Args:
        cfg: the settings.
        env: for actions in the robot's units, it must define these units (`hardware`), and its actions must
            command joint targets.
    """

    remote = True

    def __init__(self, cfg: OpenPiCfg, env: VecEnv):
        self.cfg, self._env = cfg, env
        host = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
        self._link = WebsocketLink(
            cfg.url or f"ws://{host}:{cfg.port}", cfg.timeout, cfg.reconnect, secret(cfg.api_token)
        )

        # Read the metadata: `residual-rl serve` sends a handshake, other servers follow the settings.
        metadata = self._link.metadata()
        self._ours = HANDSHAKE in metadata
        if self._ours:
            units = self._agree_with_ours(Handshake.from_wire(metadata[HANDSHAKE], self._link.server))
        else:
            units = self._agree_with_another()

        # Joint positions in the robot's units are converted to actions.
        self._joints: ArmJoints | None = None
        needed: tuple[str, ...] = ()
        if units == "hardware":
            if env.hardware is None:
                raise ConfigError(
                    "action_units 'hardware' needs an env with the units of a robot (`hardware`);"
                    " this env has none"
                )
            self._joints, needed = ArmJoints(env.hardware), conversion_inputs(env)

        # Check the observations that are sent or needed for the conversion.
        names = dict.fromkeys([*needed, *self._keys.values()])
        if missing := [name for name in names if name not in observed(env)]:
            raise ConfigError(
                f"the env has no observation {', '.join(missing)}; it has {', '.join(observed(env))}"
            )
        self.inputs = {name: shape_of(env, name) for name in names}  # type: ignore[misc]

    def _agree_with_ours(self, handshake: Handshake) -> str:
        """Set keys and sizes from the handshake of `residual-rl serve`. Returns the units of its actions."""
        cfg, server = self.cfg, self._link.server
        handshake.check(self._env, PROTOCOL, server)
        if cfg.observation:
            raise ConfigError(f"observation is defined by {server}, which is residual-rl serve: leave it out")
        if cfg.action_units not in (None, handshake.action_units):
            raise ConfigError(f"{server} gives {handshake.action_units} actions, not {cfg.action_units} ones")
        if handshake.action_units == "normalized" and not handshake.same_action_scaling(self._env):
            mine = self._env.action_unit.tolist()
            raise ConfigError(
                f"an action of 1 means {list(handshake.action_unit)} to {server} (task {handshake.task!r}),"
                f" and {mine} to this env: use the same task settings (such as --control-mode) for both"
            )
        self._keys = {served.key: name for name, served in handshake.inputs.items()}
        self.num_obs_steps, self.chunk_size = handshake.num_obs_steps, handshake.chunk_size
        self.num_action_steps = cfg.num_action_steps or handshake.num_action_steps
        return handshake.action_units

    def _agree_with_another(self) -> str:
        """Set keys and sizes from the settings, for other servers. Returns the units of the actions."""
        self._keys = parse_pairs(self.cfg.observation, "observation")
        if not self._keys:
            raise ConfigError(
                f"{self._link.server} does not describe its inputs: map them, e.g. --base.observation"
                " state=observation/state"
            )
        self.num_action_steps = self.cfg.num_action_steps or NUM_ACTION_STEPS
        self.chunk_size = self.num_action_steps  # it may predict more; those are not executed
        return self.cfg.action_units or "normalized"

    def reset(self, mask: Tensor) -> None:
        """Reset the envs of `mask` on `residual-rl serve`. The protocol of other servers has no reset."""
        if self._ours:
            env_ids = self._link.connected & set(mask.nonzero().flatten().tolist())
            self._link.request_all(dict.fromkeys(sorted(env_ids), RESET))

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor | ActionChunk:
        # Send one request for each env.
        values = {key: obs[name].cpu().numpy() for key, name in self._keys.items()}
        numbered = list(enumerate(env_ids.tolist()))
        replies = self._link.request_all(
            {i: {**{k: v[row] for k, v in values.items()}, "prompt": self.cfg.prompt} for row, i in numbered}
        )
        actions = torch.stack([self._actions(replies[env_id]) for _, env_id in numbered])
        if self._joints is not None:
            now = {name: value[:, -1] for name, value in obs.items()} if self.num_obs_steps > 1 else obs
            arm, gripper = actions[..., self._joints.arm], actions[..., self._joints.gripper]
            actions = self._env.targets_to_actions(
                self._joints.from_server(arm, gripper).to(self._env.device), now
            )

        # Add the uncertainty if the server sends it.
        if not (self._ours and all("uncertainty" in reply for reply in replies.values())):
            return actions
        spread = [
            numbers(replies[env_id]["uncertainty"], "uncertainty", [(self.chunk_size,)], self._link.server)
            for _, env_id in numbered
        ]
        return ActionChunk(actions, torch.stack(spread))

    def _actions(self, reply: Any) -> Tensor:
        """The actions [K, A] of a reply."""
        server = self._link.server
        if not isinstance(reply, dict) or "actions" not in reply:
            got = ", ".join(map(str, reply)) if isinstance(reply, dict) else type(reply).__name__
            raise BasePolicyError(f"{server} gave {got or 'nothing'}; expected a dict with 'actions'")
        size = len(self._env.action_unit) if self._joints is None else len(self._joints.hardware.joint_names)
        actions = numbers(
            reply["actions"], "actions", [(self.chunk_size if self._ours else -1, size)], server
        )
        if len(actions) < self.chunk_size:
            raise BasePolicyError(
                f"{server} gave {len(actions)} actions; num_action_steps {self.chunk_size} needs at least as"
                " many"
            )
        return actions[: self.chunk_size]


def make(cfg: OpenPiCfg, env: VecEnv) -> OpenPiPolicy:
    """Return a connected client."""
    return OpenPiPolicy(cfg, env)
