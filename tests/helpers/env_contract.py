"""The vec_env contract, on every registered task (and on the fake that other tests use)."""

from __future__ import annotations

import dataclasses
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from imperfect_arm import EVERYTHING
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.envs.task_env import TaskEnv
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.registry import TASKS, TaskSpec, load
from residual_rl.types import Obs

ELSEWHERE = {
    "maniskill": "tests/envs/maniskill/test_env_contract.py",
    "gymnasium": "tests/envs/gymnasium/test_env_contract.py",
    **dict.fromkeys(("adroit", "fetch", "metaworld", "pusht"), "tests/tasks/gymnasium/test_env_contract.py"),
}
"""Tasks whose envs need more than this environment, and the file that runs the contract on them."""
VARIANTS = [
    dataclasses.replace(
        TASKS.get("so101-paper"),
        id="so101-paper with imperfections",
        config_overrides={**EVERYTHING, "position_noise": 0.001, "angle_noise": 0.005},
    )
]
"""Settings of a task that have a state of their own."""
SPECS = [*(spec for spec in TASKS.all() if spec.id not in ELSEWHERE), fakes.POINT_TASK, *VARIANTS]
FIRST_SEED = 4000

pytestmark = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)


def make(spec: TaskSpec, num_envs: int = 3, num_threads: int = 1, **settings: Any) -> VecEnv:
    cfg = dataclasses.replace(spec.default_config(), **settings)
    env: VecEnv = load(spec.make)(cfg, num_envs, num_threads, "cpu")
    return env


def actions(env: VecEnv, step: int, scale: float = 1.0) -> Tensor:
    """Actions [B, A] that depend on the env's index and the step alone."""
    rows = [
        np.random.default_rng((env_id, step)).uniform(-scale, scale, len(env.action_unit))
        for env_id in range(env.num_envs)
    ]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def equal(a: Obs, b: Obs, env_ids: Any = slice(None)) -> bool:
    """Whether two dicts of tensors are the same bit for bit in `env_ids`."""
    return a.keys() == b.keys() and all(torch.equal(a[name][env_ids], b[name][env_ids]) for name in a)


def mask(*env_ids: int, num_envs: int = 3) -> Tensor:
    return torch.tensor([env_id in env_ids for env_id in range(num_envs)])


def flat(value: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors in nested dicts and tuples, by path."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    return {key: tensor for k, v in items for key, tensor in flat(v, f"{name}/{k}").items()}


# --- spaces, attributes and types ---------------------------------------------------------------------------


def test_vec_env__spaces_contain_the_observations(spec: TaskSpec) -> None:
    env = make(spec)
    obs, info = env.reset(seed=FIRST_SEED)
    assert isinstance(env.single_observation_space, spaces.Dict)
    assert set(obs) == set(env.single_observation_space)
    for step in range(4):
        for name, value in obs.items():
            space = env.single_observation_space[name]
            assert value.device == env.device
            assert value.shape == (3, *space.shape)
            assert str(value.dtype).removeprefix("torch.") == space.dtype.name
            assert all(space.contains(row.numpy()) for row in value)
        assert env.observation_space.contains({name: value.numpy() for name, value in obs.items()})
        obs, *_ = env.step(actions(env, step))
    assert info["seed"].tolist() == [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2]


def test_vec_env__attributes_are_consistent(spec: TaskSpec) -> None:
    env = make(spec, num_envs=4)
    assert env.num_envs == 4
    assert env.action_space.shape == (4, len(env.action_unit))
    assert (env.single_action_space.low == -1).all()
    assert (env.single_action_space.high == 1).all()
    assert (env.action_unit > 0).all()
    assert env.action_unit_name in ("rad", "m", "env unit")
    assert env.control_hz > 0
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.max_episode_steps == spec.default_config().max_episode_steps


def test_vec_env_step__returns_tensors_of_the_documented_types(spec: TaskSpec) -> None:
    env = make(spec)
    env.reset(seed=FIRST_SEED)
    _, reward, terminated, truncated, info = env.step(actions(env, 0))
    assert reward.dtype == torch.float32
    for flags in (
        terminated,
        truncated,
        info["_final_obs"],
        info["_final_info"],
        info["final_info"]["success_once"],
    ):
        assert flags.dtype == torch.bool
    assert info["final_info"]["seed"].dtype == info["final_info"]["episode_length"].dtype == torch.int64
    for name, value in flat((reward, terminated, truncated, info)).items():
        assert value.shape[0] == 3, name
        assert value.device == env.device
    assert {"seed", "episode_return", "episode_length", "success_once", "success_at_end"} <= set(
        info["final_info"]
    )
    assert set(info["task_metrics"]) <= set(info["final_info"])
    assert set(spec.metric_units) <= set(info["task_metrics"])
    assert torch.allclose(reward, sum(info["reward_terms"].values()), atol=1e-6)  # type: ignore[arg-type]


def test_vec_env_observations__equal_the_last_returned_ones(spec: TaskSpec) -> None:
    env = make(spec)
    obs, _ = env.reset(seed=FIRST_SEED)
    assert equal(env.observations(), obs)
    obs, *_ = env.step(actions(env, 0))
    assert equal(env.observations(), obs)
    assert len(env.scenes()) == 3


# --- end of episodes ----------------------------------------------------------------------------------------


def test_vec_env_step__autoreset_returns_the_true_last_observation(spec: TaskSpec) -> None:
    # the longer env does not reset at step 3
    env, longer = make(spec, max_episode_steps=3), make(spec, max_episode_steps=4)
    env.reset(seed=FIRST_SEED)
    longer.reset(seed=FIRST_SEED)
    for step in range(3):
        obs, reward, terminated, truncated, info = env.step(actions(env, step))
        true_obs, true_reward, *_ = longer.step(actions(env, step))
        assert equal(info["final_obs"], true_obs)
        assert torch.equal(reward, true_reward)
        ends = step == 2
        assert info["_final_obs"].tolist() == info["_final_info"].tolist() == truncated.tolist() == [ends] * 3
        assert not terminated.any()
        assert equal(obs, true_obs) != ends
    # an integer seed means seed + i for env i, and later episodes count on from there
    fresh, _ = make(spec).reset(seed=FIRST_SEED + 3)
    assert equal(obs, fresh)


def test_final_info__contains_the_metrics_of_the_episode(spec: TaskSpec) -> None:
    env = make(spec, max_episode_steps=3)
    env.reset(seed=FIRST_SEED)
    total = torch.zeros(3)
    for step in range(5):
        _, reward, terminated, truncated, info = env.step(actions(env, step))
        total += reward
        assert torch.equal(info["_final_info"], terminated | truncated)
        if step == 2:
            final = info["final_info"]
            assert final["seed"].tolist() == [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2]
            assert final["episode_length"].tolist() == [3, 3, 3]
            assert torch.allclose(final["episode_return"], total)
            assert not final["success_once"].any()
            for name, value in info["task_metrics"].items():
                assert torch.equal(final[name], value)
            total[:] = 0
    assert info["final_info"]["episode_length"].tolist() == [2, 2, 2]
    assert torch.allclose(info["final_info"]["episode_return"], total)


def test_vec_env_step__success_terminates_and_does_not_truncate(spec: TaskSpec) -> None:
    assert spec.oracle is not None
    env = make(spec, num_envs=2)
    policy = (
        BasePolicyExecutor(fakes.Homing(), env)
        if spec is fakes.POINT_TASK
        else make_base_policy(spec.oracle, None, env)
    )
    obs, _ = env.reset(seed=FIRST_SEED)
    for _ in range(env.max_episode_steps):
        obs, _, terminated, truncated, info = env.step(policy.act(obs))
        if info["_final_info"].any():
            break
    ended, final = info["_final_info"], info["final_info"]
    assert ended.any()
    assert torch.equal(terminated, ended)
    assert not truncated.any()
    assert final["success_once"][ended].all()
    assert final["success_at_end"][ended].all()
    assert (final["episode_length"][ended] < env.max_episode_steps).all()
    assert (info["reward_terms"]["success"] > 0).tolist() == ended.tolist()


# --- resets and seeds ---------------------------------------------------------------------------------------


def test_vec_env_reset__all_ways_of_seeding_agree(spec: TaskSpec) -> None:
    by_int, by_list, by_queue, by_counter = (make(spec, max_episode_steps=3) for _ in range(4))
    seeds = [FIRST_SEED + i for i in range(6)]
    by_queue.episode_seeds.use_list(seeds)
    by_counter.episode_seeds.use_counter(FIRST_SEED)
    by_list.episode_seeds.use_list(seeds[3:])
    starts = [
        by_int.reset(seed=FIRST_SEED),
        by_list.reset(seed=seeds[:3]),
        by_queue.reset(),
        by_counter.reset(),
    ]
    assert all(info["seed"].tolist() == seeds[:3] for _, info in starts)
    assert all(equal(obs, starts[0][0]) for obs, _ in starts)
    for step in range(4):  # beyond the first episodes
        obs = [env.step(actions(env, step))[0] for env in (by_int, by_list, by_queue, by_counter)]
        assert all(equal(one, obs[0]) for one in obs)


def test_vec_env_reset__equal_seeds_give_equal_episodes(spec: TaskSpec) -> None:
    env = make(spec)
    first, _ = env.reset(seed=[7, 7, 8])
    assert all(torch.equal(value[0], value[1]) for value in first.values())
    assert not all(torch.equal(value[0], value[2]) for value in first.values())
    env.step(actions(env, 0))
    again, _ = env.reset(seed=[8, 7, 7])
    assert equal({name: value.flip(0) for name, value in again.items()}, first)


def test_vec_env_reset__leaves_envs_outside_the_mask_unchanged(spec: TaskSpec) -> None:
    env, twin = make(spec), make(spec)
    for one in (env, twin):
        one.reset(seed=FIRST_SEED)
        for step in range(3):
            before, *_ = one.step(actions(one, step))
    obs, info = env.reset(seed=[77], mask=mask(1))
    assert info["seed"].tolist() == [FIRST_SEED, 77, FIRST_SEED + 2]
    assert equal(obs, before, [0, 2])
    assert equal({n: v[[1]] for n, v in obs.items()}, make(spec, num_envs=1).reset(seed=[77])[0])
    for step in range(3, 6):
        mine, theirs = env.step(actions(env, step)), twin.step(actions(env, step))
        assert equal(mine[0], theirs[0], [0, 2])
        assert torch.equal(mine[1][[0, 2]], theirs[1][[0, 2]])
    assert mine[4]["final_info"]["episode_length"].tolist() == [6, 3, 6]
    # the env that was reset equals a new one
    restarted = make(spec, num_envs=1)
    restarted.reset(seed=[77])
    for step in range(3, 6):
        alone = restarted.step(actions(env, step)[[1]])
    assert equal({n: v[[1]] for n, v in mine[0].items()}, alone[0])


def test_vec_env_reset__partial_reset_draws_seeds_from_the_queue(spec: TaskSpec) -> None:
    env = make(spec)
    env.reset(seed=FIRST_SEED)
    _, info = env.reset(mask=mask(0, 2))
    assert info["seed"].tolist() == [FIRST_SEED + 3, FIRST_SEED + 1, FIRST_SEED + 4]


def test_episode_seeds__envs_stay_idle_after_the_last_seed(spec: TaskSpec) -> None:
    env = make(spec, max_episode_steps=2)
    env.episode_seeds.use_list([11, 12, 13, 14])
    _, info = env.reset()
    assert info["seed"].tolist() == [11, 12, 13]
    for step in range(2):
        obs, *_ = env.step(actions(env, step))
    finished = []
    for step in range(2, 6):
        idle, (obs, _, terminated, truncated, info) = obs, env.step(actions(env, step))
        ended = terminated | truncated
        finished += info["final_info"]["seed"][ended].tolist()
        # envs 1 and 2 have no episode; only their joint targets still follow the actions
        for name in set(obs) - {"joint_target"}:
            assert torch.equal(obs[name][1:], idle[name][1:]), name
        assert not ended[1:].any()
        assert info["final_info"]["episode_length"][1:].tolist() == [0, 0]
    assert finished == [14]
    assert info["final_info"]["seed"].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("seed", [[1, 2], [1, 2, 3, 4]])
def test_vec_env_reset__wrong_number_of_seeds_is_an_error(spec: TaskSpec, seed: list[int]) -> None:
    with pytest.raises(ConfigError, match=f"3 env.* reset .*{len(seed)} seed"):
        make(spec).reset(seed=seed)


def test_vec_env_reset__first_reset_must_be_of_all_envs(spec: TaskSpec) -> None:
    with pytest.raises(ConfigError, match="first reset"):
        make(spec).reset(mask=mask(0))
    with pytest.raises(ConfigError, match="before reset"):
        make(spec).step(torch.zeros(3, len(make(spec).action_unit)))
    with pytest.raises(ConfigError, match="option"):
        make(spec).reset(options={"gravity": 0})


# --- determinism and resuming -------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_envs", "num_threads"), [(1, 1), (2, 1), (2, 2), (7, 2)])
def test_vec_env__episodes_do_not_depend_on_batch_slot_or_threads(
    spec: TaskSpec, num_envs: int, num_threads: int
) -> None:
    reference = make(spec, num_envs=7)
    assert reference.deterministic
    played = [actions(reference, step) for step in range(6)]
    seeds = [FIRST_SEED + i for i in range(7)]
    expected = [reference.reset(seed=seeds)[0]]
    rewards = []
    for action in played:
        obs, reward, *_ = reference.step(action)
        expected.append(obs)
        rewards.append(reward)
    env = make(spec, num_envs=num_envs, num_threads=num_threads)
    # other slots, and several batches in the same envs
    order = list(range(7))[::-1][: 7 // num_envs * num_envs]
    for at in range(0, len(order), num_envs):
        rows = order[at : at + num_envs]
        obs, _ = env.reset(seed=[seeds[i] for i in rows])
        for step, action in enumerate(played):
            assert equal(obs, {name: value[rows] for name, value in expected[step].items()})
            obs, reward, *_ = env.step(action[rows])
            assert torch.equal(reward, rewards[step][rows])
        assert equal(obs, {name: value[rows] for name, value in expected[-1].items()})


def test_vec_env__does_not_write_to_returned_tensors(spec: TaskSpec) -> None:
    env = make(spec, max_episode_steps=3)
    given: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def keep(*values: Any) -> None:
        tensors = flat(values)
        given.append((tensors, {name: value.clone() for name, value in tensors.items()}))

    keep(*env.reset(seed=FIRST_SEED))
    keep(env.state_dict(), env.scenes(), env.observations())
    for step in range(4):
        action = actions(env, step, scale=2.0)
        keep(action, *env.step(action))
    keep(*env.reset(seed=[5], mask=mask(1)))
    env.step(actions(env, 4))
    env.reset(seed=1)
    for tensors, copies in given:
        for name, value in tensors.items():
            assert torch.equal(value, copies[name]), name


def test_physics_read__does_not_write_to_returned_tensors(spec: TaskSpec) -> None:
    env = make(spec)
    physics = getattr(env, "physics", None)
    if physics is None:
        pytest.skip("not a simulation")
    env.reset(seed=FIRST_SEED)
    given = physics.read()
    copies = {name: value.clone() for name, value in given.items()}
    env.step(actions(env, 0))
    assert equal(given, copies)
    assert not equal(physics.read(), copies)


@pytest.mark.parametrize("queue", ["counter", "list"])
@pytest.mark.parametrize("where", ["same", "new"])
def test_vec_env_load_state_dict__resumes_bit_for_bit(spec: TaskSpec, where: str, queue: str) -> None:
    env = make(spec, max_episode_steps=5)
    if queue == "list":
        env.episode_seeds.use_list(range(FIRST_SEED, FIRST_SEED + 7))
        env.reset()
    else:
        env.reset(seed=FIRST_SEED)
    for step in range(2):
        env.step(actions(env, step))
    env.reset(seed=[5], mask=mask(1))  # envs at different points of their episodes
    for step in range(2, 4):
        obs, *_ = env.step(actions(env, step))
    state = env.state_dict()
    expected = [env.step(actions(env, step)) for step in range(4, 14)]
    other = env if where == "same" else make(spec, num_threads=2, max_episode_steps=5)
    other.load_state_dict(state)
    assert equal(other.observations(), obs)
    for step in range(4, 14):
        mine, theirs = flat(other.step(actions(env, step))), flat(expected[step - 4])
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), (step, name)


def test_vec_env_restore__episodes_go_on_bit_for_bit_in_other_envs(spec: TaskSpec) -> None:
    env = make(spec, max_episode_steps=20)
    env.reset(seed=FIRST_SEED)
    if not env.can_restore:
        with pytest.raises(ConfigError, match="cannot be restored"):
            env.snapshot(torch.tensor([0]))
        return
    for step in range(3):
        env.step(actions(env, step))
    # envs 0 and 2 as they are now, and the steps that follow
    sources, targets = torch.tensor([0, 2]), torch.tensor([1, 2])
    snapshot, before = env.snapshot(sources), env.observations()
    expected = [env.step(actions(env, step)) for step in range(3, 8)]
    # the same steps in the envs 1 and 2, after other episodes there
    env.reset(mask=mask(1, 2))
    env.step(actions(env, 9))
    others = {name: value[[0]] for name, value in env.observations().items()}
    obs = env.restore(targets, snapshot)
    assert equal({name: value[[0]] for name, value in obs.items()}, others)
    for name, value in obs.items():
        assert torch.equal(value[targets], before[name][sources]), name
    for step in range(3, 8):
        action = actions(env, step).index_copy(0, targets, actions(env, step)[sources])
        mine, theirs = flat(env.step(action)), flat(expected[step - 3])
        for name, value in mine.items():
            assert torch.equal(value[targets], theirs[name][sources]), (step, name)


def test_vec_env_load_state_dict__state_of_another_num_envs_is_an_error(spec: TaskSpec) -> None:
    env = make(spec)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="3 envs, this env 2"):
        make(spec, num_envs=2).load_state_dict(env.state_dict())


# --- actions ------------------------------------------------------------------------------------------------


def test_vec_env_step__clips_actions(spec: TaskSpec) -> None:
    env, twin = make(spec), make(spec)
    env.reset(seed=FIRST_SEED)
    twin.reset(seed=FIRST_SEED)
    for step in range(3):
        action = actions(env, step, scale=4.0)
        mine, theirs = env.step(action), twin.step(action.clamp(-1.0, 1.0))
        assert equal(mine[0], theirs[0])


def test_vec_env_step__different_actions_give_different_observations(spec: TaskSpec) -> None:
    env = make(spec)
    env.reset(seed=[7, 7, 7])
    action = torch.zeros(3, len(env.action_unit))
    action[1], action[2] = 1.0, -1.0
    for _ in range(4):  # an action may take some steps to arrive
        obs, *_ = env.step(action)
    assert len(torch.unique(torch.cat([value.flatten(1) for value in obs.values()], 1), dim=0)) == 3


@pytest.mark.parametrize("change", ["one env too few", "one action too many", "flat"])
def test_vec_env_step__wrong_action_shape_is_an_error(spec: TaskSpec, change: str) -> None:
    env = make(spec)
    env.reset(seed=FIRST_SEED)
    size = len(env.action_unit)
    shapes = {"one env too few": (2, size), "one action too many": (3, size + 1), "flat": (3 * size,)}
    with pytest.raises(ConfigError, match=r"actions must have shape \(3, "):
        env.step(torch.zeros(shapes[change]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vec_env_step__non_finite_action_is_an_error_that_names_the_env(spec: TaskSpec, value: float) -> None:
    env = make(spec)
    obs, _ = env.reset(seed=FIRST_SEED)
    action = torch.zeros(3, len(env.action_unit))
    action[1, -1] = value
    with pytest.raises(NonFiniteError, match=r"action is not finite in env\(s\) \[1\]") as caught:
        env.step(action)
    assert equal(env.observations(), obs)  # nothing was stepped
    if isinstance(env, TaskEnv):
        dump = caught.value.dump
        assert equal(dump["state_before"], env.physics.state_dict())
        assert torch.equal(dump["action"].nan_to_num(), action.nan_to_num())
        assert dump["seed"].tolist() == [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2]
        assert dump["step"].tolist() == [0, 0, 0]


def test_physics_step__nan_is_an_error_in_the_step_where_it_appears(spec: TaskSpec) -> None:
    env = make(spec)
    physics = getattr(env, "physics", None)
    if physics is None:
        pytest.skip("not a simulation")
    env.reset(seed=FIRST_SEED)
    env.step(actions(env, 0))
    physics.batch.bind("qpos")[1, 2] = np.nan
    action = actions(env, 1)
    with pytest.raises(NonFiniteError, match=r"diverged.* in env\(s\) \[1\]") as caught:
        env.step(action)
    dump = caught.value.dump
    # the state before the step, which already has the NaN
    assert dump["state_before"]["state"].isnan().any(1).tolist() == [False, True, False]
    assert torch.equal(dump["action"], action)
    assert dump["seed"].tolist() == [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2]
    assert dump["step"].tolist() == [1, 1, 1]


def test_vec_env_active__marks_the_envs_with_an_episode(spec: TaskSpec) -> None:
    env = make(spec, max_episode_steps=2)
    env.episode_seeds.use_list([FIRST_SEED, FIRST_SEED + 1])
    env.reset()
    assert env.active.tolist() == [True, True, False]
    for step in range(2):
        env.step(actions(env, step))
    assert env.active.tolist() == [False, False, False]


def test_episode_seeds__start_at_zero_without_a_seed(spec: TaskSpec) -> None:
    assert make(spec).reset()[1]["seed"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_envs", [0, -1])
def test_vec_env__num_envs_below_one_is_an_error(spec: TaskSpec, num_envs: int) -> None:
    if spec is fakes.POINT_TASK:
        pytest.skip("the fake does not check it")
    with pytest.raises(ConfigError, match=f"num_envs must be at least 1, not {num_envs}"):
        make(spec, num_envs=num_envs)
