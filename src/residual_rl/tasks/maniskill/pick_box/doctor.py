"""Sanity suite of PickBox-v1: stable poses, scripted oracle, reward phases and success conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from residual_rl.envs.maniskill.arm_description import GRIPPER_OPENS
from residual_rl.envs.maniskill.sim_env import ManiSkillEnv
from residual_rl.envs.sanity_checks import Check, Rollout, check_poses_hold, doctor_seeds, roll_out
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make, make_env_cfg
from residual_rl.tasks.maniskill.pick_box.layouts import LAYOUTS, Layout
from residual_rl.tasks.maniskill.pick_box.oracle import CONTROL_MODE, PickBoxOracle
from residual_rl.utils.statistics import proportion

MIN_SUCCESS = 0.9


def doctor(cfg: ManiSkillCfg, quick: bool) -> Iterator[Check]:
    """Run the checks."""
    cfg = dataclasses.replace(
        cfg,
        obs_mode="state",
        control_mode=CONTROL_MODE,
        reward_mode="dense",
        max_episode_steps=None,
        ignore_terminations=False,
    )
    yield from check_poses_hold(
        make(cfg, 2 if quick else 8, 0, "cpu"), ["tcp_pose", "obj_pose"], 1e-3, "mm", 1e3
    )
    env = make(cfg, 20 if quick else 50, 0, "cpu")
    log = roll_out(env, PickBoxOracle(env.robot, env.action_unit), doctor_seeds(env.num_envs))
    layout = LAYOUTS[env.robot]
    env.close()
    yield check_oracle(log)
    yield from check_phases(log, layout)
    yield from check_success(ManiSkillEnv(make_env_cfg(dataclasses.replace(cfg, sim_backend="physx_cpu"))))


def check_oracle(log: Rollout) -> Check:
    """Check that the scripted oracle solves the task."""
    solved = proportion(log.final["success_at_end"].tolist())
    measured = f"{solved.mean:.0%} (95 % interval {solved.low:.1%} to {solved.high:.1%})"
    return Check(
        "scripted oracle solves it",
        f">= {MIN_SUCCESS:.0%} of {len(log.seeds)} episodes",
        measured,
        solved.mean >= MIN_SUCCESS,
    )


def check_phases(log: Rollout, layout: Layout) -> Iterator[Check]:
    """Check that the oracle passes each phase of the dense reward, and that its rewards are as documented."""
    # the conditions that separate the phases, from observations alone
    held = log.obs["is_grasped"][..., 0] > 0.5
    height = log.obs["obj_pose"][..., 2] - log.obs["obj_half_size"][..., 0]
    to_goal = log.obs["obj_to_goal_pos"]
    over = to_goal[..., :2].norm(dim=2) <= layout.goal_thresh
    placed = to_goal.norm(dim=2) <= layout.goal_thresh
    success, lifted = log.terminated, height >= layout.rim_height
    phases: dict[str, tuple[Tensor, float, float]] = {
        "reach": (~held & ~over, 0.0, 1.0),
        "grasp": (held & ~over & (height < 0.005), 1.0, 2.5),
        "lift": (held & ~over & (height >= 0.005) & ~lifted, 1.0, 3.0),
        "transport": (held & ~over & lifted, 2.0, 4.0),
        "hold over the basket": (held & over, 4.0, 4.0),
        "release over the basket": (~held & over & ~placed & ~success, 5.0, 6.0),
        "rest": (placed & ~held & ~success, 5.0, 7.0),
        "success": (success, 8.0, 8.0),
    }
    for name, (where, least, most) in phases.items():
        rewards = log.reward[where & log.running]
        expected = f"reached, reward {least:g}" + ("" if least == most else f" to {most:g}")
        if len(rewards) == 0:
            yield Check(f"reward phase {name!r}", expected, "not reached", False)
            continue
        ok = bool((rewards >= least - 1e-5).all() and (rewards <= most + 1e-5).all())
        yield Check(
            f"reward phase {name!r}",
            expected,
            f"{rewards.min():.3g} to {rewards.max():.3g}, {len(rewards)} steps",
            ok,
        )


def check_success(sim: ManiSkillEnv) -> Iterator[Check]:
    """Check each success condition by violating it alone. Closes `sim`."""
    sim.reset(torch.zeros(1, dtype=torch.int64), torch.tensor(doctor_seeds(1)))
    env = sim.env
    place_box(env, (0.0, 0.0, 0.0))
    yield _success("success: at rest at the goal", env, True)
    for axis, name in enumerate("xy"):
        for amount, expected in ((-1e-3, True), (1e-3, False)):
            offset = [0.0, 0.0, 0.0]
            offset[axis] = env.layout.goal_thresh + amount
            place_box(env, tuple(offset))
            yield _success(
                f"success: {'out of' if amount > 0 else 'within'} the threshold by 1 mm along {name}",
                env,
                expected,
            )
    for name, linear, angular, expected in (
        ("moves at 0.09 m/s", 0.09, 0.0, True),
        ("moves at 0.11 m/s", 0.11, 0.0, False),
        ("turns at 0.45 rad/s", 0.0, 0.45, True),
        ("turns at 0.55 rad/s", 0.0, 0.55, False),
    ):
        place_box(env, (0.0, 0.0, 0.0), linear, angular)
        yield _success(f"success: the box {name}", env, expected)
    is_held = hold_at_goal(sim)
    yield Check(
        "success: the gripper holds it",
        "the box is held at rest at the goal",
        "yes" if is_held else "no",
        is_held,
    )
    yield _success("success: the gripper holds it", env, False)
    sim.close()


def _success(name: str, env: Any, expected: bool) -> Check:
    found = bool(env.evaluate()["success"].all())
    return Check(
        name, "success" if expected else "no success", "success" if found else "no success", found == expected
    )


def place_box(env: Any, offset: tuple[float, ...], linear: float = 0.0, angular: float = 0.0) -> None:
    """Place the box at `offset` [m] from the goal, with velocities `linear` [m/s] along x and `angular`
    [rad/s] about z."""
    from mani_skill.utils.structs import Pose

    env.box.set_pose(
        Pose.create_from_pq(env.goal_pos + torch.tensor([offset]), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    )
    env.box.set_linear_velocity(torch.tensor([[linear, 0.0, 0.0]]))
    env.box.set_angular_velocity(torch.tensor([[0.0, 0.0, angular]]))


def hold_at_goal(sim: ManiSkillEnv) -> bool:
    """Let the oracle pick up the box and hold it still, then move the basket under the box.

    Returns whether the box is then grasped, at rest, and at the goal.
    """
    from mani_skill.utils.structs import Pose

    robot, action_unit = sim.description.robot, torch.tensor(sim.description.action_unit)
    sim.reset(torch.zeros(1, dtype=torch.int64), torch.tensor(doctor_seeds(1)))
    env, oracle = sim.env, PickBoxOracle(robot, action_unit)
    # lift the box, then hold still
    for _ in range(100):
        sim.step(oracle(sim.observations()))
        if env.evaluate()["is_lifted"].all():
            break
    still = torch.zeros(1, len(action_unit))
    still[:, -1] = -GRIPPER_OPENS[robot]
    for _ in range(10):
        sim.step(still)
    # move the basket, and stop the box
    env.basket.set_pose(Pose.create_from_pq(env.basket.pose.p + env.box.pose.p - env.goal_pos))
    env.box.set_linear_velocity(torch.zeros(1, 3))  # a held box trembles at up to 0.1 m/s
    env.box.set_angular_velocity(torch.zeros(1, 3))
    flags = env.evaluate()
    return all(bool(flags[name].all()) for name in ("is_grasped", "is_obj_placed", "is_obj_static"))
