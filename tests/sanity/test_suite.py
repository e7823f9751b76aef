"""The sanity suite: a correct env passes, and each defect fails its check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fakes
import numpy as np
import pytest
import torch

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.cli import doctor as command
from residual_rl.cli.main import main
from residual_rl.envs import sanity_checks as sanity
from residual_rl.envs.sanity_checks import Check
from residual_rl.envs.task_env import TaskEnv
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import NonFiniteError
from residual_rl.registry import BASE_POLICIES, TASKS
from residual_rl.sanity import suite as doctor
from residual_rl.sanity.suite import examine, format_table, generic_checks
from residual_rl.tasks.so101_paper import doctor as so101
from residual_rl.tasks.so101_paper import mujoco_env as mujoco_backend
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.stability_check import Monitor
from residual_rl.tasks.so101_paper.task import SO101Paper


@pytest.fixture(autouse=True)
def _homing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASE_POLICIES._specs, "homing", fakes.HOMING)


def failed(checks: Iterable[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}


def point_checks(defect: str = "", **spec: Any) -> list[Check]:
    cfg = fakes.PointCfg(max_episode_steps=12, defect=defect)
    task = dataclasses.replace(fakes.POINT_TASK, config_overrides={"defect": defect}, **spec)
    return list(generic_checks(task, cfg, quick=True))


# --- checks for any task ---


def test_generic_checks__pass_on_a_correct_env() -> None:
    checks = point_checks()
    assert not failed(checks)
    # three properties, seven checks, two reward terms, six numbers of envs and threads
    assert len(checks) == len({check.name for check in checks}) == 3 + 7 + 2 + 6
    by_name = {check.name: check for check in checks}
    assert by_name["base policy 'homing' solves it"].measured.startswith("100%")
    assert by_name["determinism, envs 7, threads 2"].measured == "identical: 28 episodes"


@pytest.mark.parametrize(
    ("defect", "names"),
    [
        ("same start", {"other seed, other start"}),
        ("dead term", {"reward term 'dead'"}),
        ("unnamed reward", {"rewards add up"}),
        ("never terminates", {"success ends the episode"}),
        ("out of bounds", {"observations within their space"}),
        (
            "start depends on slot",
            {
                "same seed, same start",
                "determinism, envs 32, threads 1",
                "determinism, envs 1, threads 2",
            },
        ),
        ("depends on B", {"determinism, envs 1, threads 1", "determinism, envs 7, threads 2"}),
    ],
)
def test_generic_checks__each_defect_fails_its_check(defect: str, names: set[str]) -> None:
    found = failed(point_checks(defect))
    assert names <= found
    # with these defects the oracle fails as well
    if len(names) == 1 and defect not in ("never terminates", "out of bounds"):
        assert found == names


def test_describe_env__shows_observations_actions_and_episodes() -> None:
    env = fakes.PointEnv(fakes.PointCfg(max_episode_steps=12), 1)
    rows = {check.name: check.measured for check in doctor.describe_env(env)}
    assert rows["observations"] == "joint_position 2, position 2, state 5"
    assert rows["actions"].startswith("2; 1 means ")
    assert rows["episodes"] == f"at most 12 steps at {env.control_hz:g} Hz, {12 / env.control_hz:.3g} s"


def test_generic_checks__an_oracle_that_cannot_act_in_the_env_is_left_out() -> None:
    """The oracle `expert` of a task whose env has none."""
    by_name = {check.name: check for check in point_checks(oracle="expert")}
    assert not failed(by_name.values())
    assert "this env has no expert" in by_name["oracle"].measured


def test_check_determinism__names_the_first_difference() -> None:
    by_name = {check.name: check for check in point_checks("depends on B")}
    assert by_name["determinism, envs 32, threads 2"].ok
    assert by_name["determinism, envs 1, threads 1"].measured == "state differs at step 1 of seed 30000031"


def test_check_determinism__skips_envs_that_are_not_deterministic() -> None:
    (check,) = [check for check in point_checks("undeterministic") if "determinism" in check.name]
    assert check.ok
    assert check.measured == "not checked"


def test_check_oracle__fails_if_the_oracle_does_not_solve_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASE_POLICIES._specs, "zero", BASE_POLICIES.get("zero"))
    found = failed(point_checks(oracle="zero"))
    assert found == {"base policy 'zero' solves it", "reward term 'success'"}


@pytest.mark.parametrize(("least", "ok"), [(0.0, True), (0.01, False)])
def test_oracle_success__is_the_share_that_the_oracle_must_solve(least: float, ok: bool) -> None:
    env = fakes.PointEnv(fakes.PointCfg(max_episode_steps=3), 4)
    solves, *_ = doctor.check_oracle(env, "zero", least)
    assert (solves.measured, solves.ok) == ("0%, 3 steps on average", ok)


def test_generic_checks__use_random_actions_without_an_oracle() -> None:
    by_name = {check.name: check for check in point_checks(oracle=None)}
    assert not failed(by_name.values())
    assert by_name["oracle"].measured == "not checked: the task has no oracle"
    assert by_name["determinism, envs 7, threads 2"].measured == "identical: 28 episodes"
    broken = {check.name: check for check in point_checks("depends on B", oracle=None)}
    assert broken["determinism, envs 1, threads 1"].measured == "state differs at step 1 of seed 30000031"


@pytest.mark.parametrize(("defect", "drift"), [("", "0.0000 mm"), ("sags", "14.1421 mm")])
def test_check_poses_hold__reports_the_drift_in_its_unit(defect: str, drift: str) -> None:
    """Ten steps of 1 mm along each of two axes are 10 √2 mm."""
    env = fakes.PointEnv(fakes.PointCfg(max_episode_steps=10, defect=defect), 3)
    (check,) = sanity.check_poses_hold(env, ["joint_position"], 0.012, "mm", 1e3)
    assert (check.measured, check.ok) == (drift, not defect)
    assert check.expected == "joint_position drifts less than 12 mm in 10 steps"


def test_generic_checks__divergence_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: Any) -> Iterator[Check]:
        raise NonFiniteError("the simulation diverged in env(s) [3]")
        yield

    monkeypatch.setattr(doctor, "check_zero_action", diverge)
    checks = point_checks()
    assert failed(checks) == {"zero action"}
    (check,) = [check for check in checks if not check.ok]
    assert check.measured == "the simulation diverged in env(s) [3]"


def test_check_other_seed__constant_start_is_allowed_only_for_settings_of_the_user() -> None:
    held = fakes.PointCfg(max_episode_steps=12, defect="same start")
    checks = {check.name: check for check in generic_checks(fakes.POINT_TASK, held, quick=True)}
    assert not failed(checks.values())
    assert checks["other seed, other start"].measured == "1, and 100 with the default settings"
    by_default = dataclasses.replace(fakes.POINT_TASK, config_overrides={"defect": "same start"})
    assert failed(generic_checks(by_default, held, quick=True)) == {"other seed, other start"}


def test_generic_checks__check_the_env_of_the_user() -> None:
    """A defect that only the user's settings have is found."""
    made: list[fakes.PointCfg] = []

    class TwoStarts(fakes.PointEnv):
        def _start(self, env_ids: torch.Tensor, seeds: torch.Tensor) -> None:
            super()._start(env_ids, seeds % 2)

    def make(cfg: fakes.PointCfg, *arguments: Any) -> VecEnv:
        made.append(cfg)
        return TwoStarts(cfg, *arguments)

    mine = fakes.PointCfg(max_episode_steps=12)
    (check,) = doctor.check_other_seed(make(mine, 10), lambda: make(fakes.PointCfg(), 10))
    assert (check.ok, check.measured, made) == (False, "2", [mine])


@pytest.mark.parametrize("ending", ["fails outside", "goes on after success"])
def test_generic_checks__accept_other_ends_of_episodes(ending: str) -> None:
    found = {check.name: check for check in point_checks(ending)}
    # in the first case the oracle fails in some episodes; in the second its last step is not always a success
    assert failed(found.values()) <= {"base policy 'homing' solves it"}
    name = "success ends the episode" if ending == "fails outside" else "episodes end"
    assert found[name].ok
    if ending == "fails outside":
        assert " terminated, after 1" in found["the limit truncates"].measured


def test_amounts__respect_the_largest_number_of_envs_of_the_task() -> None:
    amounts = doctor.FULL.at_most(4)
    assert (amounts.oracle_episodes, amounts.other_seed_envs, amounts.batch_sizes) == (4, 4, (1, 4))
    assert amounts.random_steps == doctor.FULL.random_steps
    assert doctor.FULL.at_most(None) is doctor.FULL


def test_examine__runs_the_checks_of_the_task_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def own(cfg: Any, quick: bool, make_policy: sanity.MakePolicy) -> list[Check]:
        calls.append((cfg, quick))
        env = fakes.PointEnv(fakes.PointCfg(), 2)
        assert make_policy("homing", env).act(env.reset(seed=0)[0]).shape == (2, 2)
        return [Check("mine", "1", "2", False)]

    monkeypatch.setattr(fakes, "own_checks", own, raising=False)
    cfg = fakes.PointCfg()
    groups: list[str] = []
    checks = list(
        examine(
            dataclasses.replace(fakes.POINT_TASK, doctor="fakes:own_checks"),
            cfg,
            quick=True,
            report=groups.append,
        )
    )
    assert groups == [
        "the task's own checks",
        "properties",
        "zero action",
        "random actions",
        "same seed",
        "other seed",
        "oracle",
        "determinism",
    ]
    assert checks[0] == Check("mine", "1", "2", False)
    assert calls == [(cfg, True)]
    assert len(checks) > 10


# --- so101-paper ---


@pytest.fixture
def env() -> TaskEnv:
    return mujoco_backend.make(SO101PaperCfg(), 4, 1)


CFG = SO101PaperCfg()


def make_policy(base_policy_id: str, env: VecEnv) -> sanity.Policy:
    return make_base_policy(base_policy_id, None, env)


def test_so101_doctor__passes_on_the_task(env: TaskEnv) -> None:
    checks = [
        *so101.check_rates(env),
        *so101.check_scene(env, CFG),
        *so101.check_draws(env, CFG),
        *so101.check_kinematics(env),
    ]
    checks += [
        *so101.check_reward_terms(CFG),
        *so101.check_success(CFG),
        *so101.check_stability(CFG, make_policy, num_steps=5, num_envs=4),
    ]
    assert not failed(checks)
    measured = {check.name: check.measured for check in checks}
    assert measured["control ticks"] == "6, 5, 6, 5, 6, 5"
    assert measured["friction tip–sheet"] == "1.2 and torsion 0.05, condim 4"
    assert measured["inside of the tape"] == "188 x 250 mm"  # 148 + 2 · 20 and 210 + 2 · 20
    assert measured["success: sheet in the middle"] == "at step 10"
    assert measured["success: one corner 1 mm outside, each"] == "never"


@pytest.mark.parametrize("ticks", [(33,), (6, 6, 6, 5, 5, 5), (5, 5, 5, 5, 5, 5)])
def test_check_rates__finds_other_rates(ticks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco_backend, "TICK_STEPS", ticks)
    found = failed(so101.check_rates(mujoco_backend.make(CFG, 2, 1)))
    assert "control ticks" in found
    assert ("policy step" in found) == ("policy rate" in found) == (sum(ticks) != 33)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: m.pair("tip_sheet").friction.__setitem__(2, 0.005), "friction tip–sheet"),
        (lambda m: m.pair("sheet_table").friction.__setitem__(0, 0.6), "friction sheet–table"),
        (lambda m: m.pair("sheet_tape").dim.__setitem__(0, 4), "friction sheet–tape"),
        (lambda m: m.geom_contype.__setitem__(m.geom("fingertip").id, 1), "other contacts"),
        (lambda m: m.geom("sheet").size.__setitem__(0, 0.105), "sheet"),
        (lambda m: m.body("sheet").mass.__setitem__(0, 0.05), "sheet"),
        (lambda m: m.geom("tape_far").pos.__setitem__(0, 0.33), "inside of the tape"),
        (lambda m: m.geom("fingertip").size.__setitem__(0, 0.009), "fingertip"),
        (lambda m: setattr(m.opt, "ls_iterations", 10), "solver"),
        (lambda m: setattr(m.opt, "impratio", 1), "solver"),
        (lambda m: m.geom("table").pos.__setitem__(2, -0.001), "height of table and patch"),
    ],
)
def test_check_scene__finds_a_changed_scene(env: TaskEnv, change: Any, name: str) -> None:
    change(env.physics.model)
    assert name in failed(so101.check_scene(env, CFG))


def test_check_draws__finds_values_that_are_not_written(env: TaskEnv) -> None:
    env.physics.write_episode = lambda env_ids, episode: None  # type: ignore[attr-defined]
    assert failed(so101.check_draws(env, CFG)) == {"friction and mass in the envs"}


def test_check_draws__finds_other_values(env: TaskEnv) -> None:
    assert failed(so101.check_draws(env, dataclasses.replace(CFG, sheet_x=(0.20, 0.34)))) == {
        "draws of sheet_x"
    }
    assert failed(so101.check_draws(env, dataclasses.replace(CFG, sheet_yaw=(-0.5, 0.5)))) == {
        "draws of sheet_yaw"
    }


def test_check_kinematics__finds_other_kinematics(env: TaskEnv) -> None:
    assert env.kinematics is not None
    env.kinematics.tool[0, 3] += 2e-6
    assert failed(so101.check_kinematics(env)) == {"kinematics of the base policies"}


def test_check_reward_terms__finds_other_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    terms_of = SO101Paper.reward_terms
    monkeypatch.setattr(
        SO101Paper, "reward_terms", lambda self, q: terms_of(self, q) | {"yaw": 2 * terms_of(self, q)["yaw"]}
    )
    assert failed(so101.check_reward_terms(CFG)) == {"reward 'yaw', sheet 5 cm and 0.3 rad off"}


def centre_alone(self: SO101Paper, q: dict[str, torch.Tensor]) -> torch.Tensor:
    away = (q["sheet_position"][:, :2] - torch.tensor(self.cfg.tape_center)).abs()
    return (away <= self.cfg.tolerance).all(1)


def unwrapped(self: SO101Paper, q: dict[str, torch.Tensor]) -> torch.Tensor:
    # a sheet turned by half a turn is not a success
    return holds(self, q) & (q["sheet_quaternion"][:, 0] > 0.5)


holds = SO101Paper.holds


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        (centre_alone, {"success: one corner 1 mm outside, each"}),
        (unwrapped, {"success: turned by half a turn"}),
        (lambda self, q: q["tolerance"] < 0, {"success: sheet in the middle", "reward 'success' at success"}),
        (
            lambda self, q: q["tolerance"] > 0,
            {"success: out for one step after 9", "success: one corner 1 mm outside, each"},
        ),
    ],
)
def test_check_success__finds_a_changed_condition(
    condition: Any, names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SO101Paper, "holds", condition)
    assert names <= failed(so101.check_success(CFG))


def test_check_success__finds_a_shorter_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    make = so101.make
    monkeypatch.setattr(so101, "make", lambda cfg, n: make(dataclasses.replace(cfg, success_hold_steps=9), n))
    assert {"success: sheet in the middle", "success: out for one step after 9"} <= failed(
        so101.check_success(CFG)
    )


def test_check_stability__divergence_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(self: TaskEnv, actions: torch.Tensor) -> Any:
        raise NonFiniteError("the simulation diverged in env(s) [1]")

    monkeypatch.setattr(TaskEnv, "step", diverge)
    (check,) = so101.check_stability(CFG, make_policy, num_steps=5, num_envs=2)
    assert not check.ok
    assert check.measured == "the simulation diverged in env(s) [1]"


def test_monitor__keeps_extremes_over_envs_and_steps() -> None:
    class Batch:
        pass

    monitor = Monitor(Batch())
    records = {
        "qpos": np.zeros((2, 3, 13)),
        "qvel": np.zeros((2, 3, 12)),
        "actuator_force": np.zeros((2, 3, 6)),
        "qfrc_constraint": np.zeros((2, 3, 12)),
    }
    monitor.on_rollout(records)
    records["qvel"][1, 2, 5] = -6.5
    records["qvel"][0, 1, 6:9] = 0.3, 0.4, 1.2
    records["qpos"][1, 0, 6:9] = 0.3, 0.4, -0.009
    records["qpos"][0, 0, 8] = 0.021
    records["actuator_force"][0, 0, 3] = -2.94
    records["qfrc_constraint"][1, 1, 2] = -41.0
    monitor.on_rollout(records)
    monitor.on_rollout({name: np.zeros_like(value) for name, value in records.items()})
    found = {name: (value, value < limit) for name, (value, limit, _) in monitor.extremes().items()}
    assert found == {
        "joint speed": (6.5, False),
        "speed of the sheet": (pytest.approx(1.3), True),
        "sheet's centre below the table": (pytest.approx(9.0), False),
        "sheet's centre above the table": (pytest.approx(21.0), False),
        "sheet's distance from the base": (pytest.approx(0.5), True),
        "servo torque": (2.94, True),
        "torque of contacts on a joint": (41.0, False),
    }


# --- the command ---


@pytest.mark.parametrize("ok", [True, False])
def test_doctor__prints_a_table_and_returns_an_exit_code(
    ok: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def checks(spec: Any, cfg: Any, quick: bool, report: Callable[[str], None]) -> Iterator[Check]:
        calls.append((spec, cfg, quick))
        report("mass of the sheet")
        yield Check("rate", "30 Hz", "30 Hz", True)
        yield Check("sheet", "5 g", "50 g", ok)

    monkeypatch.setattr(command, "examine", checks)
    assert main(["doctor", "so101-paper", "--quick", "--tolerance", "0.03"]) == (0 if ok else 1)
    out, progress = capsys.readouterr()
    assert "s, 0 checks done; now: mass of the sheet" in progress
    assert "30 Hz" in out
    assert ("FAILED" in out) == (not ok)
    assert ("all 2 checks passed" if ok else "1 of 2 checks failed: sheet") in out
    assert calls == [(TASKS.get("so101-paper"), SO101PaperCfg(tolerance=0.03), True)]


def test_doctor__names_unknown_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "so101-papr"]) == 2
    assert "unknown task 'so101-papr'; did you mean 'so101-paper'" in capsys.readouterr().err
    assert main(["doctor"]) == 2
    assert "doctor needs a task id: put it first, residual-rl doctor TASK" in capsys.readouterr().err


def test_format_table__highlights_failed_checks() -> None:
    table = format_table("title", [Check("a", "1", "1", True), Check("b", "1", "2", False)])
    assert [row.style for row in table.rows] == [None, "red"]
    verdicts = [(cell.plain, cell.style) for cell in table.columns[0].cells]  # type: ignore[union-attr]
    assert verdicts == [("ok", "green"), ("FAILED", "bold red")]
