"""The failure gate: where a base policy is expected to fail, and so a residual may act.

Shapes: N members of the ensemble, b batch, O observation, T steps of an episode.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residual_rl.errors import CheckpointError
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.learners.off_policy.config import GatedSACCfg
from residual_rl.learners.off_policy.critics import Critics
from residual_rl.types import State

_SMALLEST = 1e-6
_EVEN = 0.5
"""Probability of success up to which the residual may act at most."""
_NUM_QUANTILES = 101
_NO_LENGTH = 1e9
"""Length of a success while none is known."""


class FailureGate(nn.Module):
    """The share of the residual that acts, as a function of the observation alone.

    An ensemble predicts the probability that the base policy, acting alone from here on, solves the task. The
    most hopeful member counts, so that the gate only opens where all agree on failure. It also opens with the
    time t since the episode's start: of the episodes that the base policy has not solved by then, it solves
    the share r(t) = (successes longer than t) / (successes longer than t + failures).

        share(s, t) = max(ramp(max_i p_i(s), high), ramp(r(t), min(r(0), 0.5)))
        ramp(p, high) = clip((high - p) / (high - high / 3), 0, 1)

    It is 0 everywhere until the threshold `high` is set.

    Args:
        cfg: the learner's settings.
        obs_dim: O, of normalised observation vectors with the base action.
        generator: generator of the weights (CPU).
    """

    high: Tensor
    success_lengths: Tensor
    odds_of_failure: Tensor

    def __init__(self, cfg: GatedSACCfg, obs_dim: int, generator: torch.Generator):
        super().__init__()
        sizes = (obs_dim, *cfg.gate_hidden_sizes, 1)
        self.members = Critics(cfg.gate_members, sizes, "relu", True, 0.0, generator)
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("success_lengths", torch.full((_NUM_QUANTILES,), _NO_LENGTH))
        """Quantiles of the lengths of the base policy's successes, evenly spaced, in ascending order."""
        self.register_buffer("odds_of_failure", torch.zeros(()))
        """Failures of the base policy per success."""

    @property
    def trained(self) -> bool:
        """Whether the gate can open."""
        return bool(self.high > 0.0)

    def success_probability(self, obs: Tensor) -> Tensor:
        """The members' probabilities [N, b] that the base succeeds from the observations `obs` [b, O]."""
        return self.members(obs).sigmoid()

    def late_success(self, elapsed: Tensor) -> Tensor:
        """r(t), for numbers of steps `elapsed` [...]."""
        over = torch.searchsorted(self.success_lengths, elapsed.round().contiguous(), right=True)
        later = (_NUM_QUANTILES - over) / _NUM_QUANTILES
        return later / (later + self.odds_of_failure).clamp(min=_SMALLEST)

    @torch.no_grad()
    def share(self, obs: Tensor, elapsed: Tensor) -> Tensor:
        """The share [..., 1] of the residual that acts at `obs` [..., O], `elapsed` [...] steps after the
        start of the episode."""
        hopeful = self.success_probability(obs.reshape(-1, obs.shape[-1])).amax(0)
        stuck = _ramp(hopeful.view(elapsed.shape), self.high)
        at_start = self.late_success(torch.zeros_like(self.high))
        late = _ramp(self.late_success(elapsed), at_start.clamp(_SMALLEST, _EVEN))
        return (stuck.maximum(late) * (self.high > 0.0))[..., None]

    def set_lengths(self, success_lengths: Sequence[int], num_failures: int) -> None:
        """Set r(t) from the lengths of the base policy's successes and the number of its failures."""
        if not success_lengths:
            self.success_lengths.zero_()  # it never succeeds
            self.odds_of_failure.fill_(1.0)
            return
        lengths = torch.tensor(success_lengths, dtype=torch.float32, device=self.high.device)
        rows = torch.arange(_NUM_QUANTILES, device=lengths.device) * len(lengths) // _NUM_QUANTILES
        self.success_lengths.copy_(lengths.sort().values[rows])
        self.odds_of_failure.fill_(num_failures / len(success_lengths))

    def set_threshold(self, high: float) -> None:
        """Open from a probability of `high` downwards, and entirely at a third of it."""
        self.high.fill_(high)


def _ramp(probability: Tensor, high: Tensor) -> Tensor:
    """0 from `high` upwards, and 1 up to a third of it."""
    return ((high - probability) / (high - high / 3.0).clamp(min=_SMALLEST)).clamp(0.0, 1.0)


class GateTrainer:
    """Trains a failure gate on the observations of steps after which only the base policy acted, labelled by
    the outcome of the episode.

    Each member learns from a random half of the episodes. The others judge it: the threshold is chosen from
    predictions by members that have not seen the episode.

    Args:
        cfg: the learner's settings.
        gate: the gate.
        sizes: sizes of the observation vector and of the base action, which follows it in a row of size O.
        device: device of the data.
        seed: seed of the sampling.
    """

    def __init__(
        self,
        cfg: GatedSACCfg,
        gate: FailureGate,
        sizes: tuple[int, int],
        device: torch.device,
        seed: int,
    ):
        self.cfg = cfg
        self._sizes = sizes
        self.gate = gate
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        named = [(f"gate.{name}", parameter) for name, parameter in gate.members.named_parameters()]
        self.optimizer = FlatAdam(named, cfg.gate_learning_rate, 1.0, 1e-8)
        rows = cfg.gate_buffer_size
        self._obs = torch.zeros(rows, sum(sizes), device=device)
        self._success = torch.zeros(rows, device=device)
        self._learns = torch.zeros(rows, cfg.gate_members, device=device)
        """1 where a member learns from the row."""
        self._age = torch.zeros(rows, dtype=torch.int64, device=device)
        """Steps for which the base had acted alone before the row."""
        self._episode = torch.full((rows,), -1, dtype=torch.int64, device=device)
        self.num_rows = 0
        """Rows written so far, including overwritten ones."""
        self.num_episodes = [0, 0]
        """Whole episodes of the base that failed and succeeded."""
        self.success_lengths: list[int] = []
        """Lengths of the whole episodes that the base solved, in ascending order."""
        self.failure_length = 0
        """Length of the longest whole episode in which the base failed."""
        self._number = 0
        """Labelled episodes so far, including those with a residual before the labelled steps."""

    def add(self, obs: Tensor, success: bool, whole: bool = True) -> None:
        """Add the observations [T, O] from which the base alone led to this outcome; `whole` if they are all
        of an episode."""
        rows, number = len(self._obs), self._number
        age = torch.arange(len(obs), device=self.device)[-rows:]
        obs = obs[-rows:]
        at = torch.arange(self.num_rows, self.num_rows + len(obs), device=self.device) % rows
        draw = torch.rand(self.cfg.gate_members, generator=self.generator, device=self.device)
        self._obs[at] = obs
        self._success[at] = float(success)
        self._learns[at] = (draw < 0.5).float()
        self._age[at] = age
        self._episode[at] = number
        self.num_rows += len(obs)
        self._number += 1
        self.num_episodes[success] += whole
        if whole and success:
            bisect.insort(self.success_lengths, len(age))
        elif whole:
            self.failure_length = max(self.failure_length, len(age))

    def _counts(self, rows: Tensor) -> Tensor:
        """Whether each of `rows` counts: those of failures only after the time by which nearly all successes
        are over, or at which a typical one would just be possible."""
        lengths = self.success_lengths
        late = 0
        if lengths:
            nearly_all, typical = (lengths[int(q * (len(lengths) - 1))] for q in (self.cfg.gate_late, 0.5))
            late = max(min(nearly_all, self.failure_length - typical), 0)
        return (self._success[rows] > 0.0) | (self._age[rows] >= late)

    def fit(self, steps: int, normalize: Callable[[Tensor], Tensor]) -> float:
        """Take gradient steps on the binary cross-entropy. Returns the mean loss."""
        filled = min(self.num_rows, len(self._obs))
        size = (self.cfg.gate_batch_size,)
        total = torch.zeros((), device=self.device)
        for _ in range(steps):
            batch = torch.randint(filled, size, generator=self.generator, device=self.device)
            obs = self._normalized(self._obs[batch], normalize)
            noise = torch.randn(obs.shape, generator=self.generator, device=self.device)
            logits = self.gate.members(obs + self.cfg.gate_input_noise * noise)
            target = self._success[batch].expand_as(logits)
            weight = self._learns[batch].T * self._counts(batch)
            loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
            loss = loss / weight.sum().clamp(min=1.0)
            self.optimizer.step(torch.autograd.grad(loss, self.optimizer.parameters))
            total += loss.detach()
        self.optimizer.raise_if_nonfinite()
        return float(total) / steps

    def _normalized(self, obs: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        vector, base_action = obs.split(self._sizes, -1)
        return torch.cat([normalize(vector), base_action], -1)

    @torch.no_grad()
    def calibrate(self, normalize: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Choose the threshold at which the gate would have opened in at most `gate_false_alarms` of the
        episodes that the base solved, and return metrics."""
        filled = min(self.num_rows, len(self._obs))
        obs = self._normalized(self._obs[:filled], normalize)
        logits = torch.cat([self.gate.members(rows) for rows in obs.split(4096)], 1)
        counts = self._counts(torch.arange(filled, device=self.device))
        unseen = (self._learns[:filled].T == 0.0) & counts
        hopeful = logits.sigmoid().masked_fill(~unseen, -1.0).amax(0)
        # the least hope in each episode that some member has not seen
        valid = hopeful >= 0.0
        episodes, index = self._episode[:filled][valid].unique(return_inverse=True)
        least = torch.ones(len(episodes), device=self.device)
        least = least.scatter_reduce(0, index, hopeful[valid], "amin")
        solved = torch.zeros(len(episodes), device=self.device)
        solved = solved.scatter_reduce(0, index, self._success[:filled][valid], "amax") > 0.0
        high = _EVEN
        if solved.any():
            high = float(least[solved].quantile(self.cfg.gate_false_alarms))
        high = min(max(high, 0.1), _EVEN)
        self.gate.set_threshold(high)
        self.gate.set_lengths(self.success_lengths, self.num_episodes[0])
        found = (least[~solved] < high).float().mean() if (~solved).any() else torch.zeros(())
        return {"gate/threshold": high, "gate/failures_found": float(found)}

    def state_dict(self) -> State:
        """The data, the optimiser, the generator and the counters."""
        filled = min(self.num_rows, len(self._obs))
        return {
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "obs": self._obs[:filled].clone(),
            "success": self._success[:filled].clone(),
            "learns": self._learns[:filled].clone(),
            "age": self._age[:filled].clone(),
            "success_lengths": list(self.success_lengths),
            "failure_length": self.failure_length,
            "episode": self._episode[:filled].clone(),
            "num_rows": self.num_rows,
            "num_episodes": list(self.num_episodes),
            "number": self._number,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a state returned by `state_dict`. Raises `CheckpointError` if it does not match."""
        filled = len(state["obs"])
        if filled > len(self._obs) or state["obs"].shape[1:] != self._obs.shape[1:]:
            raise CheckpointError("the gate's observations have other sizes than the settings require")
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self._obs[:filled].copy_(state["obs"])
        self._success[:filled].copy_(state["success"])
        self._learns[:filled].copy_(state["learns"])
        self._age[:filled].copy_(state["age"])
        self.success_lengths = sorted(int(length) for length in state["success_lengths"])
        self.failure_length = int(state["failure_length"])
        self._episode[:filled].copy_(state["episode"])
        self.num_rows = state["num_rows"]
        failed, solved = (int(count) for count in state["num_episodes"])
        self.num_episodes = [failed, solved]
        self._number = state["number"]
