"""ManiSkill envs: results equal to ManiSkill's, clean resets, actions and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from maniskill_case import bare
from torch import Tensor

from residual_rl.envs.maniskill.cpu_patches import collect_garbage_seldom, read_poses_at_once
from residual_rl.envs.maniskill.sim_env import ManiSkillEnv
from residual_rl.envs.maniskill.spec import ManiSkillEnvCfg
from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv
from residual_rl.envs.workers.pool import WorkerError
from residual_rl.errors import ConfigError
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make

pytestmark = pytest.mark.maniskill

Make = Callable[..., ManiSkillVecEnv]
HERE = torch.zeros(1, dtype=torch.int64)


@pytest.fixture
def make_env() -> Iterator[Make]:
    made: list[ManiSkillVecEnv] = []

    def make_one(num_envs: int = 2, num_threads: int = 2, **settings: Any) -> ManiSkillVecEnv:
        made.append(make(ManiSkillCfg(**settings), num_envs, num_threads, "cpu"))
        return made[-1]

    yield make_one
    for env in made:
        env.close()


def play(env: ManiSkillEnv, seed: int, actions: Tensor) -> Tensor:
    """The states [T + 1, S] of an episode."""
    env.reset(HERE, torch.tensor([seed]))
    states = [env.states()[0]]
    for action in actions:
        env.step(action[None])
        states.append(env.states()[0])
    return torch.stack(states)


def test_maniskill_env__observations_and_rewards_equal_those_of_maniskill(make_env: Make) -> None:
    env, theirs = make_env(env_id="PickCube-v1"), bare("PickCube-v1")
    generator = torch.Generator().manual_seed(0)
    for seed in (3, 8):
        obs, _ = env.reset(seed=[seed - 1, seed])
        state, _ = theirs.reset(seed=seed)
        for _ in range(10):
            assert torch.equal(obs["state"][1], state[0])
            assert torch.equal(obs["joint_position"][1], state[0, :9])
            assert torch.equal(obs["tcp_pose"][1], theirs.unwrapped.agent.tcp.pose.raw_pose[0])
            assert torch.equal(obs["goal_pos"][1], theirs.unwrapped.goal_site.pose.p[0])
            assert torch.equal(obs["obj_pose"][1], theirs.unwrapped.cube.pose.raw_pose[0])
            action = torch.rand(2, 8, generator=generator) * 2 - 1
            obs, reward, *_, info = env.step(action)
            state, their_reward, _, _, their_info = theirs.step(action[1])
            assert float(reward[1]) == float(their_reward)
            assert set(info["task_metrics"]) == set(their_info) - {"elapsed_steps", "success"}
            for name, value in info["task_metrics"].items():
                assert float(value[1]) == float(their_info[name])
    assert env.control_hz == 20.0
    assert env.max_episode_steps == 50
    # the joints of the Panda move by 0.1 rad; its fingers from -0.01 to 0.04 m
    assert env.action_unit.tolist() == pytest.approx([0.1] * 7 + [0.025])


def test_clean_reset__episode_in_a_used_env_equals_one_in_a_new_env() -> None:
    """The cubes are pushed and pressed, so that contacts left over from the first episode would change the
    second."""
    settings = ManiSkillEnvCfg("StackCube-v1", control_mode="pd_ee_delta_pos")
    actions = {}
    for seed in (14, 15):
        rows = np.random.default_rng(seed).uniform(-1, 1, (6, 4)).repeat(15, 0)
        rows[:, 2] = -abs(rows[:, 2])
        actions[seed] = torch.tensor(rows, dtype=torch.float32)
    used, new = ManiSkillEnv(settings), ManiSkillEnv(settings)
    play(used, 15, actions[15])
    assert torch.equal(play(used, 14, actions[14]), play(new, 14, actions[14]))


def test_reset_some__draws_the_same_episode_as_maniskill() -> None:
    env = ManiSkillEnv(ManiSkillEnvCfg("PushCube-v1"))
    env.reset(HERE, torch.tensor([6]))
    other = env.states()
    before = torch.random.get_rng_state()
    env.reset(HERE, torch.tensor([5]))
    assert torch.equal(torch.random.get_rng_state(), before)
    ours = env.states()
    assert not torch.equal(ours[:, 1:], other[:, 1:])
    env.env.reset(seed=5)
    assert torch.equal(ours, env.states())


def test_read_poses_at_once__returns_the_same_poses_as_maniskill(monkeypatch: pytest.MonkeyPatch) -> None:
    import sapien
    from mani_skill.utils.structs import Pose

    monkeypatch.setattr(Pose, "create", Pose.create)  # restored after the test
    lists = [[sapien.Pose([0.1, -0.2, 0.3], [0.5, 0.5, -0.5, 0.5])], [sapien.Pose(), sapien.Pose([1, 2, 3])]]
    slow = [Pose.create(poses, device=device).raw_pose for poses in lists for device in (None, "cpu")]
    read_poses_at_once()
    quick = [Pose.create(poses, device=device).raw_pose for poses in lists for device in (None, "cpu")]
    assert [pose.shape for pose in quick] == [(1, 7), (1, 7), (2, 7), (2, 7)]
    assert all(
        torch.equal(ours, theirs) and ours.dtype == theirs.dtype
        for ours, theirs in zip(quick, slow, strict=True)
    )
    # other types of arguments
    assert Pose.create(torch.ones(3)).raw_pose.tolist() == [[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
    pose = sapien.Pose([0.0, 0.0, 1.0])
    assert Pose.create(pose).raw_pose.tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]]


def test_collect_garbage_seldom__collects_once_in_sixteen_rebuilds(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    from mani_skill.envs import sapien_env

    collections: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(None))
    monkeypatch.setattr(sapien_env, "gc", gc)  # restored after the test
    collect_garbage_seldom()
    for _ in range(40):
        sapien_env.gc.collect()
    assert len(collections) == 2


def test_maniskill_env__object_sizes_depend_on_the_seed() -> None:
    env = ManiSkillEnv(ManiSkillEnvCfg("PegInsertionSide-v1"))
    sizes = []
    for seed in (1, 2, 1):
        env.reset(HERE, torch.tensor([seed]))
        sizes.append(env.observations()["peg_half_size"])
    assert torch.equal(sizes[0], sizes[2])
    assert not torch.equal(sizes[0], sizes[1])
    assert env.deterministic
    assert not ManiSkillEnv(ManiSkillEnvCfg("PegInsertionSide-v1", reconfiguration_freq=3)).deterministic


def test_maniskill_vec_env__success_terminates_push_cube(make_env: Make) -> None:
    env = make_env(control_mode="pd_ee_delta_pos", env_id="PushCube-v1")
    assert env.action_unit_name == "m"
    obs, _ = env.reset(seed=0)
    done = torch.zeros(2, dtype=torch.bool)
    for _ in range(50):
        hand, cube = obs["tcp_pose"][:, :3], obs["obj_pose"][:, :3]
        behind = cube - torch.tensor([0.06, 0.0, 0.0])
        above = (hand - behind)[:, :2].norm(dim=1) < 0.02
        is_low = (hand[:, 2] < 0.05) & (hand[:, 0] < cube[:, 0])
        target = torch.where(above[:, None], behind, behind + torch.tensor([0.0, 0.0, 0.1]))
        target = torch.where(
            is_low[:, None], torch.stack([obs["goal_pos"][:, 0], cube[:, 1], cube[:, 2]], 1), target
        )
        move = ((target - hand) / env.action_unit[:3]).clamp(-1.0, 1.0)
        obs, _, terminated, _, info = env.step(torch.cat([move, torch.full((2, 1), -1.0)], 1))
        new = terminated & ~done
        assert info["final_info"]["success_at_end"][new].all()
        assert (info["final_info"]["episode_length"][new] < 50).all()
        done |= terminated
        if done.all():
            break
    assert done.all()


def test_action_range__maps_pd_joint_pos_to_the_joint_limits(make_env: Make) -> None:
    env = make_env(env_id="PushCube-v1", control_mode="pd_joint_pos")
    theirs = bare("PushCube-v1", control_mode="pd_joint_pos")
    space = theirs.action_space
    env.reset(seed=[0, 4])
    theirs.reset(seed=4)
    obs, *_ = env.step(torch.full((2, 8), 0.25))
    state, *_ = theirs.step(torch.from_numpy(space.low + 0.625 * (space.high - space.low)))
    assert torch.allclose(obs["state"][1], state[0], atol=1e-5)
    assert env.action_unit[:7].tolist() == pytest.approx(((space.high - space.low) / 2)[:7].tolist())


def test_action_range__concatenates_the_actions_of_two_robots(make_env: Make) -> None:
    env = make_env(env_id="TwoRobotPickCube-v1", num_envs=1)
    obs, _ = env.reset(seed=0)
    assert obs["joint_position"].shape == (1, 18)
    actions = torch.zeros(1, 16)
    actions[0, 8] = 1.0  # the second robot's first joint
    moved = env.step(actions)[0]["joint_position"] - obs["joint_position"]
    assert moved[0].abs().argmax() == 9
    assert env.robot == "panda_wristcam+panda_wristcam"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_id": "PushCub-v1"}, "unknown ManiSkill env 'PushCub-v1'; did you mean 'PushCube-v1'"),
        ({"robot_uids": "pandaa"}, "unknown ManiSkill robot 'pandaa'; did you mean 'panda'"),
        (
            {"control_mode": "pd_ee_delta"},
            "unknown control mode of PushCube-v1: 'pd_ee_delta'; did you mean .*known: pd_ee_delta_pos, ",
        ),
        ({"robot_uids": "dclaw"}, "ManiSkill cannot create PushCube-v1 with robot dclaw: "),
        (
            {"reward_mode": "shaped"},
            "PushCube-v1 has no reward mode 'shaped'; it has normalized_dense, dense, sparse, none",
        ),
        (
            {"env_id": "PickSingleYCB-v1"},
            (
                r"needs files that .* download them with: python -m mani_skill.utils.download_asset"
                r" PickSingleYCB-v1"
            ),
        ),
        (
            {"robot_uids": "ur_10e"},
            r"the model of robot 'ur_10e' is not on this machine; .* mani_skill.utils.download_asset ur_10e",
        ),
        (
            {"env_id": "SceneManipulation-v1"},
            r"SceneManipulation-v1 needs files that are not on this machine",
        ),
        (
            {"env_id": "UnitreeH1Stand-v1"},
            r"UnitreeH1Stand-v1 needs files .* mani_skill\.utils\.download_asset unitree_h1_simplified$",
        ),
        (
            {"task_modules": ("no_such_module",)},
            "cannot import 'no_such_module' of --task-modules, which registers ManiSkill tasks",
        ),
    ],
)
def test_make_env__invalid_name_or_missing_file_is_named_in_the_error(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(ManiSkillCfg(**settings), 2, 2, "cpu")


def test_parallel_envs__killed_worker_is_named_in_the_error(make_env: Make) -> None:
    env = make_env(num_envs=3)
    env.reset(seed=0)
    os.kill(env._sim.pool.pids[1], signal.SIGKILL)  # type: ignore[attr-defined]
    with pytest.raises(
        WorkerError,
        match=r"ManiSkill worker 2 of 2 \(envs 1 to 2\) was killed by SIGKILL; last lines of its output: ",
    ):
        env.step(torch.zeros(3, 8))
    with pytest.raises(WorkerError, match="the ManiSkill workers have ended"):
        env.reset(seed=0)
    make_env(num_envs=1).reset(seed=0)  # other pools still work


def test_parallel_envs__exception_of_a_task_is_in_the_error(
    make_env: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaking_task.py").write_text(
        "from mani_skill.envs.tasks import PushCubeEnv\n"
        "from mani_skill.utils.registration import register_env\n"
        "@register_env('Breaking-v1', max_episode_steps=9)\n"
        "class Breaking(PushCubeEnv):\n"
        "    def step(self, action):\n"
        "        raise RuntimeError('the gripper fell off')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = make_env(env_id="Breaking-v1", task_modules=("breaking_task",))
    assert env.max_episode_steps == 9
    env.reset(seed=0)
    with pytest.raises(
        WorkerError,
        match=r"\(env 0\) raised RuntimeError: the gripper fell off \(at .*breaking_task\.py:6\); last lines",
    ):
        env.step(torch.zeros(2, 8))


def test_make_env__push_t_needs_no_renderer(make_env: Make) -> None:
    env = make_env(env_id="PushT-v1", num_envs=1)
    obs, _ = env.reset(seed=0)
    assert torch.isfinite(obs["state"]).all()


WITHOUT_VULKAN = """
import torch
from residual_rl.errors import ConfigError
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make
env = make(ManiSkillCfg(env_id="PickCube-v1"), 1, 1, "cpu")
env.reset(seed=6)
print([round(x, 5) for x in env.step(torch.full((1, 8), 0.5))[0]["state"][0].tolist()])
make_rgb = lambda: make(ManiSkillCfg(obs_mode="rgb"), 1, 1, "cpu")
for function in (make_rgb, lambda: env.render_scenes(env.scenes(), (32, 32))):
    try:
        function()
    except ConfigError as error:
        print(error)
"""


def test_vulkan_works__without_vulkan_states_work_and_images_are_an_error(make_env: Make) -> None:
    no_driver = {"VK_DRIVER_FILES": os.devnull, "VK_ICD_FILENAMES": os.devnull}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_VULKAN],
        env={**os.environ, **no_driver},
        capture_output=True,
        text=True,
        check=True,
    )
    state, observing, rendering = run.stdout.splitlines()
    env = make_env(env_id="PickCube-v1", num_envs=1)
    env.reset(seed=6)
    expected = env.step(torch.full((1, 8), 0.5))[0]["state"][0]
    assert state == str([round(x, 5) for x in expected.tolist()])
    assert observing.startswith("obs_mode rgb with render_backend cpu needs a Vulkan driver, ")
    assert "mesa-vulkan-drivers" in observing
    assert rendering.startswith("rendering an image needs a Vulkan driver, ")
