"""PickBox-v1: rewards and success worked out by hand, randomisation, and the scripted oracle."""

from __future__ import annotations

from collections.abc import Iterator
from math import tanh
from typing import Any

import pytest
import torch

from residual_rl.envs.maniskill.headless import vulkan_works
from residual_rl.envs.maniskill.sim_env import ManiSkillEnv
from residual_rl.envs.maniskill.spec import ManiSkillEnvCfg
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.doctor import doctor
from residual_rl.tasks.maniskill.factory import MODULES, make
from residual_rl.tasks.maniskill.pick_box.layouts import LAYOUTS
from residual_rl.tasks.maniskill.pick_box.oracle import CONTROL_MODE, PickBoxOracle

pytestmark = pytest.mark.maniskill

HERE = torch.zeros(1, dtype=torch.int64)


def make_sim(robot: str, **settings: Any) -> ManiSkillEnv:
    modes = {"control_mode": CONTROL_MODE, "reward_mode": "dense"}
    return ManiSkillEnv(
        ManiSkillEnvCfg("PickBox-v1", robot_uids=robot, modules=MODULES, **{**modes, **settings})
    )


@pytest.fixture(scope="module", params=["a1_galaxea", "panda"])
def sim(request: pytest.FixtureRequest) -> Iterator[ManiSkillEnv]:
    made = make_sim(request.param)
    yield made
    made.close()


# --- rewards ------------------------------------------------------------------------------------------------

FLAGS = ("is_grasped", "is_lifted", "is_over_basket", "is_obj_placed", "success")


@pytest.mark.parametrize(
    ("flags", "values", "expected"),
    [
        # tcp_to_obj, obj_height, obj_to_carry, obj_to_goal, speed; the box is carried at 0.05 m
        ("", (0.1, 0.0, 0.2, 0.2, 0.0), 1 - tanh(0.5)),
        ("", (0.01, 0.0, 0.2, 0.2, 0.0), 1 - tanh(0.05)),
        ("is_grasped", (0.01, 0.0, 0.2, 0.2, 0.0), 1 - tanh(0.05) + 1),
        ("is_grasped", (0.01, 0.02, 0.2, 0.2, 0.3), 1 - tanh(0.05) + 1 + 0.4),
        ("", (0.01, 0.02, 0.2, 0.2, 0.3), 1 - tanh(0.05)),  # thrown up: no reward for its height
        ("is_grasped is_lifted", (0.01, 0.04, 0.2, 0.2, 0.3), 1 - tanh(0.05) + 1 + 0.8 + 1 - tanh(1.0)),
        ("is_grasped is_lifted", (0.0, 0.3, 0.1, 0.2, 0.3), 1 + 1 + 1 + 1 - tanh(0.5)),
        ("is_grasped is_lifted is_over_basket", (0.01, 0.05, 0.01, 0.04, 0.0), 4.0),
        ("is_over_basket", (0.05, 0.03, 0.02, 0.02, 0.5), 5 + 1 - tanh(0.1)),
        ("is_over_basket is_obj_placed", (0.05, 0.004, 0.05, 0.01, 0.2), 5 + 1 - tanh(0.05) + 1 - tanh(2.0)),
        ("is_over_basket is_obj_placed success", (0.05, 0.004, 0.05, 0.0, 0.0), 8.0),
    ],
)
def test_dense_reward__matches_values_worked_out_by_hand(
    flags: str, values: tuple[float, ...], expected: float
) -> None:
    pick_box = pytest.importorskip("residual_rl.tasks.maniskill.pick_box.env")
    info = {name: torch.tensor([name in flags.split(), False]) for name in FLAGS}
    rows = [torch.tensor([value, 0.1]) for value in values]
    reward = pick_box.dense_reward(*rows, 0.05, info)
    # in the second env, the gripper has not reached the box
    assert reward.tolist() == pytest.approx([expected, 1 - tanh(0.5)])


def test_pick_box_env__rewards_match_values_worked_out_by_hand(sim: ManiSkillEnv) -> None:
    from residual_rl.tasks.maniskill.pick_box.doctor import place_box

    sim.reset(HERE, torch.tensor([4]))
    env, action = sim.env, torch.zeros(1, 4)
    tool, box = (sim.observations()[name][0, :3] for name in ("tcp_pose", "obj_pose"))
    start = 1 - tanh(5 * float((tool - box).norm()))
    assert float(env.compute_dense_reward({}, action, env.evaluate())) == pytest.approx(start, rel=1e-4)
    assert float(env.compute_normalized_dense_reward({}, action, env.evaluate())) == pytest.approx(
        start / 8, rel=1e-4
    )
    place_box(env, (0.005, 0.0, 0.0), linear=0.2)
    moving = 5 + 1 - tanh(0.025) + 1 - tanh(2.0)
    assert float(env.compute_dense_reward({}, action, env.evaluate())) == pytest.approx(moving, rel=1e-4)
    place_box(env, (0.005, 0.0, 0.0))
    info = env.evaluate()
    assert float(env.compute_dense_reward({}, action, info)) == 8.0
    assert float(env.compute_sparse_reward({}, action, info)) == 1.0


# --- observations and draws ---------------------------------------------------------------------------------


def test_pick_box_env__observations_are_consistent_and_randomised(sim: ManiSkillEnv) -> None:
    layout, starts = LAYOUTS[sim.description.robot], []
    for seed in range(4):
        sim.reset(HERE, torch.tensor([seed]))
        obs = {name: value[0] for name, value in sim.observations().items()}
        box, goal, half_size = obs["obj_pose"], obs["goal_pos"], float(obs["obj_half_size"])
        assert 0.85 <= half_size / layout.box_half_size <= 1.15
        assert float(box[2]) == pytest.approx(half_size, abs=1e-6)
        assert float(goal[2]) == pytest.approx(0.004 + half_size, abs=1e-6)
        assert (box[:2] - torch.tensor(layout.spawn_center)).abs().max() <= layout.spawn_half_size
        assert (goal[:2] - torch.tensor(layout.basket_center)).abs().max() <= layout.basket_spawn_half_size
        assert torch.allclose(obs["tcp_to_obj_pos"], box[:3] - obs["tcp_pose"][:3])
        assert torch.allclose(obs["obj_to_goal_pos"], goal - box[:3])
        assert float(obs["is_grasped"]) == 0.0
        starts.append([half_size, *box.tolist(), *goal.tolist(), *obs["joint_position"].tolist()])
    assert all(len({row[i] for row in starts}) == 4 for i in (0, 1, 2, 8, 9, 11, 12))


def test_pick_box_env__simulator_uses_the_drawn_values(sim: ManiSkillEnv) -> None:
    found = []
    for seed in (0, 1, 0):
        sim.reset(HERE, torch.tensor([seed]))
        env = sim.env
        draws = {name: values[0] for name, values in env._draws.items()}
        body = env.box._bodies[0]
        (shape,) = body.collision_shapes
        half_size = LAYOUTS[sim.description.robot].box_half_size * draws["box_scale"][0]
        assert shape.half_size == pytest.approx([half_size] * 3)
        assert body.mass == pytest.approx(draws["box_density"][0] * (2 * half_size) ** 3, rel=1e-5)
        material = shape.physical_material
        assert (material.static_friction, material.dynamic_friction) == pytest.approx(
            (draws["box_friction"][0],) * 2
        )
        assert (body.linear_damping, body.angular_damping) == pytest.approx(
            (draws["box_linear_damping"][0], draws["box_angular_damping"][0])
        )
        found.append(
            [
                body.mass,
                material.static_friction,
                body.linear_damping,
                body.angular_damping,
                *draws["box_color"],
            ]
        )
    assert found[0] == found[2]
    assert all(a != b for a, b in zip(found[0], found[1], strict=True))


# --- oracle and sanity suite --------------------------------------------------------------------------------


def test_pick_box_oracle__solves_the_task_and_passes_the_reward_phases_in_order(sim: ManiSkillEnv) -> None:
    sim.reset(HERE, torch.tensor([31]))
    oracle, rewards, success = (
        PickBoxOracle(sim.description.robot, torch.tensor(sim.description.action_unit)),
        [],
        False,
    )
    while not success and len(rewards) < 150:
        step = sim.step(oracle(sim.observations()))
        rewards.append(float(step.reward))
        success = bool(step.success)
    assert success
    assert rewards[-1] == 8.0
    phases = [sum(reward >= least for least in (1.0, 2.0, 3.0, 4.0, 5.0, 8.0)) for reward in rewards]
    assert phases == sorted(phases)
    assert {0, 2, 3, 4, 5, 6} <= set(phases)


def test_check_success__passes_for_each_condition(sim: ManiSkillEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    from residual_rl.tasks.maniskill.pick_box import doctor as pick_box_doctor

    monkeypatch.setattr(sim, "close", lambda: None)
    checks = list(pick_box_doctor.check_success(sim))
    assert [check.name for check in checks if not check.ok] == []
    assert len(checks) == 11


def test_check_success__fails_for_a_missing_condition(
    sim: ManiSkillEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    from residual_rl.tasks.maniskill.pick_box import doctor as pick_box_doctor
    from residual_rl.tasks.maniskill.pick_box import env as pick_box

    monkeypatch.setattr(sim, "close", lambda: None)
    monkeypatch.setattr(pick_box, "MAX_LINEAR_SPEED", 1.0)
    monkeypatch.setattr(pick_box, "MAX_ANGULAR_SPEED", 5.0)
    failed = {check.name for check in pick_box_doctor.check_success(sim) if not check.ok}
    assert failed == {"success: the box moves at 0.11 m/s", "success: the box turns at 0.55 rad/s"}


@pytest.mark.slow
@pytest.mark.parametrize("robot", ["a1_galaxea", "panda", "panda_wristcam"])
def test_doctor__pick_box_passes(robot: str) -> None:
    cfg = ManiSkillCfg(env_id="PickBox-v1", robot_uids=robot)
    assert [check.name for check in doctor(cfg, True, None) if not check.ok] == []  # type: ignore[arg-type]


def test_doctor__reports_a_task_without_a_suite() -> None:
    (check,) = doctor(ManiSkillCfg(env_id="PushCube-v1"), True, None)  # type: ignore[arg-type]
    assert check.measured == "not checked: there is no suite for PushCube-v1"


# --- cameras, errors, GPU -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("robot", ["a1_galaxea", "panda", "panda_wristcam"])
def test_pick_box_env__both_cameras_observe_the_scene(robot: str) -> None:
    if not vulkan_works():
        pytest.skip("no Vulkan driver: make vulkan")
    sim = make_sim(robot, obs_mode="rgb+state", render_backend="cpu")
    images: list[dict[str, torch.Tensor]] = []
    for seed in (0, 1, 0):
        sim.reset(HERE, torch.tensor([seed]))
        images.append(
            {name: value for name, value in sim.observations().items() if value.dtype == torch.uint8}
        )
    sim.close()
    assert set(images[0]) == {"base_camera", "hand_camera"}
    for name, image in images[0].items():
        assert image.shape == (1, 224, 224, 3)
        assert image.float().std() > 5.0
        assert torch.equal(image, images[2][name])
        assert not torch.equal(image, images[1][name])


@pytest.mark.parametrize(
    ("robot", "error", "message"),
    [
        (
            "fetch",
            UnknownNameError,
            "unknown robot of PickBox-v1: 'fetch'.*known: a1_galaxea, panda, panda_wristcam, xarm6_robotiq",
        ),
        ("a1_galaxi", UnknownNameError, "unknown ManiSkill robot 'a1_galaxi'; did you mean 'a1_galaxea'"),
        (
            "xarm6_robotiq",
            ConfigError,
            "'xarm6_robotiq' is not on this machine; .* mani_skill.utils.download_asset xarm6_robotiq",
        ),
    ],
)
def test_pick_box_env__unavailable_robot_is_named_in_the_error(
    robot: str, error: type[Exception], message: str
) -> None:
    from mani_skill import ASSET_DIR

    if robot == "xarm6_robotiq" and (ASSET_DIR / "robots" / "xarm6").exists():
        pytest.skip("its model is on this machine")
    with pytest.raises(error, match=message):
        make_sim(robot)


@pytest.mark.gpu
@pytest.mark.parametrize("robot", ["a1_galaxea", "panda"])
def test_pick_box_oracle__solves_the_task_on_a_gpu(robot: str) -> None:
    env = make(
        ManiSkillCfg(env_id="PickBox-v1", robot_uids=robot, control_mode=CONTROL_MODE, reward_mode="dense"),
        64,
        0,
        "cuda",
    )
    obs, _ = env.reset(seed=0)
    assert len(set(obs["obj_half_size"].flatten().tolist())) == 64
    oracle, solved = (
        PickBoxOracle(env.robot, env.action_unit),
        torch.zeros(64, dtype=torch.bool, device=env.device),
    )
    for _ in range(100):
        obs, reward, *_, info = env.step(oracle(obs))
        solved |= info["_final_info"] & info["final_info"]["success_at_end"]
        assert {reward.device.type, obs["state"].device.type} == {"cuda"}
    env.close()
    assert solved.float().mean() >= 0.9
