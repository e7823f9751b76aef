"""The failure gate: its shares, its thresholds, and its training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from residual_rl.errors import CheckpointError
from residual_rl.learners.off_policy.config import GatedSACCfg
from residual_rl.learners.off_policy.failure_gate import FailureGate, GateTrainer


def make_gate(**settings: Any) -> FailureGate:
    return FailureGate(GatedSACCfg(**settings), 2, torch.Generator().manual_seed(0))


def make_trainer(seed: int = 0, **settings: Any) -> GateTrainer:
    cfg = GatedSACCfg(
        **{"gate_hidden_sizes": (16,), "gate_batch_size": 64, "gate_learning_rate": 1e-2, **settings}
    )
    gate = FailureGate(cfg, 2, torch.Generator().manual_seed(seed))
    return GateTrainer(cfg, gate, (1, 1), torch.device("cpu"), seed)


def unchanged(obs: Tensor) -> Tensor:
    return obs


def add_episodes(trainer: GateTrainer, number: int = 60, seed: int = 0) -> None:
    """Episodes of 10 steps at x < 0, which fail, and of 5 steps at x > 0, which succeed."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(number):
        obs = torch.rand(5 if i % 2 else 10, 2, generator=generator)
        obs[:, 0] += 0.2
        obs[:, 0] *= 1.0 if i % 2 else -1.0
        trainer.add(obs, success=bool(i % 2))


def set_probabilities(gate: FailureGate, probabilities: list[float]) -> None:
    """Let the members predict these probabilities of success at every observation."""
    logits = torch.tensor(probabilities).logit()
    gate.members.biases[-1].data.copy_(logits[:, None, None])


# --- the share of the residual ---------------------------------------------------------------------------


def test_share__is_zero_everywhere_before_the_thresholds_are_set() -> None:
    gate = make_gate()
    set_probabilities(gate, [0.0, 1e-9, 0.0, 0.0, 0.0])
    assert not gate.trained
    assert gate.share(torch.randn(7, 2), torch.zeros(7)).tolist() == [[0.0]] * 7


@pytest.mark.parametrize(
    ("probabilities", "share"),
    [
        ([0.01, 0.02, 0.03, 0.04, 0.05], 1.0),  # the most hopeful is below low = 0.1
        ([0.01, 0.20, 0.01, 0.01, 0.01], 0.5),  # (0.3 - 0.2) / (0.3 - 0.1)
        ([0.25, 0.01, 0.01, 0.01, 0.01], 0.25),  # (0.3 - 0.25) / (0.3 - 0.1)
        ([0.01, 0.01, 0.01, 0.01, 0.31], 0.0),  # one member hopes
    ],
)
def test_share__follows_the_most_hopeful_member(probabilities: list[float], share: float) -> None:
    gate = make_gate()
    gate.set_threshold(0.3)
    set_probabilities(gate, probabilities)
    assert float(gate.share(torch.randn(1, 2), torch.zeros(1))) == pytest.approx(share, abs=1e-4)


# --- training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elapsed", "late_success", "share"),
    [
        (0.0, 4 / 6, 0.0),  # four successes are to come, and two failures
        (19.6, 2 / 4, 0.0),  # 20 steps: those of 30 and 40 steps are to come
        (30.0, 1 / 3, 0.5),  # (0.5 - 1/3) / (0.5 - 0.5/3)
        (40.0, 0.0, 1.0),
        (400.0, 0.0, 1.0),
    ],
)
def test_share__opens_with_the_time_that_successes_take(
    elapsed: float, late_success: float, share: float
) -> None:
    gate = make_gate()
    set_probabilities(gate, [0.9] * 5)
    gate.set_threshold(0.4)
    gate.set_lengths([10, 20, 30, 40], 2)
    time = torch.tensor([elapsed])
    assert float(gate.late_success(time)) == pytest.approx(late_success, abs=0.01)
    assert float(gate.share(torch.zeros(1, 2), time)) == pytest.approx(share, abs=0.03)


def test_share__opens_with_time_over_a_weak_base_once_its_successes_are_over() -> None:
    gate = make_gate()
    set_probabilities(gate, [0.9] * 5)
    gate.set_threshold(0.1)
    gate.set_lengths([10, 20], 8)  # r: 2/10 at the start, 1/9 after 10 steps
    shares = [float(gate.share(torch.zeros(1, 2), torch.tensor([t]))) for t in (0.0, 10.0, 20.0)]
    # (0.2 - 1/9) / (0.2 - 0.2/3)
    assert shares == pytest.approx([0.0, 2 / 3, 1.0], abs=0.03)


def test_set_lengths__gate_is_open_where_the_base_never_succeeds() -> None:
    gate = make_gate()
    gate.set_threshold(0.3)
    gate.set_lengths([], 5)
    assert gate.share(torch.zeros(2, 2), torch.tensor([0.0, 7.0])).flatten().tolist() == [1.0, 1.0]


def test_set_lengths__gate_does_not_open_with_time_where_the_base_never_fails() -> None:
    gate = make_gate()
    set_probabilities(gate, [0.9] * 5)
    gate.set_threshold(0.3)
    gate.set_lengths([10, 20], 0)
    assert gate.share(torch.zeros(1, 2), torch.tensor([15.0])).item() == 0.0


def test_fit__opens_where_the_base_fails_and_not_where_it_succeeds() -> None:
    trainer = make_trainer()
    add_episodes(trainer)
    first = trainer.fit(20, unchanged)
    last = trainer.fit(400, unchanged)
    assert last < 0.5 * first
    metrics = trainer.calibrate(unchanged)
    assert metrics["gate/failures_found"] == 1.0
    assert trainer.num_episodes == [30, 30]
    assert float(trainer.gate.share(torch.tensor([[-0.7, 0.5]]), torch.zeros(1))) == 1.0
    assert float(trainer.gate.share(torch.tensor([[0.7, 0.5]]), torch.zeros(1))) == 0.0


def test_fit__members_learn_from_different_episodes() -> None:
    trainer = make_trainer()
    add_episodes(trainer)
    rows = slice(trainer.num_rows)
    learns = torch.stack([trainer._learns[rows][trainer._episode[rows] == i][0] for i in range(60)])
    assert torch.equal(learns[trainer._episode[rows]], trainer._learns[rows])  # all rows of an episode
    shares = learns.mean(0)
    assert ((shares > 0.3) & (shares < 0.7)).all()
    assert len({tuple(member.tolist()) for member in learns.T}) == 5


def test_gate_late__failures_count_once_nearly_all_successes_are_over() -> None:
    # The successes take 2, 3, 4, 5 and 9 steps; the quantile 0.75 of five lengths is the fourth, 5.
    trainer = make_trainer(gate_late=0.75)
    for length in (9, 2, 3, 5, 4):
        trainer.add(torch.ones(length, 2), success=True)
    trainer.add(torch.ones(10, 2), success=False)
    # what followed a handover counts from there on, and is no length of a success
    trainer.add(torch.ones(6, 2), success=False, whole=False)
    trainer.add(torch.ones(20, 2), success=True, whole=False)
    counts = trainer._counts(torch.arange(23, 39)).tolist()
    assert counts == [False] * 5 + [True] * 5 + [False] * 5 + [True]
    assert trainer._counts(torch.arange(23)).all()


def test_gate_late__leaves_the_time_of_a_median_success() -> None:
    trainer = make_trainer(gate_late=1.0)
    for length in (3, 4, 9):
        trainer.add(torch.ones(length, 2), success=True)
    trainer.add(torch.ones(10, 2), success=False)
    # not after 9 steps, but after 10 - 4
    assert trainer._counts(torch.arange(16, 26)).tolist() == [False] * 6 + [True] * 4


@pytest.mark.parametrize(("false_alarms", "high"), [(0.0, 0.10), (0.5, 0.20), (1.0, 0.30)])
def test_calibrate__opens_in_a_given_share_of_the_solved_episodes(false_alarms: float, high: float) -> None:
    # Three solved episodes whose lowest predictions are 0.1, 0.2 and 0.3, and a failed one with 0.15 after
    # the two steps of a success. The
    # quantiles 0, 0.5 and 1 of (0.1, 0.2, 0.3) are 0.1, 0.2 and 0.3.
    trainer = make_trainer(gate_false_alarms=false_alarms, gate_members=2, num_target_critics=2)
    lowest = {0.1: True, 0.2: True, 0.3: True, 0.15: False}
    for probability, success in lowest.items():
        early = [] if success else [[0.01, 0.0], [0.01, 0.0]]
        trainer.add(torch.tensor([*early, [probability, 0.0], [0.9, 0.0]]), success)
    trainer._learns.zero_()  # no member has seen them

    def logits(obs: Tensor) -> Tensor:
        return obs[:, 0].logit().expand(2, -1)

    trainer.gate.members.forward = logits  # type: ignore[method-assign]
    metrics = trainer.calibrate(unchanged)
    assert metrics["gate/threshold"] == pytest.approx(high)
    assert metrics["gate/failures_found"] == float(high > 0.15)


def test_calibrate__ignores_predictions_by_members_that_learned_from_the_episode() -> None:
    trainer = make_trainer(gate_false_alarms=0.0, gate_members=2)
    trainer.add(torch.zeros(1, 2), True)
    trainer._learns[0] = torch.tensor([1.0, 0.0])
    set_probabilities(trainer.gate, [0.9, 0.25])
    assert trainer.calibrate(unchanged)["gate/threshold"] == pytest.approx(0.25)


def test_gate_buffer_size__oldest_observations_are_overwritten() -> None:
    trainer = make_trainer(gate_buffer_size=8)
    for i in range(3):
        trainer.add(torch.full((3, 2), float(i)), success=False)
    # rows 0 to 8 in a ring of 8: the first row of the first episode is gone
    assert trainer._obs[:, 0].tolist() == [2.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0]
    assert trainer.num_rows == 9


# --- state -----------------------------------------------------------------------------------------------


def test_gate_trainer_load_state_dict__training_continues_bit_for_bit() -> None:
    trainer = make_trainer()
    add_episodes(trainer)
    trainer.fit(10, unchanged)
    other = make_trainer(seed=1)
    other.load_state_dict(trainer.state_dict())
    other.gate.load_state_dict(trainer.gate.state_dict())
    for one in (trainer, other):
        add_episodes(one, 4, seed=1)
        one.fit(5, unchanged)
        one.calibrate(unchanged)
    obs = torch.randn(9, 2)
    assert torch.equal(trainer.gate.success_probability(obs), other.gate.success_probability(obs))
    assert torch.equal(trainer.gate.high, other.gate.high)


def test_gate_trainer_load_state_dict__refuses_other_sizes() -> None:
    trainer = make_trainer()
    add_episodes(trainer)
    with pytest.raises(CheckpointError, match="other sizes"):
        make_trainer(gate_buffer_size=8).load_state_dict(trainer.state_dict())
