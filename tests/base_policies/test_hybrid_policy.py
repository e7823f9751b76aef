"""The base policy `hybrid`: blends, switches and ensembles worked out by hand, and settings of members."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import tiny_runs
import torch
from paths import ROOT
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.hybrid import HybridCfg
from residual_rl.base_policies.hybrid_policy import HybridPolicy
from residual_rl.base_policies.jacobian import JacobianCfg, JacobianYawCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError, UnknownNameError
from residual_rl.registry import BASE_POLICIES, BasePolicySpec
from residual_rl.types import BasePolicy, Obs, State


@dataclass(frozen=True)
class PushCfg:
    """Settings of the base policy of these tests."""

    push: float = 0.0
    seed: int = 5
    steps: int = 1
    names: tuple[str, ...] = ()
    trust_checkpoint: bool = False
    remote: bool = False
    broken: bool = False


class Push(BasePolicy):
    """Action k of the n-th chunk since the env's reset is `(push, 0.1·n + 0.01·k)`."""

    inputs = {"position": (2,)}  # noqa: RUF012

    def __init__(self, cfg: PushCfg, env: VecEnv):
        if cfg.broken:
            raise ConfigError("it is broken")
        self.cfg, self.remote = cfg, cfg.remote
        self.chunk_size = self.num_action_steps = cfg.steps
        self._num_queries = torch.zeros(env.num_envs)
        self.queries: list[list[int]] = []

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        self.queries.append(env_ids.tolist())
        self._num_queries = self._num_queries.index_add(0, env_ids, torch.ones(len(env_ids)))
        second = 0.1 * self._num_queries[env_ids, None] + 0.01 * torch.arange(self.chunk_size)
        return torch.stack([torch.full_like(second, self.cfg.push), second], -1)

    def reset(self, mask: Tensor) -> None:
        self._num_queries = self._num_queries.masked_fill(mask, 0.0)

    def state_dict(self) -> State:
        return {"num_queries": self._num_queries}

    def load_state_dict(self, state: State) -> None:
        self._num_queries = state["num_queries"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    BASE_POLICIES.all()
    specs = {
        "homing": fakes.HOMING,
        "push": BasePolicySpec("push", "pushes", make=f"{__name__}:Push", config=f"{__name__}:PushCfg"),
    }
    monkeypatch.setattr(BASE_POLICIES, "_specs", {**BASE_POLICIES._specs, **specs})


def hybrid(
    *settings: str, policies: tuple[str, ...] = ("push", "push"), num_envs: int = 3, **cfg: Any
) -> BasePolicyExecutor:
    return make_base_policy(
        "hybrid", HybridCfg(policies, settings, **cfg), fakes.PointEnv(fakes.PointCfg(), num_envs)
    )


def members(executor: BasePolicyExecutor) -> list[Any]:
    assert isinstance(executor.policy, HybridPolicy)
    return [member.policy for member in executor.policy._members]


def at(*x: float) -> Obs:
    """Positions `(x, 0)`."""
    position = torch.tensor([[value, 0.0] for value in x])
    return {"position": position, "state": torch.zeros(len(x), 5), "joint_position": torch.zeros(len(x), 2)}


# --- modes --------------------------------------------------------------------------------------------------


def test_blend__is_the_weighted_sum() -> None:
    blend = hybrid("0.push=0.8", "1.push=-0.4", weights=(0.75, 0.25))
    np.testing.assert_allclose(blend.act(at(0, 0, 0)), [[0.5, 0.1]] * 3, atol=1e-7)  # 0.75·0.8 - 0.25·0.4
    np.testing.assert_allclose(
        hybrid("0.push=0.8", "1.push=-0.4").act(at(0, 0, 0)), [[0.2, 0.1]] * 3, atol=1e-7
    )
    assert not blend.has_uncertainty


def test_blend__with_weight_1_equals_that_policy_bit_for_bit() -> None:
    alone = make_base_policy("homing", None, fakes.PointEnv(fakes.PointCfg(), 3))
    blend = hybrid(policies=("push", "homing"), weights=(0.0, 1.0))
    for x in (0.031, -0.0777, 0.3):
        assert torch.equal(blend.act(at(x, 2 * x, 3 * x)), alone.act(at(x, 2 * x, 3 * x)))


def test_ensemble__is_the_mean_with_the_disagreement_as_uncertainty() -> None:
    ensemble = hybrid("0.push=0.6", "1.push=0.0", "2.push=0.3", policies=("push",) * 3, mode="ensemble")
    np.testing.assert_allclose(ensemble.act(at(0, 0, 0)), [[0.3, 0.1]] * 3, atol=1e-7)
    # Deviations of 0.3, 0.3 and 0 in one action, and none in the other: (√(0.18 / 3) + 0) / 2.
    np.testing.assert_allclose(ensemble.uncertainty, [math.sqrt(0.06) / 2] * 3, atol=1e-7)
    assert ensemble.has_uncertainty


def test_switch_below__switches_each_env_until_its_reset() -> None:
    switch = hybrid("0.push=0.5", "1.push=-0.5", mode="switch", switch_on="position", switch_below=0.3)

    def acting(*x: float) -> list[int]:
        return [0 if push > 0 else 1 for push in switch.act(at(*x))[:, 0]]

    assert acting(1.0, -0.2, 0.5) == [0, 1, 0]  # the norm is compared, without the sign
    assert acting(0.3, 5.0, 0.29) == [0, 1, 1]  # strictly below; it never switches back
    state = switch.state_dict()
    switch.reset(torch.tensor([False, True, False]))
    assert acting(1.0, 1.0, 1.0) == [0, 0, 1]
    again = hybrid("0.push=0.5", "1.push=-0.5", mode="switch", switch_on="position", switch_below=0.3)
    again.load_state_dict(state)
    assert [push > 0 for push in again.act(at(1.0, 1.0, 1.0))[:, 0]] == [True, False, False]


def by_side(obs: Obs) -> Tensor:
    """Policy 1 beyond 1 m, policy 2 beyond 2 m."""
    return (obs["position"][:, 0] > 1.0).long() + (obs["position"][:, 0] > 2.0).long()


def test_switch__calls_a_function_of_the_user() -> None:
    settings = ("0.push=0.1", "1.push=0.2", "2.push=0.3")
    switch = hybrid(*settings, policies=("push",) * 3, mode="switch", switch=f"{__name__}:by_side")
    np.testing.assert_allclose(switch.act(at(1.5, 2.5, 0.5))[:, 0], [0.2, 0.3, 0.1])
    np.testing.assert_allclose(switch.act(at(0.5, 0.5, 3.0))[:, 0], [0.1, 0.1, 0.3])
    np.testing.assert_allclose(switch.act(at(0.5, 1.5, 0.5), torch.tensor([False, True, False]))[1, 0], 0.2)
    assert set(switch.policy.inputs) == {
        "position",
        "state",
        "joint_position",
    }  # it may read all observations


def gives(value: Any) -> Any:
    return lambda obs: value


floats, short, far, listed = (
    gives(torch.zeros(3)),
    gives(torch.tensor([0, 1])),
    gives(torch.tensor([0, 2, 1])),
    gives([0, 1, 0]),
)
not_a_function = 3


def raises(obs: Obs) -> Tensor:
    return obs["height"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("floats", r"floats gave torch.float32 \(3,\); expected an int64 tensor of shape \(3,\) from 0 to 1"),
        ("short", r"short gave torch.int64 \(2,\); expected an int64 tensor of shape \(3,\) from 0 to 1"),
        ("far", r"far gave \[0, 1, 2\]; expected"),
        ("listed", r"listed gave list; expected"),
        ("raises", r"raises failed: KeyError: 'height'"),
    ],
)
def test_switch__invalid_result_is_an_error(function: str, message: str) -> None:
    with pytest.raises(BasePolicyError, match=message):
        hybrid(mode="switch", switch=f"{__name__}:{function}").act(at(0, 0, 0))


@pytest.mark.parametrize(
    "reference", ["no_such_module:f", f"{__name__}:no_such_function", "by_side", f"{__name__}:not_a_function"]
)
def test_switch__must_be_a_function_that_exists(reference: str) -> None:
    with pytest.raises(ConfigError, match=rf"base policy 'hybrid': switch must .*{reference}"):
        hybrid(mode="switch", switch=reference)


def test_by_yaw__example_switches_by_distance_and_yaw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import hybrid_switch

    goal = torch.tensor([[0.04, 0.02, 0.0], [0.06, 0.0, 0.05], [0.2, 0.0, -0.2]])
    assert hybrid_switch.by_yaw({"goal": goal}).tolist() == [1, 0, 1]


# --- members ------------------------------------------------------------------------------------------------


def test_hybrid_policy__queries_all_policies_at_every_observation() -> None:
    """Chunks and phases of policies that do not act follow the episode too."""
    switch = hybrid("0.steps=2", "1.push=-0.5", mode="switch", switch_on="position", switch_below=0.3)
    chunked, other = members(switch)
    second = [switch.act(at(1, 1, x))[:, 1].tolist() for x in (1.0, 1.0, 0.1, 0.1)]
    # The first policy has chunks: 0.1, 0.11, 0.2, 0.21. The second counts each step, even if it does not act.
    np.testing.assert_allclose(second, [[0.1] * 3, [0.11] * 3, [0.2, 0.2, 0.3], [0.21, 0.21, 0.4]], atol=1e-7)
    assert chunked.queries == [[0, 1, 2]] * 2
    assert other.queries == [[0, 1, 2]] * 4
    switch.reset(torch.tensor([True, False, False]))
    switch.act(at(1, 1, 1), torch.tensor([True, False, True]))
    assert (chunked.queries[2:], other.queries[4:]) == ([[0, 2]], [[0, 2]])
    assert chunked._num_queries.tolist() == [1.0, 2.0, 3.0]


def test_hybrid_policy_state_dict__resumes_bit_for_bit() -> None:
    def make() -> BasePolicyExecutor:
        return hybrid("0.steps=3", "1.push=0.3", mode="ensemble")

    one, other = make(), make()
    for _ in range(4):
        one.act(at(0, 0, 0))
    other.load_state_dict(one.state_dict())
    for _ in range(4):
        assert torch.equal(one.act(at(0, 0, 0)), other.act(at(0, 0, 0)))
        assert torch.equal(one.uncertainty, other.uncertainty)
        assert other.has_uncertainty


def test_members__policies_of_one_id_get_consecutive_seeds() -> None:
    cfg = HybridCfg(("push", "homing", "push", "push"), ("3.seed=40",))
    assert [member.seed if member else None for member in cfg.members()] == [5, None, 6, 40]


def test_remote__is_true_if_any_member_is_remote() -> None:
    assert not hybrid().policy.remote
    assert hybrid("1.remote=True").policy.remote
    nested = hybrid("1.policies=push push", "1.settings='0.remote=True'", policies=("push", "hybrid"))
    assert nested.policy.remote


def test_hybrid_policy__can_contain_hybrid_policies() -> None:
    """An ensemble of 0.9 and a blend of 0.4 and 0.2, which is 0.3."""
    inner = ("0.policies=push push", "0.settings=0.push=0.4 1.push=0.2")
    nested = hybrid(*inner, "1.push=0.9", policies=("hybrid", "push"), mode="ensemble")
    np.testing.assert_allclose(nested.act(at(0, 0, 0))[:, 0], [0.6] * 3, atol=1e-7)
    np.testing.assert_allclose(nested.uncertainty, [0.15] * 3, atol=1e-7)


def test_trust_checkpoint__applies_to_all_members_and_cannot_be_set_for_one() -> None:
    assert [m.trust_checkpoint for m in HybridCfg(("push", "push"), trust_checkpoint=True).members()] == [
        True,
        True,
    ]
    assert [m.trust_checkpoint for m in HybridCfg(("push", "push")).members()] == [False, False]
    with pytest.raises(
        ConfigError, match=r"1\.trust_checkpoint cannot be set for one policy: use --trust-checkpoint for all"
    ):
        HybridCfg(("push", "push"), ("1.trust-checkpoint=True",))


def test_hybrid_policy__error_names_the_member_that_does_not_fit_the_env() -> None:
    with pytest.raises(ConfigError, match="base policy 'hybrid': policy 1, 'push': it is broken"):
        hybrid("1.broken=True")
    with pytest.raises(
        UnknownNameError,
        match="unknown observation to switch on 'goal'; known: joint_position, position, state",
    ):
        hybrid(mode="switch", switch_on="goal", switch_below=0.1)


# --- settings -----------------------------------------------------------------------------------------------


def test_settings__have_the_syntax_of_the_command_line() -> None:
    cfg = HybridCfg(
        ("jacobian", "jacobian-yaw"),
        ("0.pitch-near=0.1 80", "0.press_height=-0.01", "1.stir-period=20", "1.drag-gain=0.3"),
    )
    assert cfg.members() == [
        JacobianCfg(pitch_near=(0.1, 80.0), press_height=-0.01),
        JacobianYawCfg(stir_period=20, drag_gain=0.3),
    ]
    names = HybridCfg(("push", "push"), ("0.names=one 'two three'",)).members()[0].names
    assert names == ("one", "two three")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("0.drag-gain",), "NUMBER.NAME=VALUE with a NUMBER from 0 to 1, not '0.drag-gain'"),
        (("drag-gain=0.3",), "NUMBER.NAME=VALUE"),
        (("2.drag-gain=0.3",), "NUMBER from 0 to 1, not '2.drag-gain=0.3'"),
        (("0.drag-gain=0.3", "0.drag_gain=0.2"), "settings contain 0.drag_gain twice"),
        (("0.drag-gain=fast",), "settings: 0.drag_gain must be a float, not 'fast'"),
        (("0.drag-gain=",), "settings: 0.drag_gain must be a float, not ''"),
        (("0.drag-gain='",), "settings: 0.drag_gain must be a float"),
        (("0.pitch-near=0.1",), r"settings: 0.pitch_near must be a tuple\[float, float\], not '0.1'"),
        (("0.drag-gain=2",), "drag_gain must be above 0 and at most 1"),
    ],
)
def test_settings__invalid_text_is_an_error(
    settings: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        HybridCfg(("jacobian", "jacobian-yaw"), settings)
    assert capfd.readouterr() == ("", "")


def test_settings__unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownNameError,
        match="unknown setting of base policy 'jacobian' 'drag_gian'; did you mean 'drag_gain'",
    ):
        HybridCfg(("jacobian", "zero"), ("0.drag_gian=0.3",))
    with pytest.raises(UnknownNameError, match="unknown setting of base policy 'zero' 'speed'; known: none"):
        HybridCfg(("jacobian", "zero"), ("1.speed=0.3",))
    with pytest.raises(UnknownNameError, match="unknown base policy 'jacobain'"):
        HybridCfg(("jacobain", "zero"))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"policies": ("push",)}, "policies must be two or more ids, not only 'push'"),
        ({"mode": "vote"}, "mode must be one of blend, switch, ensemble, not 'vote'"),
        ({"weights": (0.5, 0.25, 0.25)}, "weights must be one for each of the 2 policies, not 3"),
        ({"weights": (0.5, 0.6)}, r"weights must add up to 1, not \(0.5, 0.6\)"),
        ({"weights": (1.5, -0.5)}, "weights must be at least 0 each"),
        ({"weights": (0.5, math.nan)}, "weights must be finite each"),
        ({"weights": (0.5, 0.5), "mode": "ensemble"}, "weights are only for mode blend, not ensemble"),
        ({"switch": "a:b"}, "switch, switch_on and switch_below are only for mode switch, not blend"),
        ({"mode": "ensemble", "switch_below": 0.1}, "are only for mode switch, not ensemble"),
        ({"mode": "switch"}, "needs either a function, switch, or a threshold, switch_on with switch_below"),
        ({"mode": "switch", "switch_on": "goal"}, "switch_on with switch_below"),
        ({"mode": "switch", "switch_below": 0.1}, "switch_on with switch_below"),
        ({"mode": "switch", "switch": "a:b", "switch_on": "goal", "switch_below": 0.1}, "either a function"),
        ({"mode": "switch", "switch_on": "goal", "switch_below": 0.0}, "switch_below must be above 0"),
        (
            {"mode": "switch", "policies": ("push",) * 3, "switch_on": "goal", "switch_below": 0.1},
            "between two policies, not 3",
        ),
    ],
    ids=str,
)
def test_hybrid_cfg__invalid_values_are_errors(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HybridCfg(**{"policies": ("push", "push"), **cfg})


def test_policies__missing_value_is_an_error_with_the_flag(fails: tiny_runs.Fails) -> None:
    message = fails("eval", "so101-paper", "--base-policy", "hybrid")
    assert "base policy 'hybrid': at least two base policies are needed: --base.policies ID ID …" in message


# --- in a run -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hybrid_policy__run_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "base_policy": "hybrid",
        "policies": ("jacobian", "jacobian-yaw"),
        "settings": ("0.drag-gain=0.3",),
        "mode": "switch",
        "switch_on": "goal",
        "switch_below": 0.1,
        "total_timesteps": 128,
        "eval_freq": 0,
    }
    tiny_runs.train(tmp_path / "whole", **settings)
    tiny_runs.train(tmp_path / "halves", stop_at=64, **settings)
    tiny_runs.train(tmp_path / "halves", resume=True, **settings)
    assert (
        tiny_runs.different(
            tiny_runs.last_state(tmp_path / "whole"), tiny_runs.last_state(tmp_path / "halves")
        )
        == []
    )


def test_relocated__changes_the_checkpoints_of_members() -> None:
    cfg = HybridCfg(("model", "model"), ("0.checkpoint=a/b", "1.checkpoint='c d'", "1.num-action-steps=2"))
    moved = cfg.relocated(lambda name: f"/there/{name}")
    assert [member.checkpoint for member in moved.members()] == ["/there/a/b", "/there/c d"]
    assert moved.members()[1].num_action_steps == 2
