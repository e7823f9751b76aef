"""The task's own checks in the sanity suite: rates, geometry, friction, rewards and success by hand, stability under random actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import torch

from residual_rl.build import make_base_policy
from residual_rl.doctor import DOCTOR_SEED, Check
from residual_rl.envs.task_env import TaskEnv
from residual_rl.errors import NonFiniteError
from residual_rl.tasks.so101_paper.config import SHEET_HALF_SIZE, SO101PaperCfg
from residual_rl.tasks.so101_paper.mujoco_backend import SO101PaperPhysics, make
from residual_rl.tasks.so101_paper.robot import EE_SITE, JOINTS

_SHEET_QPOS = slice(6, 13)


def doctor(cfg: SO101PaperCfg, quick: bool = False) -> Iterator[Check]:
    """The checks, one by one."""
    cfg = dataclasses.replace(cfg, obs_mode="state")  # nothing here is drawn
    env = make(cfg, 64)
    yield from check_rates(env)
    yield from check_scene(env, cfg)
    yield from check_draws(env, cfg)
    yield from check_kinematics(env)
    env.close()
    yield from check_reward_terms(cfg)
    yield from check_success(cfg)
    yield from check_stability(cfg, num_steps=40 if quick else 400)


# --- what the model is ------------------------------------------------------------------------------------------------


class StepSpy:
    """Stands before a `Batch` and notes what each of its steps does."""

    def __init__(self, batch: Any):
        self._batch = batch
        self.nsteps: list[int] = []
        self.ctrl: list[np.ndarray] = []
        self.samples: list[tuple[float, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def step(self, ids: np.ndarray | None = None, **kwargs: Any) -> None:
        self._batch.step(ids, **kwargs)
        self.nsteps.append(kwargs["nstep"])
        self.ctrl.append(self._batch.bind("ctrl").copy())


def check_rates(env: TaskEnv) -> Iterator[Check]:
    """The physics step, and what one policy step makes of it, as seen at the simulator."""
    physics = _physics(env)
    env.reset(seed=DOCTOR_SEED)
    before, start = physics.batch.bind("time").copy(), physics.batch.bind("ctrl").copy()
    spy = StepSpy(physics.batch)
    physics.batch = spy
    env.step(torch.ones(env.num_envs, 6))
    physics.batch = spy._batch
    passed = physics.batch.bind("time") - before
    timestep = physics.model.opt.timestep
    yield Check("physics step", "1 ms", f"{timestep * 1e3:g} ms", timestep == 0.001)
    ok = sum(spy.nsteps) == 33 and bool(np.allclose(passed, 0.033, atol=1e-9))
    yield Check("policy step", "33 physics steps, 33 ms", f"{sum(spy.nsteps)} steps, {passed.max() * 1e3:.3f} ms", ok)
    yield Check("policy rate", "30 Hz (1 / 33 ms)", f"{env.control_hz:.2f} Hz", abs(env.control_hz - 1 / 0.033) < 1e-6)
    yield Check("control ticks", "6, 5, 6, 5, 6, 5 steps", ", ".join(map(str, spy.nsteps)), spy.nsteps == [6, 5, 6, 5, 6, 5])
    share = (np.stack(spy.ctrl) - start) / (spy.ctrl[-1] - start)
    off = np.abs(share - np.arange(1, 7)[:, None, None] / 6).max()
    yield Check("joint targets between ticks", "on a line, 1/6 of the way a tick", f"off by {off:.1e} of the way", off < 1e-9)


def check_scene(env: TaskEnv, cfg: SO101PaperCfg) -> Iterator[Check]:
    """Geometry, friction, solver and home pose of the compiled model."""
    m = _physics(env).model
    sheet, half = m.geom("sheet").size, np.array(SHEET_HALF_SIZE)
    yield Check("sheet", "148 x 210 x 0.15 mm, 5 g", f"{_mm(2 * sheet)}, {m.body('sheet').mass[0] * 1e3:g} g",
                bool(np.allclose(sheet, half) and np.isclose(m.body("sheet").mass[0], 0.005)))  # fmt: skip
    far, near, left, right = (m.geom(f"tape_{side}") for side in ("far", "near", "left", "right"))
    inner = np.array([far.pos[0] - far.size[0] - near.pos[0] - near.size[0], left.pos[1] - left.size[1] - right.pos[1] - right.size[1]])
    expected = 2 * half[:2] + 2 * cfg.tolerance
    yield Check("inside of the tape", f"sheet + 2 tolerances: {_mm(expected)}", _mm(inner), bool(np.allclose(inner, expected)))
    centre = np.array([far.pos[0] + near.pos[0], left.pos[1] + right.pos[1]]) / 2
    yield Check("tape centre", _mm(np.array(cfg.tape_center)), _mm(centre), bool(np.allclose(centre, cfg.tape_center)))
    widths = 2 * np.array([far.size[0], near.size[0], left.size[1], right.size[1]])
    yield Check("width of the tape", "20 mm", ", ".join(f"{w * 1e3:g}" for w in widths) + " mm", bool(np.allclose(widths, 0.02)))
    table, patch = m.geom("table").pos[2], m.geom("tape_patch")
    top = patch.pos[2] + patch.size[2] + m.pair("sheet_tape").margin[0]
    yield Check("height of table and patch", "both 0", f"{table * 1e3:g}, {top * 1e3:.3g} mm", bool(abs(table) < 1e-9 and abs(top) < 1e-9))

    pairs = {m.pair(i).name: m.pair(i) for i in range(m.npair)}
    for name, condim, friction in (("sheet_table", 3, [0.3]), ("sheet_tape", 3, [0.9]), ("tip_sheet", 4, [1.2, 0.05])):
        found = pairs[name].friction[[0, 2][: len(friction)]]
        expected_text = f"{' and torsion '.join(f'{v:g}' for v in friction)}, condim {condim}"
        measured = f"{' and torsion '.join(f'{v:g}' for v in found)}, condim {pairs[name].dim[0]}"
        yield Check(f"friction {name.replace('_', '–')}", expected_text, measured, measured == expected_text)
    others = sorted(set(pairs) - {"sheet_table", "sheet_tape", "tip_sheet"})
    masked = int((m.geom_contype | m.geom_conaffinity).any())
    yield Check("other contacts", "none", ", ".join(others) or ("by masks" if masked else "none"), not others and not masked)
    radius = m.geom("fingertip").size[0]
    yield Check("fingertip", "sphere of 8 mm", f"{radius * 1e3:g} mm", bool(np.isclose(radius, 0.008)))
    option = m.opt
    solver = (mujoco.mjtSolver(option.solver).name, mujoco.mjtIntegrator(option.integrator).name, mujoco.mjtCone(option.cone).name)
    wanted = ("mjSOL_NEWTON", "mjINT_IMPLICITFAST", "mjCONE_ELLIPTIC")
    names = ", ".join(name.split("_")[1].lower() for name in solver)
    ok = solver == wanted and option.impratio == 10 and option.ls_iterations >= 20
    yield Check("solver", "newton, implicitfast, elliptic, impratio 10, ls >= 20", f"{names}, impratio {option.impratio:g}, ls {option.ls_iterations}", ok)
    obs, _ = env.reset(seed=DOCTOR_SEED)
    ee = obs["ee_position"][0].numpy()
    yield Check("home pose", "end effector at 200, 0, 80 mm", _mm(ee), bool(np.linalg.norm(ee - (0.2, 0, 0.08)) < (0.0005 if cfg.robot_xml is None else 0.05)))


def check_draws(env: TaskEnv, cfg: SO101PaperCfg) -> Iterator[Check]:
    """The episodes' draws fill their ranges, and the simulator's worlds have them."""
    drawn = env.task.randomize(torch.arange(DOCTOR_SEED, DOCTOR_SEED + 2000))
    x, y = drawn["start_position"].unbind(1)
    for name, values in (("sheet_x", x), ("sheet_y", y), ("sheet_yaw", drawn["start_yaw"]), ("friction_scale", drawn["friction_scale"]),
                         ("mass_scale", drawn["mass_scale"])):  # fmt: skip
        low, high = getattr(cfg, name)
        least, most = float(values.min()), float(values.max())
        if cfg.randomization == "off":
            low = high = (low + high) / 2
        ok = low - 1e-12 <= least and most <= high + 1e-12 and most - least >= 0.98 * (high - low) - 1e-12
        yield Check(f"draws of {name}", f"{low:g} to {high:g}", f"{least:.4f} to {most:.4f}", ok)
    physics, seeds = _physics(env), torch.arange(DOCTOR_SEED, DOCTOR_SEED + env.num_envs)
    env.reset(seed=DOCTOR_SEED)
    episode = env.task.randomize(seeds)
    nominal = physics.model.pair_friction[:, 0]
    friction = physics.batch.expand("pair_friction")[:, :, 0] / nominal
    mass = physics.batch.expand("body_mass")[:, physics.model.body("sheet").id] / physics.model.body("sheet").mass
    off = max(np.abs(friction - episode["friction_scale"].numpy()[:, None]).max(), np.abs(mass - episode["mass_scale"].numpy()).max())
    yield Check("friction and mass in the worlds", "as drawn", f"off by {off:.1e}", bool(off < 1e-9))


def check_kinematics(env: TaskEnv) -> Iterator[Check]:
    """Base policies' kinematics against the simulator's."""
    assert env.kinematics is not None
    m = _physics(env).model
    data, generator = mujoco.MjData(m), np.random.default_rng(0)
    worst = 0.0
    for _ in range(64):
        data.qpos[:6] = generator.uniform(*m.jnt_range[:6].T)
        mujoco.mj_kinematics(m, data)
        _, tool = env.kinematics.forward(torch.tensor(data.qpos[None, : env.kinematics.num_joints]))
        worst = max(worst, float(np.abs(tool[0, :3, 3].numpy() - data.site(EE_SITE).xpos).max()))
    yield Check("kinematics of the base policies", "the simulator's, within 1 um", f"off by {worst * 1e6:.2g} um in 64 poses", worst < 1e-6)


# --- rewards and success, by hand -------------------------------------------------------------------------------------


def check_reward_terms(cfg: SO101PaperCfg) -> Iterator[Check]:
    """Each term for a sheet that lies 3 cm and 4 cm off, turned by 0.3 rad."""
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
        yield Check(f"reward {name!r}, sheet 5 cm and 0.3 rad off", f"{by_hand:.4g}", f"{measured:.5g}", abs(measured - by_hand) < 1e-4)


def check_success(cfg: SO101PaperCfg) -> Iterator[Check]:
    """Each clause of success, by sheets that are put where it holds by 1 mm or fails by 1 mm."""
    hold = cfg.success_hold_steps
    cfg = dataclasses.replace(cfg, max_episode_steps=3 * hold + 10, curriculum="none")
    # Turned a little, the sheet has one corner alone that reaches farthest to each side.
    yaw = 0.5 * cfg.tolerance / SHEET_HALF_SIZE[1]
    room = cfg.tolerance + SHEET_HALF_SIZE[0] - (SHEET_HALF_SIZE[0] * np.cos(yaw) + SHEET_HALF_SIZE[1] * np.sin(yaw))
    room_y = cfg.tolerance + SHEET_HALF_SIZE[1] - (SHEET_HALF_SIZE[1] * np.cos(yaw) + SHEET_HALF_SIZE[0] * np.sin(yaw))
    sides = {"far": (room, 0.0), "near": (-room, 0.0), "left": (0.0, room_y), "right": (0.0, -room_y)}
    poses: dict[str, tuple[tuple[float, float], float]] = {"middle": ((0.0, 0.0), 0.0), "half a turn": ((0.0, 0.0), np.pi), "moved": ((0.0, 0.0), 0.0)}
    for side, (dx, dy) in sides.items():
        for what, sign in (("in", -1), ("out", 1)):
            poses[f"{side} {what}"] = ((dx + sign * 0.001 * np.sign(dx), dy + sign * 0.001 * np.sign(dy)), yaw)
    env = make(cfg, len(poses))
    env.episode_seeds.use_list([])
    env.reset(seed=list(range(DOCTOR_SEED, DOCTOR_SEED + len(poses))))
    for world, (offset, turn) in enumerate(poses.values()):
        place_sheet(env, world, offset, turn)
    moved, done = list(poses).index("moved"), {}
    reward = {}
    for step in range(1, cfg.max_episode_steps):
        if step == hold:
            place_sheet(env, moved, (cfg.tolerance + 0.02, 0.0), 0.0)
        elif step == hold + 1:
            place_sheet(env, moved, (0.0, 0.0), 0.0)
        _, _, terminated, _, info = env.step(torch.zeros(len(poses), 6))
        for world in terminated.nonzero().flatten().tolist():
            name = list(poses)[world]
            done[name], reward[name] = step, float(info["reward_terms"]["success"][world])
    env.close()

    def row(what: str, expected: int | None, *names: str) -> Check:
        found = {done.get(name) for name in names}
        text = ", ".join("never" if step is None else f"at step {step}" for step in sorted(found, key=str))
        return Check(what, "never" if expected is None else f"at step {expected}", text, found == {expected})

    yield row("success: sheet in the middle", hold, "middle")
    yield row("success: turned by half a turn", hold, "half a turn")
    yield row(f"success: out for one step after {hold - 1}", 2 * hold, "moved")
    for side in sides:
        yield row(f"success: {side} corner 1 mm inside", hold, f"{side} in")
        yield row(f"success: {side} corner alone 1 mm outside", None, f"{side} out")
    got = reward.get("middle", 0.0)
    yield Check("reward 'success' at success", f"{cfg.reward_success:g}", f"{got:g}", abs(got - cfg.reward_success) < 1e-5)


def place_sheet(env: TaskEnv, world: int, offset: tuple[float, float], yaw: float) -> None:
    """Lay the sheet of a world at `offset` [m] from the goal, turned by `yaw` [rad], at rest."""
    batch = _physics(env).batch
    centre = env.task.cfg.tape_center  # type: ignore[attr-defined]
    batch.bind("qpos")[world, _SHEET_QPOS] = centre[0] + offset[0], centre[1] + offset[1], SHEET_HALF_SIZE[2], np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
    batch.bind("qvel")[world, len(JOINTS) :] = 0.0
    batch.forward(np.array([world]), stage=mujoco.mjtStage.mjSTAGE_VEL)


def _physics(env: TaskEnv) -> SO101PaperPhysics:
    assert isinstance(env.physics, SO101PaperPhysics)
    return env.physics


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{v * 1e3:.4g}" for v in values) + " mm"
