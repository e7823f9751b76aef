"""The replay buffer and its n-step returns, against arrays worked out by hand and a slow loop; its state and
its errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.learners.common.returns import n_step_returns
from residual_rl.learners.off_policy import replay_buffer
from residual_rl.learners.off_policy.batch import Sample
from residual_rl.learners.off_policy.replay_buffer import ReplayBuffer
from residual_rl.runs.checkpoint import from_bytes, to_bytes
from residual_rl.types import Segment, State

CPU = torch.device("cpu")
NO, YES = False, True


def make(capacity: int, num_envs: int) -> ReplayBuffer:
    return ReplayBuffer(capacity, num_envs, obs_dim=1, action_dim=1, device=CPU)


def row(
    reward: list[float], obs: list[float], terminated: list[bool], truncated: list[bool]
) -> dict[str, torch.Tensor]:
    """A row whose columns follow from `obs`; those of the next observation are 100 more."""
    now = torch.tensor(obs)[:, None]
    before = {
        "obs": now,
        "base_action": now + 0.1,
        "residual_action": now + 0.2,
        "action": now + 0.3,
        "scale": now + 0.4,
    }
    after = {"next_obs": now + 100.0, "next_base_action": now + 100.1, "next_scale": now + 100.4}
    ends = {"terminated": torch.tensor(terminated), "truncated": torch.tensor(truncated)}
    return {**before, **after, **ends, "reward": torch.tensor(reward)}


def filled(steps: int, capacity: int = 16) -> ReplayBuffer:
    """Two envs with rewards 1, 2, 4, … each. Env 0 terminates in step 2, env 1 is truncated in step 1."""
    buffer = make(capacity, 2)
    for t in range(steps):
        buffer.add(row([2.0**t] * 2, [float(t), 10.0 + t], [t == 2, NO], [NO, t == 1]))
    return buffer


def gathered(buffer: ReplayBuffer, env_id: int, n_step: int, bootstrap_at_done: str = "truncated") -> Sample:
    rows = torch.arange(buffer.filled_rows)
    return buffer.gather(rows * buffer.num_envs + env_id, n_step, 0.5, bootstrap_at_done)


# --- n-step returns -----------------------------------------------------------------------------------------


def test_n_step_returns__match_values_worked_out_by_hand() -> None:
    reward = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [4.0, 4.0, 4.0, 4.0]])
    terminated = torch.tensor([[NO, NO, YES, NO], [NO, NO, NO, NO], [YES, NO, NO, NO]])
    truncated = torch.tensor([[NO, NO, NO, NO], [NO, YES, NO, NO], [NO, NO, NO, NO]])
    available = torch.tensor([3, 3, 3, 2])
    # terminated after the whole window: 1 + 0.5*2 + 0.25*4, no bootstrap
    # truncated after 2 steps: 1 + 0.5*2, then 0.25 V
    # terminated after the first step: 1, no bootstrap
    # only 2 steps available: 1 + 0.5*2, then 0.25 V
    n_step_return, discount, last = n_step_returns(reward, terminated, truncated, available, 0.5)
    assert n_step_return.tolist() == [3.0, 2.0, 1.0, 2.0]
    assert discount.tolist() == [0.0, 0.25, 0.0, 0.25]
    assert last.tolist() == [2, 1, 0, 1]
    always = n_step_returns(reward, terminated, truncated, available, 0.5, "always")
    assert always.discount.tolist() == [0.125, 0.25, 0.5, 0.25]
    never = n_step_returns(reward, terminated, truncated, available, 0.5, "never")
    assert never.discount.tolist() == [0.0, 0.0, 0.0, 0.25]
    assert always.n_step_return.tolist() == never.n_step_return.tolist() == n_step_return.tolist()


def test_n_step_returns__of_one_step_are_the_reward_and_the_next_value() -> None:
    terminated, truncated = torch.tensor([[NO, YES, NO]]), torch.tensor([[NO, NO, YES]])
    n_step_return, discount, last = n_step_returns(
        torch.tensor([[3.0, 5.0, 7.0]]), terminated, truncated, torch.tensor([9, 9, 9]), 0.5
    )
    assert (n_step_return.tolist(), discount.tolist(), last.tolist()) == (
        [3.0, 5.0, 7.0],
        [0.5, 0.0, 0.5],
        [0, 0, 0],
    )


# --- the ring -----------------------------------------------------------------------------------------------


def test_replay_buffer_gather__windows_end_with_the_episode_and_the_data() -> None:
    buffer = filled(5)
    # rewards 1 2 4 | 8 16 in env 0, which terminates in step 2
    terminating = gathered(buffer, 0, 3)
    assert terminating.n_step_return.tolist() == [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4, 8 + 0.5 * 16, 16]
    assert terminating.discount.tolist() == [0.0, 0.0, 0.0, 0.25, 0.5]
    assert terminating.next_obs.flatten().tolist() == [102.0, 102.0, 102.0, 104.0, 104.0]
    # rewards 1 2 | 4 8 16 in env 1, which is truncated in step 1
    truncating = gathered(buffer, 1, 3)
    assert truncating.n_step_return.tolist() == [1 + 0.5 * 2, 2, 4 + 0.5 * 8 + 0.25 * 16, 8 + 0.5 * 16, 16]
    assert truncating.discount.tolist() == [0.25, 0.5, 0.125, 0.25, 0.5]
    assert truncating.next_obs.flatten().tolist() == [111.0, 111.0, 114.0, 114.0, 114.0]
    assert gathered(buffer, 1, 3, "never").discount.tolist() == [0.0, 0.0, 0.125, 0.25, 0.5]
    assert gathered(buffer, 0, 3, "always").discount.tolist() == [0.125, 0.25, 0.5, 0.25, 0.5]


def test_replay_buffer_gather__returns_all_columns_of_the_same_step() -> None:
    sample = gathered(filled(5), 1, 2)
    at = sample.obs
    assert at.flatten().tolist() == [10.0, 11.0, 12.0, 13.0, 14.0]
    for name, offset in (("base_action", 0.1), ("residual_action", 0.2), ("action", 0.3), ("scale", 0.4)):
        assert torch.equal(getattr(sample, name), at + offset)
    # windows of two steps, except in step 1, where the episode ends, and step 4, the newest
    after = sample.next_obs
    assert after.flatten().tolist() == [111.0, 111.0, 113.0, 114.0, 114.0]
    torch.testing.assert_close(sample.next_base_action, after + 0.1)
    torch.testing.assert_close(sample.next_scale, after + 0.4)


def test_replay_buffer_gather__windows_wrap_around_a_full_ring_up_to_the_newest_step() -> None:
    buffer = make(4 * 1, 1)
    for t in range(6):  # the rows are then those of steps 4 5 2 3
        buffer.add(row([2.0**t], [float(t)], [NO], [NO]))
    sample = gathered(buffer, 0, 3)
    assert sample.obs.flatten().tolist() == [4.0, 5.0, 2.0, 3.0]
    assert sample.n_step_return.tolist() == [
        16 + 0.5 * 32,
        32,
        4 + 0.5 * 8 + 0.25 * 16,
        8 + 0.5 * 16 + 0.25 * 32,
    ]
    assert sample.discount.tolist() == [0.25, 0.5, 0.125, 0.125]
    assert sample.next_obs.flatten().tolist() == [105.0, 105.0, 104.0, 105.0]
    assert buffer.newest("reward", 3).flatten().tolist() == [8.0, 16.0, 32.0]
    assert len(buffer) == 4


@settings(max_examples=50)
@given(
    st.integers(1, 30),
    st.integers(1, 3),
    st.integers(2, 9),
    st.integers(1, 5),
    st.sampled_from(["truncated", "always", "never"]),
    st.integers(0, 2**32 - 1),
)
def test_replay_buffer_gather__equals_a_slow_loop(
    steps: int, num_envs: int, rows: int, n_step: int, bootstrap_at_done: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    buffer, gamma = make(rows * num_envs, num_envs), 0.5
    rewards = torch.randn(steps, num_envs, generator=generator)
    terminated, truncated = torch.rand(2, steps, num_envs, generator=generator) < 0.2
    for t in range(steps):
        buffer.add(
            row(rewards[t].tolist(), [float(t)] * num_envs, terminated[t].tolist(), truncated[t].tolist())
        )
    oldest = max(steps - rows, 0)
    for env_id in range(num_envs):
        sample = gathered(buffer, env_id, n_step, bootstrap_at_done)
        assert sorted(sample.obs.flatten().tolist()) == list(range(oldest, steps))
        for i, start in enumerate(sample.obs.flatten().long().tolist()):
            total, k = 0.0, start
            while True:
                total += gamma ** (k - start) * rewards[k, env_id].item()
                ended = bool(terminated[k, env_id] | truncated[k, env_id])
                if ended or k + 1 == steps or k + 1 - start == n_step:
                    break
                k += 1
            stops = {"truncated": terminated[k, env_id], "always": False, "never": ended}[bootstrap_at_done]
            assert sample.n_step_return[i].item() == pytest.approx(total, abs=1e-5)
            assert sample.discount[i].item() == pytest.approx(
                0.0 if stops else gamma ** (k + 1 - start), abs=1e-6
            )
            assert sample.next_obs[i].item() == k + 100.0


def test_replay_buffer_sample__is_uniform_and_seeded() -> None:
    buffer = filled(5)
    state = torch.get_rng_state()
    draws = [
        buffer.sample(20_000, 3, 0.5, "truncated", torch.Generator().manual_seed(seed)).obs.flatten()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)
    values, counts = draws[0].unique(return_counts=True)
    assert values.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 10.0, 11.0, 12.0, 13.0, 14.0]
    assert (counts - 2000).abs().max() < 5 * 2000**0.5


# --- state --------------------------------------------------------------------------------------------------


def random_row(generator: torch.Generator, num_envs: int = 2) -> dict[str, torch.Tensor]:
    ends = (torch.rand(2, num_envs, generator=generator) < 0.2).tolist()
    return row(
        torch.randn(num_envs, generator=generator).tolist(),
        torch.randn(num_envs, generator=generator).tolist(),
        *ends,
    )


def through_a_file(state: State) -> State:
    return from_bytes(to_bytes(state, "checkpoint"), "checkpoint")


def drawn(buffer: ReplayBuffer) -> Sample:
    return buffer.sample(64, 3, 0.9, "truncated", torch.Generator().manual_seed(5))


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 8, 11, 12, 21])
def test_replay_buffer_state_dict__round_trips_through_a_file_bit_for_bit(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_buffer, "SEGMENT_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    buffer = make(2 * 8, 2)
    assert (buffer.num_rows, buffer.segment_rows) == (8, 4)
    for _ in range(steps):
        buffer.add(random_row(generator))
    state = buffer.state_dict()
    kept = through_a_file(state)
    again, in_memory = make(2 * 8, 2), make(2 * 8, 2)
    again.load_state_dict(kept)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(drawn(buffer), drawn(again), strict=True))
        new = random_row(generator)
        buffer.add(new)
        again.add(new)
    for _ in range(9):  # overwrites all rows of the state
        buffer.add(random_row(generator))
    # a state is not a view of the buffer
    assert to_bytes(state, "checkpoint") == to_bytes(kept, "checkpoint")
    in_memory.load_state_dict(state)
    buffer.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(drawn(in_memory), drawn(buffer), strict=True))


def test_replay_buffer_state_dict__copies_full_segments_only_before_they_are_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_buffer, "SEGMENT_ROWS", 4)
    buffer, generator, copied = make(2 * 12, 2), torch.Generator().manual_seed(0), []
    segment = buffer.segment
    monkeypatch.setattr(buffer, "segment", lambda number: (copied.append(number), segment(number))[1])
    for _ in range(10):
        buffer.add(random_row(generator))
    state = buffer.state_dict()
    assert [type(part) for part in state["segments"].values()] == [Segment, Segment, dict]
    assert [state["segments"][key].name for key in ("000000", "000001")] == [
        "segment_000000",
        "segment_000001",
    ]
    assert copied == [2]  # the segment that is not full yet
    assert buffer.state_dict()["segments"]["000001"] is state["segments"]["000001"]
    copied.clear()
    for _ in range(2):
        buffer.add(random_row(generator))
    assert copied == []
    for _ in range(4):  # overwrites segment 0
        buffer.add(random_row(generator))
    assert copied == [0]
    copied.clear()
    del state
    for _ in range(8):  # no state refers to the segments any more
        buffer.add(random_row(generator))
    assert copied == []


def test_replay_buffer_segments__are_written_once_and_restore_the_ring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_buffer, "SEGMENT_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    buffer = make(2 * 8, 2)
    on_disk: dict[str, Any] = {}
    for step in range(1, 15):
        buffer.add(random_row(generator))
        numbers = buffer.segments()
        assert list(numbers) == [i for i in range(4) if 4 * i < step and 4 * (i + 1) > step - 8]
        for i in numbers:
            if 4 * (i + 1) <= step:
                on_disk.setdefault(f"{i:06d}", buffer.segment(i))
    # 14 rows: segments 0 to 2 are full, 0 and half of 1 were overwritten, 3 is not full yet
    assert list(on_disk) == ["000000", "000001", "000002"]
    assert [len(segment["columns"]["obs"]) for segment in on_disk.values()] == [4, 4, 4]
    state = {
        **buffer.state_dict(),
        "segments": {k: on_disk[k] for k in ("000001", "000002")} | {"000003": buffer.segment(3)},
    }
    again = make(2 * 8, 2)
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(drawn(buffer), drawn(again), strict=True))


def test_replay_buffer_load_state_dict__refuses_the_state_of_another_buffer() -> None:
    state = through_a_file(filled(5).state_dict())
    with pytest.raises(CheckpointError, match="has 8 rows, but buffer_size and num_envs require 16"):
        make(32, 2).load_state_dict(state)
    with pytest.raises(
        CheckpointError, match=r"base_action has rows of shape \[2, 1\], but the settings require \[2, 3\]"
    ):
        ReplayBuffer(16, 2, 1, 3, CPU).load_state_dict(state)
    broken = copy.deepcopy(state)
    del broken["segments"]["000000"]["columns"]["reward"]
    with pytest.raises(CheckpointError, match=r"columns differ: \['reward'\]"):
        filled(1).load_state_dict(broken)


@pytest.mark.parametrize(
    ("capacity", "num_envs", "rows", "segment_rows"),
    [
        (1000, 1, 1000, 1000),
        (1024, 1, 1024, 1024),
        (1500, 1, 1500, 750),
        (2049, 1, 2049, 683),
        (30_000, 16, 1876, 938),
    ],
)
def test_replay_buffer__rounds_the_capacity_up_to_whole_segments(
    capacity: int, num_envs: int, rows: int, segment_rows: int
) -> None:
    buffer = make(capacity, num_envs)
    assert (buffer.num_rows, buffer.segment_rows) == (rows, segment_rows)


def test_replay_buffer__refuses_a_capacity_below_one_step_or_above_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"buffer_size must be at least num_envs \(16\), not 8"):
        make(8, 16)
    monkeypatch.setattr(replay_buffer, "free_memory", lambda: 2**30)
    # 9 floats (two observations and six actions of size 1, the reward) and two booleans per transition
    with pytest.raises(
        ConfigError,
        match=(
            r"buffer_size 56,512,728 needs 2\.0 GiB, but cpu has 1\.0 GiB left: choose 22,60\d,\d\d\d or less"
        ),
    ):
        make(round(2 * 2**30 / 38), 1)
    make(1024, 1)
