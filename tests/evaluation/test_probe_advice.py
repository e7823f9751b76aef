"""What follows from a probe: each choice, its reason, the verdicts and the warnings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from residual_rl.evaluation.probe import CONDITIONS, SHARES, Condition, Ends, Prediction, Probe
from residual_rl.evaluation.probe_advice import Advice, TrainingDemos, advise
from residual_rl.learners.off_policy.config import GatedSACCfg, SACCfg, TD3Cfg
from residual_rl.learners.ppo.config import PPOCfg
from residual_rl.utils.statistics import Summary, proportion

NO_DEMOS = TrainingDemos(None, why_not="there are none")
TOLERANT = dict.fromkeys(CONDITIONS, -0.05)


def made(
    solved: int = 50,
    n: int = 80,
    area: float | None = 0.9,
    losses: dict[Any, float] = TOLERANT,
    **fields: Any,
) -> Probe:
    """A probe of a base policy that solved `solved` of `n` episodes."""
    ends = [Ends(k, k, 90.0 if k else None, 0, None) for k in (solved, n - solved)]
    defaults: dict[str, Any] = {
        "task": "so101-paper",
        "base_policy": "il",
        "success": proportion([True] * solved + [False] * (n - solved)),
        "successes": ends[0],
        "failures": ends[1],
        "at_bounds": 0.02,
        "largest_reward": 10.0,
        "conditions": tuple(
            Condition(kind, size, Summary(0.5, 0.3, 0.7, 26), Summary(loss, -1.0, 1.0, 26))
            for (kind, size), loss in losses.items()
        ),
        "slow_success": 120.0,
        "max_disturbed_steps": 180,
        "predictions": ()
        if area is None
        else tuple(Prediction(share, int(90 * share), Summary(area, 0.0, 1.0, n)) for share in SHARES),
        "seeds": tuple(range(n)),
    }
    return Probe(**{**defaults, **fields})


def values(advice: Advice) -> dict[str, Any]:
    return {choice.setting: choice.value for choice in advice.choices}


def losses(correlated: tuple[float, ...], white: tuple[float, ...]) -> dict[Any, float]:
    """The differences of success by condition."""
    numbers = iter((*correlated, *white, -0.5, 0.0))
    return {condition: next(numbers) for condition in CONDITIONS}


def test_residual_scale__is_full_where_failures_can_be_predicted_and_a_gate_protects_the_base() -> None:
    advice = advise(made(area=0.6), GatedSACCfg(), NO_DEMOS)
    assert values(advice)["residual_scale"] == 1.0
    assert advice.choices[0].reason.startswith("failures can be predicted from step 0 on")


def test_residual_scale__without_a_gate_is_the_largest_tolerated_noise() -> None:
    probe = made(losses=losses((-0.02, -0.10, -0.3), (-0.02, -0.05, -0.08)))
    for learner in (SACCfg(), PPOCfg(), TD3Cfg()):
        advice = advise(probe, learner, NO_DEMOS)
        assert values(advice)["residual_scale"] == 0.1
        assert "costs the base policy at most 10 points of success (−10.0 pp)" in advice.choices[0].reason


@pytest.mark.parametrize(
    ("area", "solved", "reason"),
    [
        (0.59, 50, "failures cannot be predicted (area under the ROC curve 0.59 by step 45), and "),
        (None, 77, "3 failures are too few to tell whether failures can be predicted, and "),
        (None, 50, "there are no vectors to predict failures from, and "),
    ],
)
def test_residual_scale__with_a_gate_that_cannot_tell_is_the_largest_tolerated_noise(
    area: float | None, solved: int, reason: str
) -> None:
    advice = advise(made(solved, area=area), GatedSACCfg(), NO_DEMOS)
    assert values(advice)["residual_scale"] == 0.2
    assert advice.choices[0].reason.startswith(reason)


def test_residual_scale__is_half_of_the_smallest_noise_if_none_is_tolerated() -> None:
    probe = made(losses=losses((-0.2, 0.0, 0.0), (-0.2, -0.3, -0.4)))
    advice = advise(probe, SACCfg(), NO_DEMOS)
    assert values(advice)["residual_scale"] == 0.025
    assert "even that (0.05) changes the success by −20.0 pp" in advice.choices[0].reason


def test_residual_scale__is_full_for_a_base_policy_that_hardly_succeeds() -> None:
    advice = advise(made(4, area=None), SACCfg(), NO_DEMOS)
    assert values(advice)["residual_scale"] == 1.0
    assert advice.choices[0].reason == "the base policy solves 5.0 %, so there is little to lose"


def test_exploration__keeps_the_learners_defaults_behind_a_gate() -> None:
    found = values(advise(made(), GatedSACCfg(), NO_DEMOS))
    assert (found["warmup_std"], found["init_std"], found["noise_correlation"]) == (0.5, 0.4, 0.9)


def test_exploration__is_bounded_by_the_tolerated_noise_and_white_if_more_of_that_is_tolerated() -> None:
    """Correlated noise of 0.05 is tolerated and white noise of 0.1. The scale is 0.05, so that exploration of
    the default size is well below 0.1."""
    probe = made(losses=losses((-0.02, -0.2, -0.3), (-0.02, -0.05, -0.3)))
    found = values(advise(probe, SACCfg(), NO_DEMOS))
    assert (found["residual_scale"], found["noise_correlation"]) == (0.05, 0.0)
    assert (found["warmup_std"], found["init_std"]) == (0.5, 0.4)
    # an exploration as large as the bound is reduced to what is tolerated
    found = values(advise(probe, TD3Cfg(exploration_std=3.0), NO_DEMOS))
    assert found["exploration_std"] == 2.0


def test_exploration__stays_correlated_if_the_base_policy_tolerates_that() -> None:
    assert values(advise(made(), SACCfg(), NO_DEMOS))["noise_correlation"] == 0.9
    assert values(advise(made(), PPOCfg(), NO_DEMOS))["noise_correlation"] == 0.0


@pytest.mark.parametrize(
    ("solved", "episodes", "failures"),
    # 10 failures, from 50 to 200 episodes; failures: half of those expected, if fewer than 10
    [
        (40, 50, None),
        (60, 50, 6),
        (70, 80, 5),
        (20, 50, None),
        (76, 200, 5),
        (79, 200, 1),
        (80, 200, 0),
        (0, 50, None),
    ],
)
def test_gate_warmup_episodes__let_10_failures_be_expected(
    solved: int, episodes: int, failures: int | None
) -> None:
    found = values(advise(made(solved), GatedSACCfg(), NO_DEMOS))
    assert found["gate_warmup_episodes"] == episodes
    assert found.get("gate_min_failures") == failures


def test_choices__are_only_of_settings_that_the_learner_has() -> None:
    demos = TrainingDemos(Path("d.h5"), 20)
    for learner in (PPOCfg(), SACCfg(), TD3Cfg(), GatedSACCfg()):
        settings = set(values(advise(made(), learner, demos))) - {"residual_scale"}
        assert settings <= {field.name for field in dataclasses.fields(learner)}
        dataclasses.replace(learner, **{s: values(advise(made(), learner, demos))[s] for s in settings})


def test_demos__are_half_of_the_batches_where_they_are_known() -> None:
    found = values(advise(made(), GatedSACCfg(), TrainingDemos(Path("d.h5"), 20)))
    assert (found["demos"], found["demo_share"], found["demo_episodes"]) == ("d.h5", 0.5, 20)
    assert "demo_episodes" not in values(advise(made(), GatedSACCfg(), TrainingDemos(Path("d.h5"))))


def test_demo_share__is_zero_without_demonstrations_and_says_why() -> None:
    (choice,) = [c for c in advise(made(), SACCfg(), NO_DEMOS).choices if c.setting.startswith("demo")]
    assert (choice.setting, choice.value) == ("demo_share", 0.0)
    assert choice.reason == "without demonstrations, since there are none"


def test_verdict__names_a_base_policy_that_never_or_always_succeeds_with_its_interval() -> None:
    never = advise(made(0, area=None, losses={}), GatedSACCfg(), NO_DEMOS).verdict
    assert never is not None
    assert never.startswith(
        "the base policy solved none of 80 episodes (95 % interval 0.0 to 4.6 %): nothing can"
    )
    always = advise(made(80), GatedSACCfg(), NO_DEMOS).verdict
    assert always == (
        "the base policy solved all of 80 episodes (95 % interval 95.4 to 100.0 %): there is nothing to gain"
    )


@pytest.mark.parametrize(("solved", "n"), [(1, 80), (79, 80), (0, 8), (8, 8)])
def test_verdict__needs_more_than_a_few_episodes_without_exception(solved: int, n: int) -> None:
    assert advise(made(solved, n, area=None), GatedSACCfg(), NO_DEMOS).verdict is None


def test_warnings__name_base_actions_at_the_bounds() -> None:
    assert advise(made(at_bounds=0.5), SACCfg(), NO_DEMOS).warnings == ()
    (warning,) = advise(made(at_bounds=0.74), SACCfg(), NO_DEMOS).warnings
    assert warning.startswith(
        "74.0 % of the entries of the base actions lie at the bounds of the action space"
    )


@pytest.mark.parametrize(("largest", "scale"), [(10.0, 0.2), (1.0, 2.0), (3.0, 0.667)])
def test_reward_scale__brings_the_largest_reward_to_2(largest: float, scale: float) -> None:
    advice = advise(made(largest_reward=largest), GatedSACCfg(), NO_DEMOS)
    assert values(advice)["reward_scale"] == scale


def test_reward_scale__is_kept_without_rewards_and_without_a_gate() -> None:
    assert "reward_scale" not in values(advise(made(largest_reward=0.0), GatedSACCfg(), NO_DEMOS))
    assert "reward_scale" not in values(advise(made(), SACCfg(), NO_DEMOS))


def test_train_episode_steps__are_a_multiple_of_a_slow_success_where_there_is_a_limit() -> None:
    assert values(advise(made(), SACCfg(), NO_DEMOS, limit_episodes=True))["train_episode_steps"] == 300
    assert "train_episode_steps" not in values(advise(made(), SACCfg(), NO_DEMOS))
    never = made(solved=0, slow_success=None, max_disturbed_steps=None)
    assert "train_episode_steps" not in values(advise(never, SACCfg(), NO_DEMOS, limit_episodes=True))
