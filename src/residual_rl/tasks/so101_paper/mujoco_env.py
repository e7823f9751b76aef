"""The task in MuJoCo: the scene's physics with an episode's draws, and the vec_env."""

from __future__ import annotations

import numpy as np
import torch

from residual_rl.envs.mujoco.physics import MujocoPhysics
from residual_rl.envs.task import Quantities
from residual_rl.envs.task_env import TaskEnv
from residual_rl.errors import ConfigError
from residual_rl.robots.kinematics import KinematicChain
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.robot import JOINTS
from residual_rl.tasks.so101_paper.scene import SceneCfg, build_scene
from residual_rl.tasks.so101_paper.task import SO101Paper

TICK_STEPS = (6, 5, 6, 5, 6, 5)
"""Physics steps of 1 ms in each tick of the control loop.

The policy runs every 33 steps (30 Hz), the control loop at about 180 Hz.
"""

SENSORS = {
    "joint_position": [f"jointpos_{name}" for name in JOINTS],
    "joint_velocity": [f"jointvel_{name}" for name in JOINTS],
    "ee_position": ["ee_position"],
    "sheet_position": ["sheet_position"],
    "sheet_quaternion": ["sheet_quaternion"],
}


class SO101PaperPhysics(MujocoPhysics):
    """B envs of the scene; friction, the sheet's mass, its start pose, servo gains and the joints' friction
    vary by episode."""

    def __init__(self, cfg: SO101PaperCfg, num_envs: int, num_threads: int = 0):
        top_fovy, wrist_fovy = cfg.camera_fovy
        scene = SceneCfg(
            robot_xml=cfg.robot_xml,
            servo=cfg.servo,
            tape_center=cfg.tape_center,
            tolerance=cfg.tolerance,
            top_fovy=top_fovy,
            wrist_fovy=wrist_fovy,
        )
        model = build_scene(scene)
        super().__init__(model, num_envs, TICK_STEPS, SENSORS, num_threads)
        self._friction = self.batch.expand("pair_friction")
        self._mass = self.batch.expand("body_mass")
        self._inertia = self.batch.expand("body_inertia")
        if cfg.servo_gain_scale != (1.0, 1.0):
            self._gain = self.batch.expand("actuator_gainprm")
            self._bias = self.batch.expand("actuator_biasprm")
        if cfg.joint_friction_scale != (1.0, 1.0):
            self._dry_friction = self.batch.expand("dof_frictionloss")
            self._viscous_friction = self.batch.expand("dof_damping")
        self._servos = np.array([model.actuator(name).id for name in JOINTS])
        self._dofs = np.array([model.joint(name).dofadr[0] for name in JOINTS])
        self._sheet = model.body("sheet").id
        self._sheet_qpos = int(model.joint("sheet_free").qposadr[0])

    def write_episode(self, env_ids: np.ndarray, episode: Quantities) -> None:
        # Friction and mass. Friction has two tangential, one torsional and two rolling coefficients; only the
        # tangential ones vary.
        model = self.model
        draws = {name: value.cpu().numpy() for name, value in episode.items()}
        friction = np.repeat(model.pair_friction[None], len(env_ids), 0)
        friction[:, :, :2] *= draws["friction_scale"][:, None, None]
        self._friction[env_ids] = friction
        self._mass[env_ids, self._sheet] = model.body_mass[self._sheet] * draws["mass_scale"]
        self._inertia[env_ids, self._sheet] = model.body_inertia[self._sheet] * draws["mass_scale"][:, None]
        self.batch.set_const(env_ids)

        # Servos and joints. A position servo's torque is gain[0] · target + bias[1] · position + ….
        if "servo_gain_scale" in draws:
            scale, rows = draws["servo_gain_scale"], np.ix_(env_ids, self._servos)
            self._gain[(*rows, 0)] = model.actuator_gainprm[self._servos, 0] * scale
            self._bias[(*rows, 1)] = model.actuator_biasprm[self._servos, 1] * scale
        if "joint_friction_scale" in draws:
            scale, rows = draws["joint_friction_scale"], np.ix_(env_ids, self._dofs)
            self._dry_friction[rows] = model.dof_frictionloss[self._dofs] * scale
            self._viscous_friction[rows] = model.dof_damping[self._dofs] * scale

        # Start pose of the arm and the sheet.
        joints = draws["start_joint_position"]
        self._qpos[env_ids, : joints.shape[1]] = joints
        self._ctrl[env_ids] = joints
        at, half_yaw = self._sheet_qpos, 0.5 * draws["start_yaw"]
        self._qpos[env_ids, at : at + 2] = draws["start_position"]
        self._qpos[env_ids, at + 3] = np.cos(half_yaw)
        self._qpos[env_ids, at + 4 : at + 6] = 0.0
        self._qpos[env_ids, at + 6] = np.sin(half_yaw)


def make(cfg: SO101PaperCfg, num_envs: int, num_threads: int = 0, device: str = "cpu") -> TaskEnv:
    """The vec_env of the task on MuJoCo."""
    if device != "cpu":
        raise ConfigError(f"MuJoCo runs on the CPU only: the device of the envs must be cpu, not {device!r}")
    physics = SO101PaperPhysics(cfg, num_envs, num_threads)
    joints = [physics.model.joint(name).id for name in JOINTS]
    kinematics = KinematicChain.from_mujoco(physics.model, "gripperframe")
    task = SO101Paper(cfg, torch.as_tensor(physics.model.jnt_range[joints]), kinematics)
    env = TaskEnv(task, physics)
    env.kinematics = kinematics
    return env
