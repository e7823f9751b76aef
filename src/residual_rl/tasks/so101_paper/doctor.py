"""The checks of `so101-paper` in the sanity suite.

They cover rates, geometry, friction, randomisation, kinematics, rewards and success computed by hand, and
stability under random actions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from residual_rl.envs.sanity_checks import DOCTOR_SEED, Check, MakePolicy, check_poses_hold
from residual_rl.envs.task_env import TaskEnv
from residual_rl.tasks.so101_paper.config import SHEET_HALF_SIZE, SO101PaperCfg
from residual_rl.tasks.so101_paper.imperfections_check import check_imperfections
from residual_rl.tasks.so101_paper.mujoco_env import make
from residual_rl.tasks.so101_paper.robot import EE_SITE, JOINTS
from residual_rl.tasks.so101_paper.stability_check import (
    SHEET_QPOS,
    RolloutRecorder,
    check_stability,
    physics_of,
)
from residual_rl.utils.mujoco_library import mujoco


def doctor(cfg: SO101PaperCfg, quick: bool, make_policy: MakePolicy) -> Iterator[Check]:
    """Run the checks.

    Args:
        cfg: the task's settings.
        quick: use fewer envs and steps.
        make_policy: creates the base policy that presses the sheet in the stability check.
    """
    cfg = dataclasses.replace(cfg, obs_mode="state")  # no check needs images
    env = make(cfg, 64)
    yield from check_rates(env)
    yield from check_scene(env, cfg)
    yield from check_draws(env, cfg)
    yield from check_kinematics(env)
    env.close()
    yield from check_imperfections(cfg)
    yield from check_reward_terms(cfg)
    yield from check_success(cfg)
    yield from check_poses_hold(make(cfg, 2 if quick else 8), ["ee_position"], 1e-3, "mm", 1e3)
    yield from check_stability(cfg, make_policy, num_steps=40 if quick else 400)


# --- rates, scene, randomisation, kinematics ---


def check_rates(env: TaskEnv) -> Iterator[Check]:
    """Check the physics step, the policy rate and the control ticks, by recording one policy step."""
    # Record one policy step, once the commands have passed latency and backlash.
    physics = physics_of(env)
    env.reset(seed=DOCTOR_SEED)
    control = physics.batch.bind("ctrl")
    for _ in range(100):
        before = control.copy()
        env.step(torch.ones(env.num_envs, 6))
        if (control[:, 0] != before[:, 0]).all():
            break
    before, start = physics.batch.bind("time").copy(), physics.batch.bind("ctrl").copy()
    recorder = RolloutRecorder(physics.batch)
    physics.batch = recorder
    _, _, terminated, truncated, _ = env.step(torch.ones(env.num_envs, 6))
    physics.batch = recorder._batch

    # Durations. Envs whose episode ended are left out, because their clock was reset.
    running = ~(terminated | truncated).numpy()
    passed = (physics.batch.bind("time") - before)[running]
    timestep, nsteps = physics.model.opt.timestep, recorder.control.shape[1]
    yield Check("physics step", "1 ms", f"{timestep * 1e3:g} ms", timestep == 0.001)
    ok = nsteps == 33 and bool(np.allclose(passed, 0.033, atol=1e-9))
    yield Check("policy step", "33 physics steps, 33 ms", f"{nsteps} steps, {passed.max() * 1e3:.3f} ms", ok)
    yield Check(
        "policy rate", "30 Hz (1 / 33 ms)", f"{env.control_hz:.2f} Hz", abs(env.control_hz - 1 / 0.033) < 1e-6
    )

    # Control ticks, and the joint targets' ramp.
    changes = np.flatnonzero(np.diff(recorder.control[0, :, 0])) + 1
    ticks = np.diff([0, *changes, nsteps]).tolist()
    yield Check(
        "control ticks", "6, 5, 6, 5, 6, 5 steps", ", ".join(map(str, ticks)), ticks == [6, 5, 6, 5, 6, 5]
    )
    at_ticks, end = recorder.control[:, [0, *changes]], recorder.control[:, -1:]
    share = (at_ticks - start[:, None]) / (end - start[:, None])
    off = np.abs(share - (np.arange(share.shape[1])[:, None] + 1) / 6).max()
    yield Check(
        "joint targets between ticks",
        "linear, 1/6 of the way per tick",
        f"off by {off:.1e} of the way",
        bool(off < 1e-9),
    )


def check_scene(env: TaskEnv, cfg: SO101PaperCfg) -> Iterator[Check]:
    """Check geometry, friction, solver and home pose of the compiled model."""
    # Sheet.
    m = physics_of(env).model
    sheet, half = m.geom("sheet").size, np.array(SHEET_HALF_SIZE)
    mass = m.body("sheet").mass[0]
    ok = bool(np.allclose(sheet, half) and np.isclose(mass, 0.005))
    yield Check("sheet", "148 x 210 x 0.15 mm, 5 g", f"{_mm(2 * sheet)}, {mass * 1e3:g} g", ok)

    # Tape and table.
    far, near, left, right = (m.geom(f"tape_{side}") for side in ("far", "near", "left", "right"))
    inner = np.array(
        [
            far.pos[0] - far.size[0] - near.pos[0] - near.size[0],
            left.pos[1] - left.size[1] - right.pos[1] - right.size[1],
        ]
    )
    expected = 2 * half[:2] + 2 * cfg.tolerance
    yield Check(
        "inside of the tape",
        f"sheet + 2 tolerances: {_mm(expected)}",
        _mm(inner),
        bool(np.allclose(inner, expected)),
    )
    centre = np.array([far.pos[0] + near.pos[0], left.pos[1] + right.pos[1]]) / 2
    yield Check(
        "tape centre",
        _mm(np.array(cfg.tape_center), ", "),
        _mm(centre, ", "),
        bool(np.allclose(centre, cfg.tape_center)),
    )
    widths = 2 * np.array([far.size[0], near.size[0], left.size[1], right.size[1]])
    yield Check(
        "width of the tape",
        "20 mm",
        ", ".join(f"{w * 1e3:g}" for w in widths) + " mm",
        bool(np.allclose(widths, 0.02)),
    )
    table, patch = m.geom("table").pos[2], m.geom("tape_patch")
    top = patch.pos[2] + patch.size[2] + m.pair("sheet_tape").margin[0]
    yield Check(
        "height of table and patch",
        "both 0",
        f"{table * 1e3:g}, {top * 1e3:.3g} mm",
        bool(abs(table) < 1e-9 and abs(top) < 1e-9),
    )

    # Contact pairs and their friction.
    pairs = {m.pair(i).name: m.pair(i) for i in range(m.npair)}
    for name, condim, friction in (
        ("sheet_table", 3, [0.3]),
        ("sheet_tape", 3, [0.9]),
        ("tip_sheet", 4, [1.2, 0.05]),
    ):
        found = pairs[name].friction[[0, 2][: len(friction)]]
        expected_text = f"{' and torsion '.join(f'{v:g}' for v in friction)}, condim {condim}"
        measured = f"{' and torsion '.join(f'{v:g}' for v in found)}, condim {pairs[name].dim[0]}"
        label = f"friction {name.replace('_', '–')}"
        yield Check(label, expected_text, measured, measured == expected_text)
    floor = m.geom("tip_floor").pos[2]
    yield Check(
        "floor of the fingertip",
        "5 mm below the table",
        f"{-1e3 * floor:g} mm",
        bool(np.isclose(floor, -0.005)),
    )
    others = sorted(set(pairs) - {"sheet_table", "sheet_tape", "tip_sheet", "tip_floor"})
    masked = int((m.geom_contype | m.geom_conaffinity).any())
    yield Check(
        "other contacts",
        "none",
        ", ".join(others) or ("by masks" if masked else "none"),
        not others and not masked,
    )
    radius = m.geom("fingertip").size[0]
    yield Check("fingertip", "sphere of 8 mm", f"{radius * 1e3:g} mm", bool(np.isclose(radius, 0.008)))

    # Solver.
    option = m.opt
    solver = (
        mujoco.mjtSolver(option.solver).name,
        mujoco.mjtIntegrator(option.integrator).name,
        mujoco.mjtCone(option.cone).name,
    )
    wanted = ("mjSOL_NEWTON", "mjINT_IMPLICITFAST", "mjCONE_ELLIPTIC")
    names = ", ".join(name.split("_")[1].lower() for name in solver)
    ok = solver == wanted and option.impratio == 10 and option.ls_iterations >= 20
    measured = f"{names}, impratio {option.impratio:g}, ls {option.ls_iterations}"
    yield Check("solver", "newton, implicitfast, elliptic, impratio 10, ls >= 20", measured, ok)

    # Home pose.
    obs, _ = env.reset(seed=DOCTOR_SEED)
    ee = obs["ee_position"][0].numpy()
    near = 0.0005 if cfg.robot_xml is None else 0.05
    ok = bool(np.linalg.norm(ee - (0.2, 0, 0.08)) < near)
    yield Check(
        "home pose", f"end effector within {near * 1e3:g} mm of 200, 0, 80 mm", _mm(ee.round(4), ", "), ok
    )


def check_draws(env: TaskEnv, cfg: SO101PaperCfg) -> Iterator[Check]:
    """Check that the episodes' draws fill their ranges, and that the simulator uses them."""
    drawn = env.task.randomize(torch.arange(DOCTOR_SEED, DOCTOR_SEED + 2000))
    x, y = drawn["start_position"].unbind(1)
    draws = {"sheet_x": x, "sheet_y": y, "sheet_yaw": drawn["start_yaw"]}
    draws |= {name: drawn[name] for name in ("friction_scale", "mass_scale")}
    for name, values in draws.items():
        low, high = getattr(cfg, name)
        least, most = float(values.min()), float(values.max())
        if cfg.randomization == "off":
            low = high = (low + high) / 2
        ok = low - 1e-12 <= least and most <= high + 1e-12 and most - least >= 0.98 * (high - low) - 1e-12
        yield Check(f"draws of {name}", f"{low:g} to {high:g}", f"{least:.4f} to {most:.4f}", ok)
    physics, seeds = physics_of(env), torch.arange(DOCTOR_SEED, DOCTOR_SEED + env.num_envs)
    env.reset(seed=DOCTOR_SEED)
    episode = env.task.randomize(seeds)
    nominal = physics.model.pair_friction[:, 0]
    friction = physics.batch.expand("pair_friction")[:, :, 0] / nominal
    sheet = physics.model.body("sheet")
    mass = physics.batch.expand("body_mass")[:, sheet.id] / sheet.mass
    off = max(
        np.abs(friction - episode["friction_scale"].numpy()[:, None]).max(),
        np.abs(mass - episode["mass_scale"].numpy()).max(),
    )
    yield Check("friction and mass in the envs", "as drawn", f"off by {off:.1e}", bool(off < 1e-9))


def check_kinematics(env: TaskEnv) -> Iterator[Check]:
    """Compare the base policies' kinematics with the simulator's."""
    assert env.kinematics is not None
    m = physics_of(env).model
    data, generator = mujoco.MjData(m), np.random.default_rng(0)
    worst = 0.0
    for _ in range(64):
        data.qpos[:6] = generator.uniform(*m.jnt_range[:6].T)
        mujoco.mj_kinematics(m, data)
        _, tool = env.kinematics.forward(torch.tensor(data.qpos[None, : env.kinematics.num_joints]))
        worst = max(worst, float(np.abs(tool[0, :3, 3].numpy() - data.site(EE_SITE).xpos).max()))
    yield Check(
        "kinematics of the base policies",
        "the simulator's, within 1 um",
        f"off by {worst * 1e6:.2g} um in 64 poses",
        worst < 1e-6,
    )


# --- rewards and success, computed by hand ---


def check_reward_terms(cfg: SO101PaperCfg) -> Iterator[Check]:
    """Check each reward term for a sheet that is off by 3 cm and 4 cm and turned by 0.3 rad."""
    env = make(cfg, 1)
    env.reset(seed=[DOCTOR_SEED])
    place_sheet(env, 0, (0.03, 0.04), 0.3)
    obs, *_, info = env.step(torch.zeros(1, 6))
    reach = float((obs["ee_position"] - obs["sheet_pose"][:, :3]).norm())
    env.close()
    expected = {
        "success": 0.0,
        "distance": cfg.reward_distance * 0.05,
        "yaw": cfg.reward_yaw * 0.3,
        "step": cfg.reward_step,
        "reach": cfg.reward_reach * reach,
    }
    for name, value in info["reward_terms"].items():
        by_hand, measured = expected[name], float(value)
        yield Check(
            f"reward {name!r}, sheet 5 cm and 0.3 rad off",
            f"{by_hand:.4g}",
            f"{measured:.5g}",
            abs(measured - by_hand) < 1e-4,
        )


def check_success(cfg: SO101PaperCfg) -> Iterator[Check]:
    """Check each condition of success, with sheets placed where it holds by 1 mm or fails by 1 mm."""
    # Poses. The sheet is slightly turned, so that a single corner is the outermost one on each side.
    hold = cfg.success_hold_steps
    cfg = dataclasses.replace(cfg, max_episode_steps=3 * hold + 10, curriculum="none")
    yaw = 0.5 * cfg.tolerance / SHEET_HALF_SIZE[1]
    half_x, half_y = SHEET_HALF_SIZE[:2]
    room_x = cfg.tolerance + half_x - (half_x * np.cos(yaw) + half_y * np.sin(yaw))
    room_y = cfg.tolerance + half_y - (half_y * np.cos(yaw) + half_x * np.sin(yaw))
    sides = {"far": (room_x, 0.0), "near": (-room_x, 0.0), "left": (0.0, room_y), "right": (0.0, -room_y)}
    centre = (0.0, 0.0)
    poses: dict[str, tuple[tuple[float, float], float]] = {
        "middle": (centre, 0.0),
        "half a turn": (centre, np.pi),
        "moved": (centre, 0.0),
    }
    for side, (dx, dy) in sides.items():
        for what, sign in (("in", -1), ("out", 1)):
            offset = (dx + sign * 0.001 * np.sign(dx), dy + sign * 0.001 * np.sign(dy))
            poses[f"{side} {what}"] = (offset, yaw)

    # One env for each pose.
    env = make(cfg, len(poses))
    env.episode_seeds.use_list([])
    env.reset(seed=list(range(DOCTOR_SEED, DOCTOR_SEED + len(poses))))
    for env_id, (offset, turn) in enumerate(poses.values()):
        place_sheet(env, env_id, offset, turn)

    # Hold the poses; the sheet `moved` is outside for one step, just before it would succeed.
    moved = list(poses).index("moved")
    done = {}
    reward = {}
    for step in range(1, cfg.max_episode_steps):
        if step == hold:
            place_sheet(env, moved, (cfg.tolerance + 0.02, 0.0), 0.0)
        elif step == hold + 1:
            place_sheet(env, moved, centre, 0.0)
        _, _, terminated, _, info = env.step(torch.zeros(len(poses), 6))
        for env_id in terminated.nonzero().flatten().tolist():
            name = list(poses)[env_id]
            done[name], reward[name] = step, float(info["reward_terms"]["success"][env_id])
    env.close()

    # Compare the steps of success.
    def row(what: str, expected: int | None, *names: str) -> Check:
        found = {done.get(name) for name in names}
        text = ", ".join("never" if step is None else f"at step {step}" for step in sorted(found, key=str))
        return Check(what, "never" if expected is None else f"at step {expected}", text, found == {expected})

    yield row("success: sheet in the middle", hold, "middle")
    yield row("success: turned by half a turn", hold, "half a turn")
    yield row(f"success: out for one step after {hold - 1}", 2 * hold, "moved")
    yield row("success: outermost corner 1 mm inside, each", hold, *(f"{side} in" for side in sides))
    yield row("success: one corner 1 mm outside, each", None, *(f"{side} out" for side in sides))
    got = reward.get("middle", 0.0)
    yield Check(
        "reward 'success' at success",
        f"{cfg.reward_success:g}",
        f"{got:g}",
        abs(got - cfg.reward_success) < 1e-5,
    )


def place_sheet(env: TaskEnv, env_id: int, offset: tuple[float, float], yaw: float) -> None:
    """Place the sheet of one env at `offset` [m] from the goal, turned by `yaw` [rad], at rest."""
    batch = physics_of(env).batch
    centre = env.task.cfg.tape_center  # type: ignore[attr-defined]
    position = centre[0] + offset[0], centre[1] + offset[1], SHEET_HALF_SIZE[2]
    batch.bind("qpos")[env_id, SHEET_QPOS] = *position, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
    batch.bind("qvel")[env_id, len(JOINTS) :] = 0.0
    batch.forward(np.array([env_id]), stage=mujoco.mjtStage.mjSTAGE_VEL)


def _mm(values: np.ndarray, between: str = " x ") -> str:
    return between.join(f"{v * 1e3:.4g}" for v in values.round(9)) + " mm"
