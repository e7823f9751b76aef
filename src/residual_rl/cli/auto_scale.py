"""`train --residual-scale auto`: measure the base policy first, and choose the settings that depend on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from residual_rl.config import PARTS, ResidualCfg, ResidualScale, TrainCfg, replace_fields
from residual_rl.errors import ConfigError
from residual_rl.registry import BASE_POLICIES, LEARNERS

if TYPE_CHECKING:
    from residual_rl.evaluation.probe import Probe
    from residual_rl.evaluation.probe_advice import Advice

AUTO: Literal["auto"] = "auto"
ScaleOrAuto = ResidualScale | Literal["auto"]


@dataclass(frozen=True)
class ResidualFlags(ResidualCfg):
    """The settings of the residual on the command line, where the scale may be `auto`."""

    residual_scale: Annotated[ScaleOrAuto, tyro.conf.arg(aliases=["--alpha"])] = AUTO  # type: ignore[assignment]
    """Bound of the residual, as a share of the action range; with 0, the base policy acts alone. auto, the
    default for learned base policies: measure the base policy first, as `residual-rl probe` does, and choose
    the scale, the exploration, the warm-up and the demonstrations accordingly; flags win."""

    @classmethod
    def of(cls, residual: ResidualCfg, auto: bool) -> ResidualFlags:
        """The flags with the defaults `residual`, or with a scale of `auto`."""
        changed: dict[str, Any] = {"residual_scale": AUTO} if auto else {}
        return cls(**{**vars(residual), **changed})

    def resolve(self, default: float) -> ResidualCfg:
        """The settings, with the scale `default` in place of `auto`."""
        scale = default if self.residual_scale == AUTO else self.residual_scale
        return ResidualCfg(**{**vars(self), "residual_scale": scale})


def is_auto_by_default(cfg: TrainCfg, preset: Mapping[str, Any]) -> bool:
    """Whether `train` measures the base policy unless a flag says otherwise: over learned base policies, but
    not with published settings, those of the learner or of the `preset`."""
    published = LEARNERS.get(cfg.learner_id).published or "residual_scale" in preset
    return BASE_POLICIES.get(cfg.base_policy_id).learned and not published


def measure_first(
    cfg: TrainCfg, given: Collection[str], output: Path, quick: bool, force: bool
) -> tuple[TrainCfg, tuple[Probe, Advice]]:
    """Measure the base policy of a training, and print what follows from it.

    Args:
        cfg: the settings.
        given: settings that the user chose, which are kept.
        output: the run folder; nothing is written into it.
        quick: measure on a few episodes only.
        force: train even if the verdict is that it is pointless.

    Returns:
        The settings with those that follow from the measurements, and the probe with its advice.

    Raises:
        ConfigError: the training is pointless, or a setting would make it fail later.
    """
    from residual_rl.cli.probe import N_EPISODES, QUICK_EPISODES, measure, report
    from residual_rl.factory import usable_device
    from residual_rl.runs.run_folder import RunFolder
    from residual_rl.utils.console import Console

    # errors of the training that need no measurement
    RunFolder(output).require_empty()
    usable_device(cfg.run.device)
    # measure and print
    console = Console()
    console.say("Measuring the base policy first: --residual-scale is auto (a number skips this).")
    probe, advice = measure(cfg, QUICK_EPISODES if quick else N_EPISODES)
    kept = [choice.setting for choice in advice.choices if choice.setting in given]
    report(console, probe, advice, {setting: _value(cfg, setting) for setting in kept})
    if advice.verdict is not None and not force:
        raise ConfigError(f"{advice.verdict}; to train anyway, add --force")
    return apply_advice(cfg, advice, given), (probe, advice)


def apply_advice(cfg: TrainCfg, advice: Advice, given: Collection[str]) -> TrainCfg:
    """`cfg` with the settings of the `advice`, other than those that are `given`."""
    values = {c.setting: c.value for c in advice.choices if c.setting not in given}
    # a user who wants none in the batches needs no file of them
    if values.get("demo_share", getattr(cfg.learner, "demo_share", 0.0)) == 0.0:
        values = {name: value for name, value in values.items() if name not in ("demos", "demo_episodes")}
    return replace_fields(cfg, values)


def _value(cfg: TrainCfg, setting: str) -> Any:
    """The value of a setting in the first part that has it."""
    parts = (getattr(cfg, part) for part in PARTS)
    return next(getattr(part, setting) for part in parts if hasattr(part, setting))
