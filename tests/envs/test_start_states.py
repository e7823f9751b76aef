"""States of earlier episodes in which later ones start."""

from __future__ import annotations

import pytest
import torch

from residual_rl.envs.start_states import StartStates
from residual_rl.errors import CheckpointError


def states(*values: float) -> dict[str, torch.Tensor]:
    return {"position": torch.tensor(values)[:, None], "step": torch.tensor(values).long()}


def test_draw__a_share_of_the_episodes_start_in_stored_states() -> None:
    pool = StartStates(share=0.25, seed=0, least=2)
    pool.add(states(1.0, 2.0, 3.0))
    chosen, drawn = pool.draw(4000)
    # four standard deviations of a binomial share are 0.027
    assert abs(float(chosen.float().mean()) - 0.25) < 0.03
    assert len(drawn["position"]) == int(chosen.sum())
    assert set(drawn["step"].tolist()) == {1, 2, 3}
    assert torch.equal(drawn["position"][:, 0].long(), drawn["step"])


def test_draw__none_while_there_are_few_states() -> None:
    pool = StartStates(share=1.0, seed=0, least=3)
    assert not pool.draw(5)[0].any()
    pool.add(states(1.0, 2.0))
    assert not pool.draw(5)[0].any()
    pool.add(states(3.0))
    assert pool.draw(5)[0].all()


def test_add__drops_the_oldest_states() -> None:
    pool = StartStates(share=1.0, seed=0, capacity=3, least=1)
    pool.add(states(1.0, 2.0))
    pool.add(states(3.0, 4.0))
    assert len(pool) == 3
    assert set(pool.draw(100)[1]["step"].tolist()) == {2, 3, 4}


def test_load_state_dict__same_draws_follow() -> None:
    pool, other = (StartStates(share=0.5, seed=seed, least=1) for seed in (0, 1))
    pool.add(states(1.0, 2.0, 3.0))
    pool.draw(3)
    other.load_state_dict(pool.state_dict(), states(0.0))
    for _ in range(3):
        mine, theirs = pool.draw(4), other.draw(4)
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1]["step"], theirs[1]["step"])


def test_load_state_dict__too_many_states_are_an_error() -> None:
    pool = StartStates(share=0.5, seed=0)
    pool.add(states(1.0, 2.0, 3.0))
    with pytest.raises(CheckpointError, match="more than 2 stored start states"):
        StartStates(share=0.5, seed=0, capacity=2).load_state_dict(pool.state_dict(), states(0.0))


def test_load_state_dict__incomplete_states_are_an_error() -> None:
    pool = StartStates(share=1.0, seed=0, least=1)
    pool.add(states(1.0, 2.0, 3.0))
    saved = pool.state_dict()
    saved["states"]["step"] = saved["states"]["step"][:1]
    with pytest.raises(CheckpointError, match=r"parts of different numbers: \[1, 3\]"):
        pool.load_state_dict(saved, states(0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": torch.zeros(3, 2)}, r"have \[2\] torch.float32 for position, this env needs \[1\]"),
        ({"step": torch.zeros(3)}, r"have \[\] torch.float32 for step, this env needs \[\] torch.int64"),
        ({"more": torch.zeros(3)}, "this env needs nothing"),
    ],
)
def test_load_state_dict__states_of_another_env_are_an_error(
    change: dict[str, torch.Tensor], message: str
) -> None:
    pool = StartStates(share=1.0, seed=0, least=1)
    pool.add(states(1.0, 2.0, 3.0) | change)
    with pytest.raises(CheckpointError, match=message):
        StartStates(share=1.0, seed=0).load_state_dict(pool.state_dict(), states(0.0))


def test_load_state_dict__a_part_that_is_missing_is_an_error() -> None:
    pool = StartStates(share=1.0, seed=0, least=1)
    pool.add({"step": torch.arange(3)})
    with pytest.raises(CheckpointError, match="have nothing for position"):
        pool.load_state_dict(pool.state_dict(), states(0.0))
