"""Disturbances of actions: their sizes, and that they are functions of the episode's seed and the step."""

from __future__ import annotations

import fakes
import pytest
import torch
from torch import Tensor

from residual_rl.envs.action_noise import ActionNoise
from residual_rl.evaluation.disturbances import CORRELATION, Delay, Offset, make_disturbance

EVERYWHERE = torch.ones(3, dtype=torch.bool)


def env(num_envs: int = 3, unit: tuple[float, float] | None = None) -> fakes.PointEnv:
    made = fakes.PointEnv(fakes.PointCfg(), num_envs)
    made.residual_unit = None if unit is None else torch.tensor(unit)
    return made


def executed(kind: str, size: float, seeds: list[int], steps: int = 4) -> Tensor:
    """The actions [steps, B, 2] executed in place of zero actions."""
    disturbance = make_disturbance(kind, size, env(len(seeds)))  # type: ignore[arg-type]
    disturbance.restart(seeds)
    stepping = torch.ones(len(seeds), dtype=torch.bool)
    return torch.stack([disturbance.before_step(torch.zeros(len(seeds), 2), stepping) for _ in range(steps)])


def test_delay__executes_each_action_one_step_late_and_the_first_one_twice() -> None:
    delay = Delay()
    a, b, c = (torch.full((3, 2), value) for value in (0.1, 0.2, 0.3))
    for _ in range(2):
        delay.restart([1, 2, 3])
        assert [delay.before_step(x, EVERYWHERE)[0, 0].item() for x in (a, b, c)] == pytest.approx(
            [0.1, 0.1, 0.2]
        )


def test_offset__is_constant_in_an_episode_and_has_the_given_root_mean_square() -> None:
    offsets = executed("offset", 0.2, [5, 6, 7])
    assert torch.equal(offsets[0], offsets[3])
    torch.testing.assert_close(offsets[0].square().mean(1).sqrt(), torch.full((3,), 0.2))
    assert not torch.equal(offsets[0, 0], offsets[0, 1])


def test_offset__counts_in_residual_units_and_is_clipped() -> None:
    plain, scaled = Offset(env(), 0.2), Offset(env(unit=(0.5, 1.0)), 0.2)
    for offset in (plain, scaled):
        offset.restart([5, 6, 7])
    zero = torch.zeros(3, 2)
    ratio = scaled.before_step(zero, EVERYWHERE) / plain.before_step(zero, EVERYWHERE)
    torch.testing.assert_close(ratio, torch.tensor([[0.5, 1.0]]).expand(3, 2))
    sign = plain.before_step(zero, EVERYWHERE).sign()
    assert torch.equal(plain.before_step(sign, EVERYWHERE), sign)


@pytest.mark.parametrize("kind", ["correlated", "white", "offset"])
def test_make_disturbance__depends_on_the_seed_and_not_on_the_other_envs(kind: str) -> None:
    together, alone = executed(kind, 0.1, [5, 6, 7]), executed(kind, 0.1, [7])
    assert torch.equal(together[:, 2], alone[:, 0])


@pytest.mark.parametrize(("kind", "correlation"), [("correlated", CORRELATION), ("white", 0.0)])
def test_make_disturbance__noise_is_that_of_action_noise(kind: str, correlation: float) -> None:
    reference = ActionNoise(env(), 0.1, correlation)
    reference.restart(torch.arange(3).numpy(), [5, 6, 7])
    noise = torch.stack([reference.before_step(torch.zeros(3, 2), EVERYWHERE) for _ in range(4)])
    assert torch.equal(executed(kind, 0.1, [5, 6, 7]), noise)
