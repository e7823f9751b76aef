"""Contract tests of all registered base policies, and tests of the executor and the Jacobian policies."""

from __future__ import annotations

import math
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from base_policy_cases import ConfigOf
from tiny_runs import slow
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.jacobian import JacobianCfg, JacobianYawCfg
from residual_rl.base_policies.sheet_dragging import (
    APPROACH,
    DESCEND,
    DRAG,
    JacobianPolicy,
    JacobianYawPolicy,
)
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError, NonFiniteError
from residual_rl.factory import make_vec_env
from residual_rl.registry import BASE_POLICIES
from residual_rl.types import ActionChunk, BasePolicy, Obs

NUM_ENVS = 4
contract = pytest.mark.parametrize("base_policy_id", [spec.id for spec in BASE_POLICIES.all()])


@pytest.fixture(scope="module")
def env() -> VecEnv:
    return make_vec_env("so101-paper", NUM_ENVS, num_threads=1)


@pytest.fixture(scope="module")
def lone_env() -> VecEnv:
    return make_vec_env("so101-paper", 1, num_threads=1)


@pytest.fixture(scope="module")
def seen(env: VecEnv) -> list[Obs]:
    """Observations of 60 steps, in which sheets are approached, pressed and dragged."""
    return observations_of(make_base_policy("jacobian-yaw", None, env), env)


def observations_of(policy: BasePolicyExecutor, env: VecEnv) -> list[Obs]:
    """The observations of 60 steps."""
    obs, _ = env.reset(seed=900)
    observations = [obs]
    for _ in range(60):
        obs, *_ = env.step(policy.act(obs))
        observations.append(obs)
    return observations


def only(*env_ids: int) -> Tensor:
    return torch.tensor([env_id in env_ids for env_id in range(NUM_ENVS)])


def rows(obs: Obs, env_ids: list[int]) -> Obs:
    return {name: value[env_ids] for name, value in obs.items()}


# --- the contract -------------------------------------------------------------------------------------------


@pytest.mark.slow
@contract
def test_base_policy__returns_a_bounded_action_for_each_env(
    base_policy_id: str, config_of: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    policy = make_base_policy(base_policy_id, config_of(base_policy_id), env)
    for obs in seen:
        copies = {name: value.clone() for name, value in obs.items()}
        action = policy.act(obs)
        assert action.shape == (NUM_ENVS, len(env.action_unit))
        assert action.dtype == torch.float32
        assert not action.requires_grad
        assert (action.abs() <= 1.0).all()
        assert all(torch.equal(value, copies[name]) for name, value in obs.items())


@contract
def test_base_policy__instances_agree_and_share_no_state(
    base_policy_id: str, config_of: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    ahead, behind = (
        make_base_policy(base_policy_id, config_of(base_policy_id), env),
        make_base_policy(base_policy_id, config_of(base_policy_id), env),
    )
    expected = [ahead.act(obs) for obs in seen]
    assert all(torch.equal(behind.act(obs), action) for obs, action in zip(seen, expected, strict=True))


@contract
@pytest.mark.parametrize("env_id", [0, 2])
def test_base_policy__actions_of_an_env_do_not_depend_on_other_envs(
    base_policy_id: str, config_of: ConfigOf, env_id: int, env: VecEnv, lone_env: VecEnv, seen: list[Obs]
) -> None:
    together, alone = (
        make_base_policy(base_policy_id, config_of(base_policy_id), env),
        make_base_policy(base_policy_id, config_of(base_policy_id), lone_env),
    )
    for obs in seen:
        assert torch.equal(together.act(obs)[[env_id]], alone.act(rows(obs, [env_id])))


@contract
def test_base_policy_reset__affects_only_the_envs_of_the_mask(
    base_policy_id: str, config_of: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    policy, twin, fresh = (make_base_policy(base_policy_id, config_of(base_policy_id), env) for _ in range(3))
    for obs in seen[:45]:
        policy.act(obs)
        twin.act(obs)
    policy.reset(only(1))
    for obs in seen[45:]:
        action = policy.act(obs)
        assert torch.equal(action[[0, 2, 3]], twin.act(obs)[[0, 2, 3]])
        assert torch.equal(action[1], fresh.act(obs)[1])


@contract
@pytest.mark.parametrize("end", [10, 18, 26, 40])
@pytest.mark.parametrize("env_id", [0, *slow(1, 2, 3)])
def test_base_policy__query_for_a_final_observation_affects_only_its_env(
    base_policy_id: str, config_of: ConfigOf, end: int, env_id: int, env: VecEnv, seen: list[Obs]
) -> None:
    """When an episode ends, its env is queried once more and reset; other envs are unaffected."""
    policy, twin, fresh = (make_base_policy(base_policy_id, config_of(base_policy_id), env) for _ in range(3))
    for obs in seen[:end]:
        policy.act(obs)
        twin.act(obs)
    final = policy.act(seen[end], only(env_id))[env_id]
    policy.reset(only(env_id))
    others = [w for w in range(NUM_ENVS) if w != env_id]
    for obs in seen[end + 1 : end + 6]:
        action = policy.act(obs)
        assert torch.equal(action[others], twin.act(obs)[others])
        assert torch.equal(action[env_id], fresh.act(obs)[env_id])
    twin_of_all = make_base_policy(base_policy_id, config_of(base_policy_id), env)
    for obs in seen[:end]:
        twin_of_all.act(obs)
    assert torch.equal(final, twin_of_all.act(seen[end])[env_id])


@contract
def test_base_policy_state_dict__resumes_bit_for_bit(
    base_policy_id: str, config_of: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    policy = make_base_policy(base_policy_id, config_of(base_policy_id), env)
    for obs in seen[:30]:
        policy.act(obs)
    state = policy.state_dict()
    expected = [policy.act(obs) for obs in seen[30:]]
    resumed = make_base_policy(base_policy_id, config_of(base_policy_id), env)
    resumed.load_state_dict(state)
    assert all(torch.equal(resumed.act(obs), action) for obs, action in zip(seen[30:], expected, strict=True))


@contract
def test_base_policy_inputs__are_the_only_observations_it_reads(
    base_policy_id: str, config_of: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    policy, twin = (
        make_base_policy(base_policy_id, config_of(base_policy_id), env),
        make_base_policy(base_policy_id, config_of(base_policy_id), env),
    )
    inputs = policy.policy.inputs
    for name, shape in inputs.items():
        assert env.single_observation_space[name].shape == tuple(shape)  # type: ignore[index]
    for obs in seen[:20]:
        others = {
            name: value if name in inputs else torch.full_like(value, torch.nan)
            for name, value in obs.items()
        }
        assert torch.equal(policy.act(others), twin.act(obs))


@contract
def test_base_policy_inputs__must_be_observations_of_the_env(
    base_policy_id: str, config_of: ConfigOf
) -> None:
    bare = fakes.PointEnv(fakes.PointCfg(), 2)
    if base_policy_id == "zero":  # needs nothing
        assert (
            not make_base_policy(base_policy_id, config_of(base_policy_id), bare)
            .act(bare.reset(seed=0)[0])
            .any()
        )
        return
    with pytest.raises(ConfigError, match=base_policy_id):
        make_base_policy(base_policy_id, config_of(base_policy_id), bare)


# --- the executor -------------------------------------------------------------------------------------------


def point_obs(num_envs: int = 3, start: float = 0.0) -> Obs:
    """Positions that identify the env: `(start + env_id, 0)`."""
    return {"position": torch.stack([start + torch.arange(float(num_envs)), torch.zeros(num_envs)], 1)}


def executor(policy: BasePolicy, num_envs: int = 3) -> BasePolicyExecutor:
    return BasePolicyExecutor(policy, fakes.PointEnv(fakes.PointCfg(), num_envs), "base policy 'it'")


def test_executor_act__executes_the_chunk_of_each_env_before_a_new_query() -> None:
    """Three of four predicted actions are executed before an env is queried again."""
    recorder = fakes.Recorder(3, chunk_size=4, num_action_steps=3)
    played = executor(recorder)
    np.testing.assert_allclose(played.act(point_obs()), [[0.1, 0.0]] * 3)
    played.reset(torch.tensor([False, True, False]))
    # Env 1 starts a new chunk; the other envs continue with their chunks.
    np.testing.assert_allclose(played.act(point_obs(start=10)), [[0.1, 0.01], [0.1, 0.0], [0.1, 0.01]])
    np.testing.assert_allclose(played.act(point_obs(start=20)), [[0.1, 0.02], [0.1, 0.01], [0.1, 0.02]])
    np.testing.assert_allclose(played.act(point_obs(start=30)), [[0.2, 0.0], [0.1, 0.02], [0.2, 0.0]])
    np.testing.assert_allclose(played.act(point_obs(start=40)), [[0.2, 0.01], [0.2, 0.0], [0.2, 0.01]])
    assert recorder.calls == [
        ("query", [0, 1, 2], [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]),
        ("reset", [1]),
        ("query", [1], [[11.0, 0.0]]),
        ("query", [0, 2], [[30.0, 0.0], [32.0, 0.0]]),
        ("query", [1], [[41.0, 0.0]]),
    ]


def test_executor_act__advances_only_the_envs_of_the_mask() -> None:
    recorder = fakes.Recorder(3, chunk_size=2, num_action_steps=2)
    played = executor(recorder)
    played.act(point_obs())
    for _ in range(2):  # finishes the chunk of env 2, and then queries only for env 2
        action = played.act(point_obs(start=10), torch.tensor([False, False, True]))
    np.testing.assert_allclose(action[2], [0.2, 0.0])
    np.testing.assert_allclose(played.act(point_obs(start=20)), [[0.1, 0.01], [0.1, 0.01], [0.2, 0.01]])
    assert [call[1] for call in recorder.calls] == [[0, 1, 2], [2]]


def test_executor_state_dict__resumes_within_a_chunk() -> None:
    first, second = fakes.Recorder(3, 4, 3), fakes.Recorder(3, 4, 3)
    played, resumed = executor(first), executor(second)
    played.act(point_obs())
    played.reset(torch.tensor([True, False, False]))
    played.act(point_obs())
    resumed.load_state_dict(played.state_dict())
    for step in range(5):
        assert torch.equal(resumed.act(point_obs(start=step)), played.act(point_obs(start=step)))
    assert second.calls == first.calls[3:]


class Odd(fakes.Recorder):
    """Returns `result`, or raises it."""

    def __init__(self, result: Any):
        super().__init__(3)
        self.result = result

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    "result",
    [torch.zeros(3, 2), torch.zeros(3, 1, 3), torch.zeros(2, 1, 2), torch.zeros(3, 2, 2)],
    ids=lambda r: str(tuple(r.shape)),
)
def test_executor_act__wrong_shape_is_an_error_with_both_shapes(result: Tensor) -> None:
    expected = rf"base policy 'it' gave {tuple(result.shape)}; expected a tensor of shape (3, 1, 2)".replace(
        "(", r"\("
    ).replace(")", r"\)")
    with pytest.raises(BasePolicyError, match=expected):
        executor(Odd(result)).act(point_obs())


@pytest.mark.parametrize("result", [None, np.zeros((3, 1, 2))], ids=["None", "ndarray"])
def test_executor_act__output_must_be_a_tensor(result: Any) -> None:
    with pytest.raises(
        BasePolicyError, match=f"base policy 'it' gave {type(result).__name__}; expected a tensor"
    ):
        executor(Odd(result)).act(point_obs())


def test_executor_act__exception_of_the_policy_is_named_and_chained() -> None:
    with pytest.raises(
        BasePolicyError, match=r"base policy 'it' failed: ZeroDivisionError: by zero"
    ) as caught:
        executor(Odd(ZeroDivisionError("by zero"))).act(point_obs())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ConfigError, match=r"^mine$"):  # errors of this package are not wrapped
        executor(Odd(ConfigError("mine"))).act(point_obs())
    with pytest.raises(KeyboardInterrupt):
        executor(Odd(KeyboardInterrupt())).act(point_obs())  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["reset", "load_state_dict"])
def test_executor__exception_in_any_method_of_the_policy_is_named(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = fakes.Recorder(3)
    played = executor(policy)
    state = played.state_dict()

    def gone(argument: Any) -> None:
        raise ConnectionError("server gone")

    monkeypatch.setattr(policy, method, gone)
    with pytest.raises(BasePolicyError, match="base policy 'it' failed: ConnectionError: server gone"):
        getattr(played, method)(torch.ones(3, dtype=torch.bool) if method == "reset" else state)


def test_executor_act__clips_to_the_action_space() -> None:
    chunk = torch.tensor([[[3.0, -0.5]], [[-1.5, 1.0]], [[0.25, 1.0001]]])
    assert executor(Odd(chunk)).act(point_obs()).tolist() == [[1.0, -0.5], [-1.0, 1.0], [0.25, 1.0]]


class Remembers(BasePolicy):
    """Predicts two steps from the last three positions, and records its inputs."""

    inputs = {"position": (2,)}  # noqa: RUF012
    chunk_size = num_action_steps = 2
    num_obs_steps = 3

    def __init__(self) -> None:
        self.windows: list[tuple[list[int], list[list[float]]]] = []

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> ActionChunk:
        self.windows.append((env_ids.tolist(), obs["position"][..., 0].tolist()))
        return ActionChunk(torch.zeros(len(env_ids), 2, 2), env_ids[:, None] + torch.tensor([0.0, 10.0]))


def test_num_obs_steps__policy_receives_the_observation_history() -> None:
    """It includes observations between queries. At the start of an episode it is padded with the first
    observation, also after a query for a final observation."""
    policy = Remembers()
    act = executor(policy)

    def at(*x: float) -> Obs:
        return {"position": torch.tensor([[value, 0.0] for value in x])}

    act.act(at(0.0, 10.0, 20.0))
    act.act(at(1.0, 11.0, 21.0))
    act.act(at(2.0, 12.0, 22.0))
    assert policy.windows == [
        ([0, 1, 2], [[0.0] * 3, [10.0] * 3, [20.0] * 3]),
        ([0, 1, 2], [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0], [20.0, 21.0, 22.0]]),
    ]
    act.act(at(3.0, 13.0, 23.0), torch.tensor([False, True, False]))  # the final observation of env 1
    act.reset(torch.tensor([False, True, False]))
    act.act(at(3.5, 50.0, 23.5))
    saved = act.state_dict()
    act.act(at(4.0, 51.0, 24.0))
    assert policy.windows[2:] == [([1], [[50.0] * 3]), ([0, 2], [[2.0, 3.5, 4.0], [22.0, 23.5, 24.0]])]
    other = Remembers()
    again = executor(other)
    again.load_state_dict(saved)
    again.act(at(4.0, 51.0, 24.0))
    assert other.windows == policy.windows[3:]


def test_executor_uncertainty__is_that_of_the_executed_step() -> None:
    act = executor(Remembers())
    obs = {"position": torch.zeros(3, 2)}
    act.act(obs)
    assert act.uncertainty.tolist() == [0.0, 1.0, 2.0]
    act.act(obs, torch.tensor([False, True, True]))
    assert act.uncertainty.tolist() == [0.0, 11.0, 12.0]


def test_executor_act_rows__equals_act_for_any_subset_of_envs(env: VecEnv, seen: list[Obs]) -> None:
    whole, parts = make_base_policy("jacobian-yaw", None, env), make_base_policy("jacobian-yaw", None, env)
    for obs in seen[:20]:
        expected = whole.act(obs)
        for env_ids in ([3, 1], [0, 2]):
            assert torch.equal(parts.act_rows(rows(obs, env_ids), torch.tensor(env_ids)), expected[env_ids])


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_executor_act__non_finite_action_is_an_error_with_its_observations(value: float) -> None:
    chunk = torch.zeros(3, 1, 2)
    chunk[1, 0, 1] = value
    with pytest.raises(
        NonFiniteError, match=r"the base action of base policy 'it' is not finite in env\(s\) \[1\]"
    ) as caught:
        executor(Odd(chunk)).act(point_obs())
    assert torch.equal(caught.value.dump["obs/position"], point_obs()["position"])


@pytest.mark.parametrize("steps", [0, 5])
def test_num_action_steps__must_be_from_1_to_chunk_size(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"num_action_steps must be from 1 to chunk_size 4, not {steps}"):
        executor(fakes.Recorder(3, chunk_size=4, num_action_steps=steps))


def test_executor__checks_the_inputs_at_construction() -> None:
    policy = fakes.Homing()
    policy.inputs = {"gripper": (1,)}  # type: ignore[misc]
    with pytest.raises(
        ConfigError,
        match=r"'it' needs the observation 'gripper' \(1,\); the env has joint_position, position, state",
    ):
        executor(policy)
    policy.inputs = {"position": (3,)}  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"'it' needs 'position' of shape \(3,\); the env gives \(2,\)"):
        executor(policy)


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"damping": -0.01},
        {"damping": math.nan},
        {"approach_height": 0.0},
        {"descend_distance": -0.01},
        {"press_height": 0.0},
        {"drag_gain": 0.0},
        {"drag_gain": 1.5},
        {"max_drag_step": 0.0},
        {"max_approach_step": -1.0},
        {"pitch_near": (0.32, 88.0)},
        {"pitch_far": (0.4, 100.0)},
    ],
    ids=str,
)
@pytest.mark.parametrize("cfg", [JacobianCfg, JacobianYawCfg])
def test_jacobian_cfg__invalid_value_is_an_error(cfg: type[JacobianCfg], change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        cfg(**change)


@pytest.mark.parametrize(
    "change",
    [{"stir_period": 0}, {"stir_radius": -0.01}, {"stir_yaw_error": 0.0}, {"yaw_gain": -1.0}],
    ids=str,
)
def test_jacobian_yaw_cfg__invalid_value_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        JacobianYawCfg(**change)


# --- jacobian -----------------------------------------------------------------------------------------------

HOME = torch.tensor([0.0, -0.45097, 0.42976, 1.41748, 0.0, -0.17])
PRESSED = torch.tensor([0.0, -0.3, 0.85, 0.85, 0.0, -0.17])


def sheet_obs(joint_target: Tensor, sheet: tuple[float, float], goal: tuple[float, float, float]) -> Obs:
    return {
        "joint_target": joint_target[None],
        "sheet_pose": torch.tensor([[*sheet, 0.0001, 1.0, 0.0, 0.0, 0.0]]),
        "goal": torch.tensor([goal]),
    }


def motion(env: VecEnv, obs: Obs, action: Tensor) -> tuple[Tensor, Tensor]:
    """The commanded motion of the fingertip [3] and its rotation about the vertical [rad], to first order."""
    assert env.kinematics is not None
    joints = obs["joint_target"][:, :5].double()
    linear, angular = env.kinematics.jacobian(*env.kinematics.forward(joints))
    step = (action * env.action_unit)[:, :5].double()
    return (linear @ step[..., None])[0, :, 0], (angular @ step[..., None])[0, 2, 0]


def test_jacobian__does_not_move_roll_and_jaw(env: VecEnv, seen: list[Obs]) -> None:
    policy = make_base_policy("jacobian", None, env)
    actions = torch.stack([policy.act(obs) for obs in seen])
    assert isinstance(policy.policy, JacobianPolicy)
    assert (policy.policy._phase == DRAG).all()
    assert not actions[..., 4:].any()
    assert actions[..., :4].abs().amax() == 1.0


def test_jacobian__approaches_the_centre_of_the_sheet(lone_env: VecEnv) -> None:
    assert lone_env.kinematics is not None
    policy = JacobianPolicy(JacobianCfg(), lone_env)
    obs = sheet_obs(HOME, (0.23, -0.04), (0.0, 0.0, 0.0))
    to, _ = motion(lone_env, obs, policy.predict_action_chunk(obs, torch.tensor([0]))[:, 0])
    # From (0.2, 0, 0.08): 3 cm and -4 cm, limited to 15 mm; down to 3 cm above the sheet, limited to 15 mm.
    expected = torch.tensor([0.009, -0.012, -0.015])
    assert policy._phase.tolist() == [APPROACH]
    assert torch.nn.functional.cosine_similarity(to.float(), expected, dim=0) > 0.98
    assert to.norm() <= expected.norm() * 1.01


def test_jacobian__descends_over_the_sheet_and_then_drags(lone_env: VecEnv) -> None:
    assert lone_env.kinematics is not None
    policy, env_id = JacobianPolicy(JacobianCfg(), lone_env), torch.tensor([0])
    policy.predict_action_chunk(sheet_obs(HOME, (0.213, 0.0), (0.0, 0.0, 0.0)), env_id)
    assert policy._phase.tolist() == [APPROACH]  # 13 mm away
    down = sheet_obs(HOME, (0.211, 0.0), (0.0, 0.0, 0.0))
    to, _ = motion(lone_env, down, policy.predict_action_chunk(down, env_id)[:, 0])
    assert policy._phase.tolist() == [DESCEND]
    assert to[2] < 0
    policy.predict_action_chunk(sheet_obs(HOME, (0.3, 0.0), (0.0, 0.0, 0.0)), env_id)
    assert policy._phase.tolist() == [DESCEND]  # it never returns to an earlier phase
    # The fingertip is at a height of 8 mm. With 0.12 rad more of the shoulder it is 7 mm below the table,
    # where 3 mm are enough.
    policy.predict_action_chunk(sheet_obs(PRESSED, (0.2, 0.0), (0.0, 0.0, 0.0)), env_id)
    assert policy._phase.tolist() == [DESCEND]
    pressed = PRESSED + torch.tensor([0.0, 0.12, 0.0, 0.0, 0.0, 0.0])
    policy.predict_action_chunk(sheet_obs(pressed, (0.2, 0.0), (0.0, 0.0, 0.0)), env_id)
    assert policy._phase.tolist() == [DRAG]


@pytest.mark.parametrize(
    ("goal", "step"),
    [((0.06, -0.08), (0.0024, -0.0032)), ((0.004, 0.003), (0.002, 0.0015)), ((0.0, 0.0), (0.0, 0.0))],
)
def test_jacobian__drags_by_half_the_distance_and_at_most_4_mm(
    lone_env: VecEnv, goal: tuple[float, float], step: tuple[float, float]
) -> None:
    assert lone_env.kinematics is not None
    policy = JacobianPolicy(JacobianCfg(damping=1e-4), lone_env)
    policy.load_state_dict({"phase": torch.tensor([DRAG])})
    obs = sheet_obs(PRESSED, (0.1, 0.1), (*goal, 0.3))  # the position of the sheet does not matter
    _, tool = lone_env.kinematics.forward(obs["joint_target"][:, :5].double())
    action = policy.predict_action_chunk(obs, torch.tensor([0]))[:, 0]
    to, _ = motion(lone_env, obs, action)
    # The motion is scaled down where a joint would be too fast.
    scale = min(1.0, float(to[2] / (-0.006 - tool[0, 2, 3]).clamp(-0.015, 0.015)))
    np.testing.assert_allclose(to[:2], np.multiply(step, scale), atol=1e-5)


def test_jacobian__limit_of_one_joint_scales_down_all_joints(lone_env: VecEnv) -> None:
    assert lone_env.kinematics is not None
    obs = sheet_obs(HOME, (0.35, 0.15), (0.0, 0.0, 0.0))
    env_id = torch.tensor([0])
    usual = JacobianPolicy(JacobianCfg(), lone_env).predict_action_chunk(obs, env_id)[0, 0]
    slow = JacobianPolicy(
        JacobianCfg(), make_vec_env("so101-paper", 1, num_threads=1, action_scale=0.002)
    ).predict_action_chunk(obs, env_id)[0, 0]
    assert usual.abs().max() == slow.abs().max() == 1.0
    np.testing.assert_allclose(usual, slow, atol=1e-6)  # the same direction


# --- jacobian-yaw -------------------------------------------------------------------------------------------


def jacobian_yaw(env: VecEnv, phase: int = DRAG, **settings: Any) -> JacobianYawPolicy:
    assert env.kinematics is not None
    policy = JacobianYawPolicy(JacobianYawCfg(**settings), env)
    policy.load_state_dict(
        {"phase": torch.full((env.num_envs,), phase), "steps": torch.zeros(env.num_envs, dtype=torch.int64)}
    )
    return policy


@pytest.mark.parametrize("yaw", [0.15, -0.15, 0.0])
@pytest.mark.parametrize("goal", [(0.0, 0.0), (0.01, 0.06)])
def test_jacobian_yaw__turns_the_finger_towards_the_goal_yaw(
    lone_env: VecEnv, yaw: float, goal: tuple[float, float]
) -> None:
    """It turns by a tenth of the yaw error, also while the pan joint turns the finger the other way."""
    obs = sheet_obs(PRESSED, (0.2, 0.0), (*goal, yaw))
    action = jacobian_yaw(lone_env).predict_action_chunk(obs, torch.tensor([0]))[:, 0]
    _, turn = motion(lone_env, obs, action)
    assert action.abs().max() <= 1.0
    assert turn.item() == pytest.approx(0.1 * yaw, abs=1e-7)


def test_jacobian_yaw__equals_jacobian_until_it_drags(env: VecEnv, seen: list[Obs]) -> None:
    one, other = make_base_policy("jacobian-yaw", None, env), make_base_policy("jacobian", None, env)
    compared = 0
    for obs in seen:
        mine, theirs = one.act(obs), other.act(obs)
        before = other.policy._phase != DRAG  # type: ignore[attr-defined]
        compared += int(before.sum())
        assert torch.equal(mine[before], theirs[before])
        assert torch.equal(mine[:, 5], theirs[:, 5])
    assert compared > 40


def test_jacobian_yaw__circles_the_goal_while_the_yaw_error_is_large(lone_env: VecEnv) -> None:
    policy = jacobian_yaw(lone_env)
    steps = torch.arange(15)
    circle = policy._stirred(torch.tensor([0.02, 0.03, 0.5]).expand(15, 3), steps)
    np.testing.assert_allclose(
        (circle[:, :2] - torch.tensor([0.02, 0.03])).norm(dim=1), [0.01] * 15, rtol=1e-5
    )
    np.testing.assert_allclose(circle[:, :2].mean(0), [0.02, 0.03], atol=1e-7)  # a full turn
    np.testing.assert_allclose(circle[:, 2], [0.5] * 15)
    smaller = policy._stirred(torch.tensor([[0.02, 0.03, -0.02]]), torch.tensor([0]))
    np.testing.assert_allclose(smaller, [[0.022, 0.03, -0.02]], atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "base_policy_id", "low", "high"),
    [
        ("so101-paper", "jacobian-yaw", 0.9, 1.0),
        ("so101-paper-precise", "jacobian-yaw", 0.8, 1.0),
        ("so101-paper", "jacobian", 0.15, 0.65),
    ],
)
def test_jacobian__success_rates_are_in_the_expected_ranges(
    task: str, base_policy_id: str, low: float, high: float
) -> None:
    env = make_vec_env(task, 30)
    env.episode_seeds.use_list(range(8000, 8030))
    policy = make_base_policy(base_policy_id, None, env)
    obs, _ = env.reset()
    solved = torch.zeros(30, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        obs, _, terminated, *_ = env.step(policy.act(obs))
        solved |= terminated
    assert low <= solved.float().mean() <= high


def test_executor_base_chunk__is_the_rest_of_the_executed_chunk_of_each_env() -> None:
    """Three of four predicted actions are executed: the fourth is never part of it."""
    played = executor(fakes.Recorder(3, chunk_size=4, num_action_steps=3))
    played.act(point_obs())
    np.testing.assert_allclose(played.base_chunk, [[0.1, 0.0, 0.1, 0.01, 0.1, 0.02]] * 3)
    np.testing.assert_allclose(played.chunk_position, [[0.0]] * 3)
    played.act(point_obs())
    played.reset(torch.tensor([False, True, False]))
    played.act(point_obs())  # the third action, but in env 1 the first of a new chunk
    last, first = [0.1, 0.02, 0.1, 0.02, 0.1, 0.02], [0.1, 0.0, 0.1, 0.01, 0.1, 0.02]
    np.testing.assert_allclose(played.base_chunk, [last, first, last])
    np.testing.assert_allclose(played.chunk_position, [[2 / 3], [0.0], [2 / 3]])
    played.act(point_obs(), torch.tensor([False, False, True]))  # a second chunk in env 2 only
    np.testing.assert_allclose(played.base_chunk, [last, first, [0.2, 0.0, 0.2, 0.01, 0.2, 0.02]])
    np.testing.assert_allclose(played.chunk_position, [[2 / 3], [0.0], [0.0]])
    assert set(played.chunk_obs) == {"base_chunk", "chunk_position"}


def test_executor_base_chunk__before_the_first_query_is_finite() -> None:
    played = executor(fakes.Recorder(3, chunk_size=4, num_action_steps=3))
    assert not played.base_chunk.any()
    assert (played.chunk_position < 1.0).all()
