"""Running statistics, against NumPy and Stable-Baselines3."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from residual_rl.errors import NonFiniteError
from residual_rl.learners.common.normalizers import RewardScaler, RunningMeanStd
from residual_rl.utils.module_state import load_module_state, module_state


def test_running_mean_std_update__merging_two_batches_matches_values_worked_out_by_hand() -> None:
    statistics = RunningMeanStd((1,))
    statistics.count.zero_()  # without the weight of the initial statistics the numbers are round
    statistics.update(torch.tensor([[0.0], [2.0]]))
    assert (statistics.mean.item(), statistics.var.item(), statistics.count.item()) == (1.0, 1.0, 2.0)
    statistics.update(torch.tensor([[4.0], [6.0]]))
    assert (statistics.mean.item(), statistics.var.item(), statistics.count.item()) == (3.0, 5.0, 4.0)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=5),
    st.floats(-1e3, 1e3),
    st.floats(1e-2, 1e2),
    st.integers(0, 2**32 - 1),
)
def test_running_mean_std_update__does_not_depend_on_how_samples_are_batched(
    sizes: list[int], loc: float, scale: float, seed: int
) -> None:
    samples = np.random.default_rng(seed).normal(loc, scale, size=(sum(sizes), 3))
    statistics = RunningMeanStd((3,))
    for batch in np.split(samples, np.cumsum(sizes)[:-1]):
        statistics.update(torch.from_numpy(batch))
    # the initial statistics count as 1e-4 samples of mean 0 and variance 1
    count = 1e-4 + len(samples)
    mean = samples.sum(0) / count
    var = (1e-4 + (samples**2).sum(0)) / count - mean**2
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(statistics.var, var, rtol=1e-6, atol=1e-7)
    assert statistics.count.item() == pytest.approx(count, rel=1e-12)


def test_running_mean_std__equals_stable_baselines3() -> None:
    theirs = pytest.importorskip("stable_baselines3.common.running_mean_std").RunningMeanStd(shape=(5,))
    ours = RunningMeanStd((5,))
    rng = np.random.default_rng(0)
    for _ in range(10):
        batch = rng.normal(3.0, 2.0, size=(16, 5)).astype(np.float32)
        theirs.update(batch.astype(np.float64))
        ours.update(torch.from_numpy(batch))
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-12)
    np.testing.assert_allclose(ours.var, theirs.var, rtol=1e-12)


def test_running_mean_std__normalizes_to_values_worked_out_by_hand() -> None:
    statistics = RunningMeanStd((2,))
    x = torch.tensor([[3.0, -4.0]])
    assert statistics(x).tolist() == [[3.0, -4.0]]  # initial statistics change nothing
    statistics.count.zero_()
    statistics.update(torch.tensor([[0.0, 0.0], [4.0, 1e-3]]))  # means 2 and 5e-4, deviations 2 and 5e-4
    torch.testing.assert_close(statistics(x), torch.tensor([[0.5, -10.0]]), rtol=0.0, atol=1e-6)
    assert x.tolist() == [[3.0, -4.0]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_running_mean_std_update__names_a_nonfinite_sample_and_changes_nothing(bad: float) -> None:
    statistics = RunningMeanStd((3,))
    with pytest.raises(NonFiniteError, match=r"observation is not finite.*\[1\]"):
        statistics.update(torch.tensor([[0.0, bad, 0.0], [1.0, 1.0, 1.0]]))
    assert statistics.mean.tolist() == [0.0, 0.0, 0.0]


def test_running_mean_std__state_round_trip_is_exact() -> None:
    first, second = RunningMeanStd((4,)), RunningMeanStd((4,))
    x = torch.randn(100, 4) * 3.0 + 1.0
    first.update(x)
    state = module_state(first)
    assert {name: tensor.dtype for name, tensor in state.items()} == dict.fromkeys(
        ("mean", "var", "count"), torch.float64
    )
    load_module_state(second, state, "statistics")
    assert torch.equal(first(x), second(x))
    first.update(x + 1.0)
    assert not torch.equal(state["mean"], first.mean)  # the state is a copy


class ScriptedRewards(gymnasium.Env[np.ndarray, np.ndarray]):
    """Gives the rewards and ends of a list."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, reward: np.ndarray, ended: np.ndarray):
        self.script = iter(zip(reward, ended, strict=True))

    def reset(self, **_: object) -> tuple[np.ndarray, dict[str, object]]:  # type: ignore[override]
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        reward, ended = next(self.script)
        return np.zeros(1, dtype=np.float32), float(reward), bool(ended), False, {}


def test_reward_scaler__equals_vecnormalize_of_stable_baselines3() -> None:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    steps, envs, gamma = 40, 3, 0.9
    rng = np.random.default_rng(0)
    reward = (5.0 * rng.normal(size=(steps, envs))).astype(np.float32)
    ended = rng.random((steps, envs)) < 0.2
    scripts = [lambda b=b: ScriptedRewards(reward[:, b], ended[:, b]) for b in range(envs)]
    theirs = vec_env.VecNormalize(vec_env.DummyVecEnv(scripts), norm_obs=False, gamma=gamma)
    theirs.reset()
    for _ in range(steps):
        theirs.step(np.zeros((envs, 1)))

    ours = RewardScaler(envs, gamma)
    # two rollouts: the running returns are carried over
    ours(torch.from_numpy(reward[:25]), torch.from_numpy(ended[:25]))
    scaled = ours(torch.from_numpy(reward[25:]), torch.from_numpy(ended[25:]))
    np.testing.assert_allclose(ours.statistics.var, theirs.ret_rms.var, rtol=1e-9)
    np.testing.assert_allclose(ours.running_return, theirs.returns, rtol=1e-6)
    np.testing.assert_allclose(scaled, theirs.normalize_reward(reward[25:]), rtol=1e-5)


def test_reward_scaler__clips_rewards_and_keeps_their_sign() -> None:
    scaler = RewardScaler(1, gamma=0.0)
    reward = torch.zeros(10_000, 1)
    reward[0], reward[1] = 1.0, -1.0  # deviation of about 0.014
    scaled = scaler(reward, torch.zeros(10_000, 1, dtype=torch.bool))
    assert scaled[:3].flatten().tolist() == [10.0, -10.0, 0.0]
