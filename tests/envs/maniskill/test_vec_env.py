"""The vec_env of ManiSkill envs, on scripted envs: end of episodes, masks, resuming and failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from residual_rl.envs.maniskill.sim_env import ManiSkillEnv, Step
from residual_rl.envs.maniskill.spec import EnvDescription
from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv
from residual_rl.envs.workers.shared_memory import ArraySpec
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.types import Obs


class ScriptedEnvs:
    """Envs that observe their seed and the sum of their actions.

    An episode succeeds when the sum reaches `success`, and fails when it falls to `-fail`.
    """

    device = torch.device("cpu")
    remote = False

    def __init__(
        self, num_envs: int = 3, deterministic: bool = True, success: float = 99.0, fail: float = 99.0
    ):
        self.num_envs, self.deterministic = num_envs, deterministic
        self.success, self.fail = success, fail
        self.description = EnvDescription(
            "robot",
            "pd_joint_delta_pos",
            4,
            20.0,
            {"state": ArraySpec((2,), "float32")},
            ("sum",),
            (0.1,),
            2,
            deterministic,
        )
        self.state = torch.zeros(num_envs, 2)
        self.noise: float = 0.0
        """Added to all sums in each step."""

    def reset(self, env_ids: Tensor, seeds: Tensor) -> None:
        self.state[env_ids] = torch.stack([seeds.float(), torch.zeros(len(seeds))], 1)

    def step(self, actions: Tensor, active: Tensor) -> Step:
        self.state[:, 1] += actions[:, 0] * active + self.noise
        total = self.state[:, 1]
        return Step(
            self.observations(),
            total.clone(),
            total >= self.success,
            total <= -self.fail,
            {"sum": total.clone()},
        )

    def observations(self) -> Obs:
        return {"state": self.state.clone()}

    def states(self) -> Tensor:
        return self.state.double()

    def close(self) -> None:
        pass


def render(scenes: Tensor, size: tuple[int, int], camera: str | None) -> np.ndarray:
    return np.full((len(scenes), *size, 3), 7, np.uint8)


def make(max_episode_steps: int = 4, ignore_terminations: bool = False, **settings: Any) -> ManiSkillVecEnv:
    return ManiSkillVecEnv(ScriptedEnvs(**settings), max_episode_steps, ignore_terminations, render)


def act(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_maniskill_vec_env__success_and_failure_terminate_and_the_limit_truncates() -> None:
    env = make(success=2.0, fail=1.0)
    env.reset(seed=10)
    for step, (terminated, truncated) in enumerate(
        [((0, 1, 0), (0, 0, 0)), ((1, 1, 0), (0, 0, 0)), ((0, 1, 0), (0, 0, 0))]
    ):
        obs, _, ended, cut, info = env.step(act(1.0, -1.0, 0.5))
        assert (ended.int().tolist(), cut.int().tolist()) == (list(terminated), list(truncated)), step
    assert info["final_info"]["success_once"].tolist() == [
        False,
        False,
        False,
    ]  # env 0 has started another episode
    # env 2 succeeds at the limit, which is no truncation
    obs, _, ended, cut, info = env.step(act(1.0, -1.0, 0.5))
    assert (ended.tolist(), cut.tolist()) == ([True, True, True], [False, False, False])
    final = info["final_info"]
    assert final["success_once"].tolist() == final["success_at_end"].tolist() == [True, False, True]
    assert final["episode_length"].tolist() == [2, 1, 4]
    assert final["episode_return"].tolist() == [3.0, -1.0, 5.0]
    assert final["sum"].tolist() == [2.0, -1.0, 2.0]
    assert info["final_obs"]["state"][:, 1].tolist() == [2.0, -1.0, 2.0]
    assert obs["state"][:, 1].tolist() == [0.0, 0.0, 0.0]
    assert obs["state"][:, 0].tolist() == [17.0, 18.0, 19.0]  # after the episodes 10 to 16


def test_ignore_terminations__episodes_last_until_the_limit() -> None:
    env = make(success=2.0, ignore_terminations=True)
    env.reset(seed=0)
    for value in (1.0, 1.0, -1.0):
        _, _, terminated, truncated, _ = env.step(act(value, value, 0.0))
        assert not (terminated | truncated).any()
    _, _, terminated, truncated, info = env.step(act(1.0, 0.0, 0.0))
    assert not terminated.any()
    assert truncated.all()
    assert info["final_info"]["success_once"].tolist() == [True, True, False]
    assert info["final_info"]["success_at_end"].tolist() == [True, False, False]


def test_maniskill_vec_env__step_leaves_envs_outside_the_mask_unchanged() -> None:
    env = make()
    env.reset(seed=0)
    env.step(act(1.0, 1.0, 1.0))
    obs, reward, *_ = env.step(act(1.0, 1.0, 1.0), mask=torch.tensor([True, False, True]))
    assert obs["state"][:, 1].tolist() == [2.0, 1.0, 2.0]
    assert reward.tolist() == [2.0, 0.0, 2.0]
    env.step(act(0.0, 0.0, 0.0))
    *_, truncated, info = env.step(act(0.0, 0.0, 0.0))
    assert truncated.tolist() == [True, False, True]
    assert info["final_info"]["episode_length"].tolist() == [4, 3, 4]
    gpu = make()
    gpu._can_wait = False
    gpu.reset(seed=0)
    with pytest.raises(ConfigError, match="cannot step a subset of the envs"):
        gpu.step(act(0.0, 0.0, 0.0), mask=torch.ones(3, dtype=torch.bool))


def test_state_dict__stores_seeds_and_actions_and_resumes_exactly() -> None:
    env = make(max_episode_steps=6, success=3.0)
    env.reset(seed=0)
    # episodes of different lengths; env 1 is sometimes masked, and env 2 is reset once
    for k in range(9):
        env.step(act(0.9, 0.7, -0.25), mask=torch.tensor([True, k % 3 != 1, True]))
        if k == 4:
            env.reset(seed=[77], mask=torch.tensor([False, False, True]))
    state = env.state_dict()
    assert len(state["actions"]) <= 6
    other = make(max_episode_steps=6, success=3.0)
    other.load_state_dict(state)
    assert torch.equal(other.observations()["state"], env.observations()["state"])
    for _ in range(12):
        mine, theirs = other.step(act(0.3, 0.4, 0.5)), env.step(act(0.3, 0.4, 0.5))
        assert torch.equal(mine[0]["state"], theirs[0]["state"])
        for name, value in mine[4]["final_info"].items():
            assert torch.equal(value, theirs[4]["final_info"][name]), name


def test_state_dict__drops_steps_that_belong_to_ended_episodes_only() -> None:
    env = make()
    env.reset(seed=0)
    for value, mask in ((1.0, [True, False, True]), (0.5, [False, True, False]), (0.25, [True, False, True])):
        env.step(act(value, value, value), mask=torch.tensor(mask))
    env.reset(seed=[50], mask=torch.tensor([False, True, False]))
    state = env.state_dict()
    assert state["actions"][:, 0, 0].tolist() == [1.0, 0.25]
    other = make()
    other.load_state_dict(state)
    assert other.observations()["state"].tolist() == [[0.0, 1.25], [50.0, 0.0], [2.0, 1.25]]


def test_load_state_dict__warns_if_the_replay_differs(caplog: pytest.LogCaptureFixture) -> None:
    env = make()
    env.reset(seed=0)
    env.step(act(1.0, 1.0, 1.0))
    state = env.state_dict()
    state["obs"]["state"] += 1.0
    make().load_state_dict(state)
    assert "could not be restored exactly" in caplog.text


def test_load_state_dict__starts_new_episodes_if_not_deterministic() -> None:
    env = make(deterministic=False)
    env.reset(seed=5)
    env.step(act(1.0, 1.0, 1.0))
    state = env.state_dict()
    assert len(state["actions"]) == 0
    other = make(deterministic=False)
    other.load_state_dict(state)
    assert other.observations()["state"].tolist() == [[8.0, 0.0], [9.0, 0.0], [10.0, 0.0]]


def test_load_state_dict__accepts_a_state_from_before_the_first_reset() -> None:
    env = make()
    other = make()
    other.load_state_dict(env.state_dict())
    assert other.reset(seed=3)[1]["seed"].tolist() == [3, 4, 5]


def test_maniskill_vec_env__nan_is_an_error_in_the_step_where_it_appears() -> None:
    env = make()
    env.reset(seed=0)
    env.step(act(1.0, 0.5, 0.0))
    env._sim.noise = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match=r"reward is not finite in env\(s\) \[0, 1, 2\]") as caught:
        env.step(act(0.25, 0.25, 0.25))
    dump = caught.value.dump
    assert dump["seed"].tolist() == [0, 1, 2]
    assert dump["step"].tolist() == [1, 1, 1]
    assert dump["action"].tolist() == [[0.25]] * 3
    assert dump["actions_before"].tolist() == [[[1.0], [0.5], [0.0]]]


def test_maniskill_env__metrics_are_copies_of_the_task_tensors() -> None:
    env = ManiSkillEnv.__new__(ManiSkillEnv)
    env.num_envs, env.device = 2, torch.device("cpu")
    of_the_task = torch.tensor([1.0, 2.0])
    metric = env._per_env(of_the_task)
    of_the_task.zero_()
    assert metric.tolist() == [1.0, 2.0]
    assert env._per_env(True).tolist() == [1.0, 1.0]


def test_maniskill_vec_env__final_scenes_are_returned_after_the_first_scenes_call() -> None:
    env = make(max_episode_steps=2)
    env.reset(seed=0)
    env.step(act(1.0, 1.0, 1.0))
    assert "final_scenes" not in env.step(act(1.0, 1.0, 1.0))[4]
    assert env.scenes().tolist() == [[3.0, 0.0], [4.0, 0.0], [5.0, 0.0]]
    env.step(act(1.0, 1.0, 1.0))
    assert env.step(act(1.0, 1.0, 1.0))[4]["final_scenes"][:, 1].tolist() == [2.0, 2.0, 2.0]
    assert env.render_scenes(env.scenes()[:2], (4, 5)).shape == (2, 4, 5, 3)
