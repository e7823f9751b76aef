"""The checks of `so101-paper`'s imperfections of a real arm, for those that are turned on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from residual_rl.envs.sanity_checks import DOCTOR_SEED, Check
from residual_rl.envs.task_env import TaskEnv
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.imperfections import Imperfections
from residual_rl.tasks.so101_paper.mujoco_env import make
from residual_rl.tasks.so101_paper.robot import JOINTS
from residual_rl.tasks.so101_paper.stability_check import physics_of


def check_imperfections(cfg: SO101PaperCfg) -> Iterator[Check]:
    """Check the draws of latency, backlash, servos and joints, that the envs use them, and lost poses."""
    cfg = dataclasses.replace(cfg, position_noise=0.0, angle_noise=0.0)
    env = make(cfg, 16)
    drawn = Imperfections(cfg).randomize(torch.arange(DOCTOR_SEED, DOCTOR_SEED + 2000))
    for name, values in drawn.items():
        low, high = getattr(cfg, name)
        least, most = float(values.min()), float(values.max())
        width = 0.0 if cfg.randomization == "off" else 0.98 * (high - low)
        ok = low - 1e-12 <= least and most <= high + 1e-12 and most - least >= width - 1e-12
        yield Check(f"draws of {name}", f"{low:g} to {high:g}", f"{least:.4g} to {most:.4g}", ok)
    env.reset(seed=DOCTOR_SEED)
    yield from _check_model(env)
    yield from _check_commands(env, cfg)
    env.close()
    if cfg.pose_dropout:
        yield _check_share_lost(cfg)


def _check_model(env: TaskEnv) -> Iterator[Check]:
    physics = physics_of(env)
    model, batch = physics.model, physics.batch
    servos = [model.actuator(name).id for name in JOINTS]
    dofs = [int(model.joint(name).dofadr[0]) for name in JOINTS]
    for name, field, rows in (
        ("servo_gain_scale", "actuator_gainprm", np.s_[:, servos, 0]),
        ("servo_gain_scale", "actuator_biasprm", np.s_[:, servos, 1]),
        ("joint_friction_scale", "dof_frictionloss", np.s_[:, dofs]),
        ("joint_friction_scale", "dof_damping", np.s_[:, dofs]),
    ):
        if name in env.episode:
            nominal = getattr(model, field)[rows[1:]]
            off = np.abs(batch.expand(field)[rows] / nominal - env.episode[name].numpy()).max()
            yield Check(f"{name} in {field}", "as drawn", f"off by {off:.1e}", bool(off < 1e-9))


def _check_commands(env: TaskEnv, cfg: SO101PaperCfg) -> Iterator[Check]:
    """Turn the base of the arm to one side: when it starts, and how far the servo is then ahead."""
    latency = cfg.action_latency if isinstance(cfg.action_latency, tuple) else (cfg.action_latency,) * 2
    action = torch.zeros(env.num_envs, len(JOINTS))
    action[:, 0] = 1.0
    start = env.observations()["joint_target"][:, 0]
    delay = torch.zeros(env.num_envs, dtype=torch.int64)
    num_steps = 8 + latency[1] + int(cfg.backlash[1] / cfg.action_scale)
    for _ in range(min(num_steps, cfg.max_episode_steps - 1)):
        obs, *_ = env.step(action)
        delay += obs["joint_target"][:, 0] == start
    if latency[1]:
        expected = env.episode.get("action_latency", torch.full_like(delay, latency[0]))
        text = ", ".join(map(str, sorted(set(delay.tolist()))))
        yield Check("steps until an action arrives", "the latency", text, torch.equal(delay, expected))
    if cfg.backlash[1]:
        ahead = obs["joint_position"][:, 0] - physics_of(env).read()["joint_position"][:, 0]
        off = float((ahead - 0.5 * env.episode["backlash"][:, 0]).abs().max())
        yield Check(
            "a servo that pushes its link", "ahead by half the backlash", f"off by {off:.1e} rad", off < 1e-6
        )


def _check_share_lost(cfg: SO101PaperCfg, num_episodes: int = 1000, num_steps: int = 200) -> Check:
    """Compare the share of steps in which the pose is lost with that of independent stretches."""
    low, high = cfg.pose_dropout_steps
    imperfections = Imperfections(cfg)
    seed = torch.arange(DOCTOR_SEED, DOCTOR_SEED + num_episodes)
    lost = torch.zeros_like(seed)
    measured = []
    for step in range(1, num_steps + 1):
        lost = imperfections.steps_lost(seed, torch.full_like(seed, step), lost)
        measured.append((lost > 0).double().mean().item())
    # A pose is seen if, for each of the last steps, no stretch began there that lasts until now.
    ages = np.arange(min(num_steps, high))
    longer = np.clip((high - ages) / (high - low + 1), 0.0, 1.0)
    seen = np.cumprod(1.0 - cfg.pose_dropout * longer)
    expected = 1.0 - float(np.concatenate([seen, np.full(num_steps - len(seen), seen[-1])]).mean())
    share = float(np.mean(measured))
    # a stretch is one draw: the tolerance is four standard errors with stretches of the mean length
    error = 4.0 * np.sqrt(expected * (1.0 - expected) * 0.5 * (low + high) / (num_episodes * num_steps))
    return Check(
        "share of steps without a pose",
        f"{100 * expected:.1f} %",
        f"{100 * share:.1f} %",
        bool(abs(share - expected) <= error + 1e-12),
    )
