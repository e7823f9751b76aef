"""How early the failure of an episode can be predicted from an observation, cross-validated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from residual_rl.learners.off_policy.critics import Critics

NUM_FOLDS = 5
MIN_EPISODES = 5
"""Successes and failures that are needed."""
_HIDDEN = (64, 64)
_STEPS = 600
_BATCH = 256
_LEARNING_RATE = 1e-3
_INPUT_NOISE = 0.2
"""Standard deviation of the noise on the normalised observations, which keeps the networks from recognising
single episodes."""
_SEED = 0


def held_out_failure_logits(episodes: Sequence[Tensor], success: Sequence[bool]) -> list[Tensor]:
    """The logits that an episode fails, at each of its steps, by networks that were not trained on it.

    Whole episodes are held out: they are divided into five folds with the same share of failures. For each
    fold, a network learns from the others, where each observation has the outcome of its episode as label.

    Args:
        episodes: the observations [T, O] of each episode, with a T of its own.
        success: the outcome of each episode; at least `MIN_EPISODES` of either kind.

    Returns:
        The logits [T] of each episode.
    """
    # Each fold has the same share of failures.
    fold = torch.zeros(len(episodes), dtype=torch.int64)
    for outcome in (True, False):
        same = [i for i, succeeded in enumerate(success) if bool(succeeded) == outcome]
        fold[same] = torch.arange(len(same)) % NUM_FOLDS

    # Rows of all episodes, normalised.
    rows = torch.cat(list(episodes)).cpu().float()
    std, mean = torch.std_mean(rows, 0, correction=0)
    rows = (rows - mean) / std.clamp(min=1e-6)
    lengths = torch.tensor([len(episode) for episode in episodes])
    fails = torch.tensor([not succeeded for succeeded in success]).float().repeat_interleave(lengths)
    row_fold = fold.repeat_interleave(lengths)

    # Train the networks of all folds at once; each ignores the rows of its fold.
    generator = torch.Generator().manual_seed(_SEED)
    member_fold = torch.arange(NUM_FOLDS)
    members = Critics(NUM_FOLDS, (rows.shape[1], *_HIDDEN, 1), "relu", True, 0.0, generator)
    optimizer = torch.optim.Adam(members.parameters(), _LEARNING_RATE)
    for _ in range(_STEPS):
        at = torch.randint(len(rows), (_BATCH,), generator=generator)
        noise = torch.randn(_BATCH, rows.shape[1], generator=generator)
        logits = members(rows[at] + _INPUT_NOISE * noise)
        weight = (row_fold[at] != member_fold[:, None]).float()
        loss = F.binary_cross_entropy_with_logits(logits, fails[at].expand_as(logits), weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # Of each row, the logit of the network that did not learn from it.
    with torch.no_grad():
        logits = torch.cat([members(part) for part in rows.split(4096)], 1)
    return list(logits.gather(0, row_fold[None])[0].split(lengths.tolist()))
