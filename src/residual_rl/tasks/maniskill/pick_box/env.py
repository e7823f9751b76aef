"""PickBox-v1: one arm picks a box from a table and puts it into a basket."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.utils import randomization
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.registration import register_env
from mani_skill.utils.scene_builder.table import TableSceneBuilder
from mani_skill.utils.structs import Actor, Pose
from torch import Tensor

from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.tasks.maniskill.pick_box.layouts import BASKET_FLOOR, LAYOUTS

MAX_LINEAR_SPEED, MAX_ANGULAR_SPEED = 0.1, 0.5
"""Largest linear [m/s] and angular [rad/s] speed of a box at rest."""
MAX_REWARD = 8.0
"""Reward of a step at success."""
RANGES: dict[str, tuple[float, float]] = {
    "box_scale": (0.85, 1.15),
    "box_density": (400.0, 1600.0),
    "box_friction": (0.5, 1.5),
    "box_linear_damping": (0.0, 0.5),
    "box_angular_damping": (0.0, 0.5),
    "ambient_light": (0.2, 0.5),
    "light": (0.5, 1.2),
    "light_slope": (-0.6, 0.6),
}
"""Ranges of the uniform draws of each episode.

They are the box's half size (a factor on `Layout.box_half_size`), density [kg/m³], friction and damping
[1/s]; the brightness of the ambient light and of the lamp; and the slope of the lamp's direction along x and
y. The colours of box and table are uniform in RGB.
"""
_JOINT_NOISE = 0.02
"""Standard deviation of the initial joint positions of the arm [rad]."""
_IMAGE_SIZE = 224


def dense_reward(
    tcp_to_obj: Tensor,
    obj_height: Tensor,
    obj_to_carry: Tensor,
    obj_to_goal: Tensor,
    speed: Tensor,
    carry_height: float,
    info: dict[str, Tensor],
) -> Tensor:
    """The reward [B] of a state. It has phases, each with more reward than all earlier ones.

    Reaching for the box gives up to 1, grasping it another 1, lifting it up to 1, and moving it over the
    basket, once it is above the rim, up to 1. Holding it over the basket gives 4, releasing it there 5. Then
    closeness to the goal gives up to 1, and coming to rest up to 1. Success gives `MAX_REWARD`.

    Args:
        tcp_to_obj: [B] distance from the tool to the box [m].
        obj_height: [B] height of the bottom of an upright box above the table [m].
        obj_to_carry: [B] distance from the box to the point above the basket where it is released [m].
        obj_to_goal: [B] distance from the box to the goal [m].
        speed: [B] linear speed of the box [m/s].
        carry_height: height of the bottom of the box while it is carried [m].
        info: flags [B] of `PickBoxEnv.evaluate`.
    """
    grasped = info["is_grasped"]
    lift = (obj_height / carry_height).clamp(0.0, 1.0)
    transport = (1 - torch.tanh(5 * obj_to_carry)) * info["is_lifted"]
    held = 1 - torch.tanh(5 * tcp_to_obj) + grasped * (1 + lift + transport)
    rest = (1 - torch.tanh(10 * speed)) * info["is_obj_placed"]
    released = 5 + (1 - torch.tanh(5 * obj_to_goal)) + rest
    over = torch.where(grasped, 4.0, released)
    reward = torch.where(info["is_over_basket"], over, held)
    return torch.where(info["success"], MAX_REWARD, reward)


@register_env("PickBox-v1", max_episode_steps=150)
class PickBoxEnv(BaseEnv):
    """A box lies on a table, with a basket beside it.

    Success requires that the centre of the box is within `Layout.goal_thresh` of the goal, that the gripper
    has released it, and that it is at rest. The goal is the box's position when it lies in the middle of the
    basket. Each episode draws the positions of box and basket and the quantities in `RANGES`. The latter need
    a rebuild of the scene: a single env is rebuilt at each reset, and batched envs keep their first draws.
    """

    SUPPORTED_ROBOTS: ClassVar[list[str]] = list(LAYOUTS)

    def __init__(
        self,
        *args: Any,
        robot_uids: str = "panda",
        num_envs: int = 1,
        reconfiguration_freq: int | None = None,
        sensor_configs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(robot_uids, str):
            raise ConfigError(f"PickBox-v1 needs a single robot, not {robot_uids}")
        if robot_uids not in LAYOUTS:
            raise UnknownNameError("robot of PickBox-v1:", robot_uids, LAYOUTS)
        self.layout = LAYOUTS[robot_uids]
        if reconfiguration_freq is None:
            reconfiguration_freq = 1 if num_envs == 1 else 0
        super().__init__(
            *args,
            robot_uids=robot_uids,
            num_envs=num_envs,
            reconfiguration_freq=reconfiguration_freq,
            sensor_configs={"width": _IMAGE_SIZE, "height": _IMAGE_SIZE, **(sensor_configs or {})},
            **kwargs,
        )

    # --- cameras and light ----------------------------------------------------------------------------------

    @property
    def _default_sensor_configs(self) -> list[CameraConfig]:
        pose = sapien_utils.look_at(self.layout.camera_eye, self.layout.camera_target)
        cameras = [CameraConfig("base_camera", pose, _IMAGE_SIZE, _IMAGE_SIZE, fov=1.2, near=0.01, far=100.0)]
        if self.layout.hand_link is not None:
            mount = self.agent.robot.links_map[self.layout.hand_link]
            # in front of the link, looking along its z
            pose = sapien.Pose([0.05, 0.0, 0.04], [0.0, math.sqrt(0.5), 0.0, math.sqrt(0.5)])
            cameras.append(
                CameraConfig(
                    "hand_camera",
                    pose,
                    _IMAGE_SIZE,
                    _IMAGE_SIZE,
                    fov=1.5,
                    near=0.01,
                    far=100.0,
                    mount=mount,
                )
            )
        return cameras

    @property
    def _default_human_render_camera_configs(self) -> CameraConfig:
        x, y, _ = self.layout.camera_target
        pose = sapien_utils.look_at([x + 0.6, y + 0.5, 0.5], [x - 0.1, y - 0.05, 0.1])
        return CameraConfig("render_camera", pose, 512, 512, fov=1.0, near=0.01, far=100.0)

    def _load_lighting(self, options: dict[str, Any]) -> None:  # noqa: ARG002
        for env_id, scene in enumerate(self.scene.sub_scenes):
            scene.render_system.ambient_light = [self._draws["ambient_light"][env_id].item()] * 3
            direction = [*(float(slope) for slope in self._draws["light_slope"][env_id]), -1.0]
            brightness = [self._draws["light"][env_id].item()] * 3
            self.scene.add_directional_light(
                direction, brightness, shadow=self.enable_shadow, shadow_scale=5, scene_idxs=[env_id]
            )

    # --- the scene ------------------------------------------------------------------------------------------

    def _load_agent(self, options: dict[str, Any]) -> None:
        super()._load_agent(options, sapien.Pose(self.layout.base))

    def _load_scene(self, options: dict[str, Any]) -> None:  # noqa: ARG002
        # the draws of each env
        rng = self._batched_episode_rng
        sizes = {"light_slope": 2}
        self._draws = {
            name: rng.uniform(*bounds, size=(sizes.get(name, 1),)) for name, bounds in RANGES.items()
        }
        self._draws |= {name: rng.uniform(0.0, 1.0, size=(3,)) for name in ("box_color", "table_color")}
        # the table, the basket, and the box, whose size differs between envs
        self.table_scene = TableSceneBuilder(self)
        self.table_scene.build()
        if self.scene.can_render():
            self._paint_table()
        self.basket = self._build_basket()
        half_sizes = self.layout.box_half_size * self._draws["box_scale"][:, 0]
        boxes = [self._build_box(env_id, float(half_size)) for env_id, half_size in enumerate(half_sizes)]
        self.box = Actor.merge(boxes, "box")
        self.add_to_state_dict_registry(self.box)
        self.box_half_size = torch.tensor(half_sizes, dtype=torch.float32, device=self.device)
        """[B]: half size of the box [m]."""

    def _build_box(self, env_id: int, half_size: float) -> Actor:
        drawn = {name: values[env_id] for name, values in self._draws.items()}
        friction, density = float(drawn["box_friction"][0]), float(drawn["box_density"][0])
        builder = self.scene.create_actor_builder()
        # collision shape and visual
        surface = sapien.physx.PhysxMaterial(friction, friction, 0.0)
        builder.add_box_collision(half_size=[half_size] * 3, material=surface, density=density)
        builder.add_box_visual(
            half_size=[half_size] * 3,
            material=sapien.render.RenderMaterial(base_color=[*drawn["box_color"], 1.0]),
        )
        # The initial pose is the same in each env, because a GPU scene is built before its first reset.
        builder.initial_pose = sapien.Pose([*self.layout.spawn_center, half_size])
        builder.set_scene_idxs([env_id])
        box: Actor = builder.build_dynamic(name=f"box-{env_id}")
        self.remove_from_state_dict_registry(box)
        body = box._objs[0].find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
        body.linear_damping = float(drawn["box_linear_damping"][0])
        body.angular_damping = float(drawn["box_angular_damping"][0])
        return box

    def _build_basket(self) -> Actor:
        """Build a floor and four walls. The origin is the centre of the floor's underside."""
        inner = self.layout.basket_half_size
        half_wall, half_rim = BASKET_FLOOR / 2, self.layout.rim_height / 2
        outer = inner + 2 * half_wall
        # centre and half size of the floor and of each wall
        parts = [([0.0, 0.0, half_wall], [outer, outer, half_wall])]
        for side in (-1.0, 1.0):
            parts.append(([side * (inner + half_wall), 0.0, half_rim], [half_wall, outer, half_rim]))
            parts.append(([0.0, side * (inner + half_wall), half_rim], [outer, half_wall, half_rim]))
        builder = self.scene.create_actor_builder()
        material = sapien.render.RenderMaterial(base_color=[0.35, 0.25, 0.15, 1.0])
        for place, half_size in parts:
            builder.add_box_collision(sapien.Pose(place), half_size)
            builder.add_box_visual(sapien.Pose(place), half_size, material=material)
        builder.initial_pose = sapien.Pose([*self.layout.basket_center, 0.0])
        basket: Actor = builder.build_kinematic(name="basket")
        return basket

    def _paint_table(self) -> None:
        for env_id, table in enumerate(self.table_scene.table._objs):
            body = table.find_component_by_type(sapien.render.RenderBodyComponent)
            for shape in body.render_shapes:
                for part in shape.parts:
                    part.material.set_base_color_texture(None)
                    part.material.set_base_color([*self._draws["table_color"][env_id], 1.0])

    def _initialize_episode(self, env_idx: Tensor, options: dict[str, Any]) -> None:  # noqa: ARG002
        with torch.device(self.device):
            n = len(env_idx)
            # the robot, with noise on the joints of the arm
            ready = torch.tensor(self.layout.ready, dtype=torch.float32)
            noise = torch.randn(n, len(ready)) * _JOINT_NOISE
            noise[:, len(self.agent.arm_joint_names) :] = 0.0
            self.agent.reset(ready + noise)

            # the basket
            position = torch.zeros(n, 3)
            position[:, :2] = self._random_position(
                n, self.layout.basket_center, self.layout.basket_spawn_half_size
            )
            self.basket.set_pose(Pose.create_from_pq(position))

            # the box, turned about the vertical
            position = torch.zeros(n, 3)
            position[:, :2] = self._random_position(n, self.layout.spawn_center, self.layout.spawn_half_size)
            position[:, 2] = self.box_half_size[env_idx]
            turned = randomization.random_quaternions(n, lock_x=True, lock_y=True)
            self.box.set_pose(Pose.create_from_pq(position, turned))

    def _random_position(self, n: int, center: tuple[float, float], half_size: float) -> Tensor:
        return torch.tensor(center) + (2 * torch.rand(n, 2) - 1) * half_size

    # --- the task -------------------------------------------------------------------------------------------

    @property
    def goal_pos(self) -> Tensor:
        """[B, 3]: goal position of the centre of the box [m]."""
        goal: Tensor = self.basket.pose.p.clone()
        goal[:, 2] += BASKET_FLOOR + self.box_half_size
        return goal

    @property
    def carry_height(self) -> float:
        """Height of the bottom of the box while it is carried to the basket [m]."""
        return self.layout.rim_height + self.layout.carry_clearance

    def _get_obs_extra(self, info: dict[str, Any]) -> dict[str, Tensor]:
        tcp, goal, obj = self.agent.tcp_pose, self.goal_pos, self.box.pose
        obs = {"is_grasped": info["is_grasped"], "tcp_pose": tcp.raw_pose, "goal_pos": goal}
        if "state" in self.obs_mode:
            obs["obj_pose"] = obj.raw_pose
            obs["tcp_to_obj_pos"] = obj.p - tcp.p
            obs["obj_to_goal_pos"] = goal - obj.p
            obs["obj_half_size"] = self.box_half_size[:, None]
        return obs

    def evaluate(self) -> dict[str, Tensor]:
        """The success condition and its parts, [B] bool each."""
        # the conditions of success
        to_goal = self.goal_pos - self.box.pose.p
        grasped = self.agent.is_grasping(self.box)
        slow = self.box.linear_velocity.norm(dim=1) <= MAX_LINEAR_SPEED
        unturning = self.box.angular_velocity.norm(dim=1) <= MAX_ANGULAR_SPEED
        placed = to_goal.norm(dim=1) <= self.layout.goal_thresh
        return {
            "is_grasped": grasped,
            "is_lifted": self._obj_height() >= self.layout.rim_height,
            "is_over_basket": to_goal[:, :2].norm(dim=1) <= self.layout.goal_thresh,
            "is_obj_placed": placed,
            "is_obj_static": slow & unturning,
            "success": placed & ~grasped & slow & unturning,
        }

    def _obj_height(self) -> Tensor:
        return self.box.pose.p[:, 2] - self.box_half_size

    def compute_dense_reward(self, obs: Any, action: Tensor, info: dict[str, Tensor]) -> Tensor:  # noqa: ARG002
        """`dense_reward` of the current state [B]."""
        obj, goal = self.box.pose.p, self.goal_pos
        carry = goal.clone()
        carry[:, 2] = self.carry_height + self.box_half_size
        return dense_reward(
            tcp_to_obj=(obj - self.agent.tcp_pose.p).norm(dim=1),
            obj_height=self._obj_height(),
            obj_to_carry=(carry - obj).norm(dim=1),
            obj_to_goal=(goal - obj).norm(dim=1),
            speed=self.box.linear_velocity.norm(dim=1),
            carry_height=self.carry_height,
            info=info,
        )

    def compute_normalized_dense_reward(self, obs: Any, action: Tensor, info: dict[str, Tensor]) -> Tensor:
        """`dense_reward` of the current state, scaled to at most 1 [B]."""
        return self.compute_dense_reward(obs, action, info) / MAX_REWARD
