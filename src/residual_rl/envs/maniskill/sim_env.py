"""A ManiSkill env with this package's names: a single one on the CPU, or a batch on a GPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.envs.maniskill.action_space import ActionRange
from residual_rl.envs.maniskill.arm_description import describe_arm
from residual_rl.envs.maniskill.clean_reset import give_fresh_physics
from residual_rl.envs.maniskill.factory import make_env
from residual_rl.envs.maniskill.spec import EnvDescription, ManiSkillEnvCfg
from residual_rl.envs.workers.shared_memory import ArraySpec
from residual_rl.errors import ConfigError
from residual_rl.types import Obs

_NOT_METRICS = {"elapsed_steps", "reconfigure", "success", "fail"}
"""Entries of ManiSkill's `info` that are not metrics of the task."""


@dataclass(frozen=True)
class Step:
    """Results of a step, with the batch in front."""

    obs: Obs
    reward: Tensor
    """[B]"""
    success: Tensor
    """[B] bool; false if the task does not define success."""
    fail: Tensor
    """[B] bool; false if the task does not define failure."""
    metrics: Obs
    """The task's metrics by name, [B] each."""


class ManiSkillEnv:
    """A ManiSkill env with named observations, and actions in [-1, 1] in any control mode.

    Observations, float32 [B, n] except for images:

    - `state`: the flat observation of ManiSkill's mode `state` (not in mode `rgb`);
    - `proprioception`: the same without privileged information (in modes with images);
    - images, uint8 [B, H, W, 3], under the names of the cameras;
    - `joint_position`, `joint_velocity`: all joints of all robots, in [rad] or [m] and per second, if
      observed;
    - `base_pose`, `tcp_pose`: position [m] and quaternion (w, x, y, z) in the world frame, for a single
      robot;
    - the task's entries of the state, by name (`obj_pose`, `goal_pos`, …).

    Args:
        cfg: the env's settings.
        num_envs: B; more than 1 needs the GPU simulation.

    Raises:
        ConfigError: the env cannot be created with these settings on this machine.
        UnknownNameError: the task, the robot or the control mode does not exist.
    """

    remote = False

    def __init__(self, cfg: ManiSkillEnvCfg, num_envs: int = 1):
        self.cfg, self.num_envs = cfg, num_envs
        self.env: Any = make_env(cfg, num_envs)
        self.device = torch.device(self.env.device)
        # A scene that is rebuilt at some resets only depends on earlier seeds.
        self.deterministic = self.device.type == "cpu" and self.env.reconfiguration_freq in (0, 1)
        if self.env.agent is None:
            raise ConfigError(f"{cfg.env_id} has no robot, so there are no actions; choose another --env-id")
        self._actions = ActionRange(self.env)
        # the first observation and the metrics of the scene as created; a reset would rebuild it
        info = self.env.get_info()
        raw = self.env.get_obs(info)
        self._metrics = tuple(
            name
            for name, value in info.items()
            if name not in _NOT_METRICS and torch.as_tensor(value).numel() == num_envs
        )
        self._seeds = torch.zeros(num_envs, dtype=torch.int64)
        self._base_pose: Tensor | None = None
        self._obs = self._observe(raw, info)
        self.description = self.describe()

    # --- an episode -----------------------------------------------------------------------------------------

    def reset(self, env_ids: Tensor, seeds: Tensor) -> None:
        """Begin the episodes of `seeds` [n] int64, each in [0, 2^31), in the envs `env_ids` [n] int64.

        On the CPU an episode is a function of its seed and its actions. On a GPU, ManiSkill uses the first
        seed for all envs that are reset together.
        """
        if len(env_ids) == 0:
            return
        self._seeds[env_ids.cpu()] = seeds.cpu()
        if self.device.type == "cpu" and self.env.reconfiguration_freq != 1:
            give_fresh_physics(self.env)
        # `env.reset` takes the seeds of all envs; for a subset, or without rebuilds, they are set directly
        takes_all_seeds = len(env_ids) == self.num_envs and (
            self.device.type != "cpu" or self.env.reconfiguration_freq != 0
        )
        raw, info = (
            self.env.reset(seed=self._seeds.tolist()) if takes_all_seeds else self._reset_some(env_ids)
        )
        self._base_pose = None
        self._obs = self._observe(raw, info)

    def _reset_some(self, env_ids: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset the envs `env_ids` with their seeds.

        `env.reset` takes the seeds of all envs or none. With those of all envs, it would create generators
        for the envs that continue too, and seed torch from the first env, which gives the same draws again
        and again. This function is also faster on the CPU, since it creates one generator instead of three.
        """
        # set the seeds and generators as `env.reset` would
        rows = env_ids.cpu().numpy()
        seeds = self._seeds.numpy()[rows].tolist()
        generators = [np.random.RandomState(seed) for seed in seeds]  # as ManiSkill does
        self.env._episode_seed[rows] = seeds
        self.env._batched_episode_rng[rows] = generators
        self.env._episode_rng = generators[0]
        # seed torch for the draws of this reset only
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if on_gpu else []):
            if on_gpu:
                torch.manual_seed(seeds[0])
            else:
                # `torch.manual_seed` also seeds all other kinds of devices, which takes longer
                torch.default_generator.manual_seed(seeds[0])
            result: tuple[dict[str, Any], dict[str, Any]] = self.env.reset(options={"env_idx": env_ids})
        return result

    def step(self, actions: Tensor, active: Tensor | None = None) -> Step:  # noqa: ARG002
        """Execute `actions` [B, A] in [-1, 1] in all envs.

        `active` is ignored, because the GPU simulation cannot step a subset of the envs.
        """
        # ManiSkill's terminated and truncated are ignored, because the vec_env ends episodes
        raw, reward, _, _, info = self.env.step(self._actions.to_maniskill(actions))
        self._obs = self._observe(raw, info)
        success, fail = (self._per_env(info.get(name, False)).bool() for name in ("success", "fail"))
        return Step(
            self._obs,
            self._per_env(reward),
            success,
            fail,
            {name: self._per_env(info[name]) for name in self._metrics},
        )

    def normalised(self, actions: Tensor) -> Tensor:
        """Convert `actions` [B, A] of the robot's control mode to the range [-1, 1] that `step` takes."""
        return self._actions.from_maniskill(actions)

    def observations(self) -> Obs:
        """The observation of all envs after their last reset or step."""
        return dict(self._obs)

    def states(self) -> Tensor:
        """[B, 1 + S] float64: the episode's seed and the simulator's state of each env."""
        return torch.cat(
            [self._seeds[:, None].to(self.device, torch.float64), self.env.get_state().double()], 1
        )

    def set_states(self, env_ids: Tensor, states: Tensor) -> None:
        """Set the parts `state_parts` of the simulator's state in the envs `env_ids` [n] to `states` [n, S].

        Raises `ConfigError` in a GPU simulation.
        """
        if self.device.type != "cpu":
            raise ConfigError("episodes start in stored states only in ManiSkill's CPU simulation")
        if len(env_ids) == 0:
            return
        self.env.set_state(states.float())
        self.env.agent.controller.reset()  # targets of the controllers are those of the new state
        info = self.env.get_info()
        self._base_pose = None
        self._obs = self._observe(self.env.get_obs(info), info)

    def close(self) -> None:
        """Close the env and free its scene."""
        self.env.close()

    # --- parts ----------------------------------------------------------------------------------------------

    def _per_env(self, value: Any) -> Tensor:
        """`value` as a new tensor [B] float32, because the next reset may change the task's tensor."""
        return (
            torch.as_tensor(value, device=self.device)
            .reshape(-1)
            .expand(self.num_envs)
            .to(torch.float32, copy=True)
        )

    def _observe(self, raw: dict[str, Any], info: dict[str, Any]) -> Obs:
        """Copies of the observations, because ManiSkill's tensors are views of the simulator's buffers."""
        # the task's entries of the state, by name
        agent_obs = raw.get("agent", {})
        robots = [agent_obs] if "qpos" in agent_obs else list(agent_obs.values())
        state = {name: value for name, value in raw.items() if name not in ("sensor_param", "sensor_data")}
        named = _leaves(
            {name: value for name, value in state.items() if name not in ("agent", "extra")}
            | raw.get("extra", {})
        )
        # joints of all robots, and the poses of a single one
        for name, key in (("joint_position", "qpos"), ("joint_velocity", "qvel")):
            if robots and all(key in robot for robot in robots):
                named[name] = torch.cat([robot[key] for robot in robots], 1)
        if not hasattr(self.env.agent, "agents"):
            agent = self.env.agent
            if self._base_pose is None or not agent.fix_root_link:
                self._base_pose = agent.robot.pose.raw_pose
            named["base_pose"] = self._base_pose
            if "tcp_pose" not in named and getattr(agent, "tcp", None) is not None:
                named["tcp_pose"] = agent.tcp.pose.raw_pose
        # copy all of them, and add the flat observations and images of the mode
        obs = {name: value.reshape(self.num_envs, -1).float().clone() for name, value in named.items()}
        if self.cfg.obs_mode != "rgb":
            obs["state"] = self._flattened(state)
        if self.cfg.has_images:
            obs["proprioception"] = self._flattened({**state, "extra": self._extra_in_mode_rgb(info)})
            obs |= {name: textures["rgb"][..., :3].clone() for name, textures in raw["sensor_data"].items()}
        return obs

    def _flattened(self, state: dict[str, Any]) -> Tensor:
        from mani_skill.utils.common import flatten_state_dict

        flat: Tensor = flatten_state_dict(state, use_torch=True, device=self.device)
        return flat.float()

    def _extra_in_mode_rgb(self, info: dict[str, Any]) -> dict[str, Any]:
        """The task's observations in mode `rgb`, which have no privileged information."""
        # switch the mode for this call: tasks read either its name or its struct
        name, struct = self.env._obs_mode, self.env.obs_mode_struct
        self.env._obs_mode, self.env.obs_mode_struct = "rgb", dataclasses.replace(struct, state_dict=False)
        extra: dict[str, Any] = self.env._get_obs_extra(info)
        self.env._obs_mode, self.env.obs_mode_struct = name, struct
        return extra

    def describe(self) -> EnvDescription:
        """The properties of this env."""
        from mani_skill.utils.registration import REGISTERED_ENVS

        # multi-robot envs have a list of agents
        agents = getattr(self.env.agent, "agents", [self.env.agent])
        return EnvDescription(
            robot="+".join(agent.uid for agent in agents),
            control_mode=agents[0].control_mode,
            max_episode_steps=REGISTERED_ENVS[self.cfg.env_id].max_episode_steps,
            control_hz=float(self.env.control_freq),
            observations={
                name: ArraySpec(tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
                for name, value in self._obs.items()
            },
            metrics=self._metrics,
            action_unit=tuple(self._actions.size.tolist()),
            state_size=self.states().shape[1],
            deterministic=self.deterministic,
            env_id=self.cfg.env_id,
            arm=describe_arm(agents[0]) if len(agents) == 1 else None,
            state_parts=self._state_parts(),
        )

    def _state_parts(self) -> tuple[tuple[str, int], ...]:
        """Name and size of the parts that ManiSkill's `set_state` reads, in its order."""
        state = self.env.get_state_dict()
        return tuple(
            (f"{kind}/{name}", int(value.shape[-1]))
            for kind in ("actors", "articulations")
            for name, value in state.get(kind, {}).items()
        )


def _leaves(nested: dict[str, Any], prefix: str = "") -> Obs:
    """The tensors in nested dicts, with their keys joined by underscores."""
    found: Obs = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            found |= _leaves(value, f"{prefix}{key}_")
        else:
            found[prefix + key] = torch.as_tensor(value)
    return found
