"""The actions from which running episodes are replayed."""

from __future__ import annotations

import torch

from residual_rl.envs.action_history import ActionHistory


def history_of(*masks: list[bool]) -> ActionHistory:
    """A history of two envs, whose actions in step t are t in all envs."""
    history = ActionHistory(2, 1)
    for step, mask in enumerate(masks):
        history.append(torch.full((2, 1), float(step)), torch.tensor(mask))
    return history


def test_action_history_played__are_the_last_executed_actions_of_each_env() -> None:
    history = history_of([True, True], [False, True], [True, True], [True, False])
    # env 0 executed steps 0, 2, 3 and began an episode after step 0; env 1 has steps 0, 1, 2
    actions, executed = history.played(torch.tensor([2, 3]))
    assert actions[:, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert executed.tolist() == [[False, True], [False, True], [True, True], [True, False]]


def test_action_history_forget_ended__drops_steps_that_no_episode_needs() -> None:
    history = history_of([True, True], [False, True], [True, True], [True, False])
    lengths = torch.tensor([3, 1])
    history.forget_ended(lengths)
    actions, executed = history.played(lengths)
    assert actions[:, 0, 0].tolist() == [0.0, 2.0, 3.0]
    assert executed.tolist() == [[True, False], [True, True], [True, False]]


def test_action_history_load__continues_what_played_returned() -> None:
    history = history_of([True, True], [True, False])
    lengths = torch.tensor([2, 1])
    loaded = ActionHistory(2, 1)
    loaded.load(*history.played(lengths))
    for one in (history, loaded):
        one.append(torch.full((2, 1), 9.0), torch.tensor([True, True]))
    mine, theirs = loaded.played(lengths + 1), history.played(lengths + 1)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_action_history_played__is_empty_at_first() -> None:
    actions, executed = ActionHistory(3, 2).played(torch.zeros(3, dtype=torch.int64))
    assert actions.shape == (0, 3, 2)
    assert executed.shape == (0, 3)
