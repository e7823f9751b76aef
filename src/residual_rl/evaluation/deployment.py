"""The policy that a run deploys: its best model if that is better than the base policy, else the latter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from residual_rl.config import from_plain
from residual_rl.errors import CheckpointError
from residual_rl.evaluation.formatting import interval_text, value_text
from residual_rl.utils.files import parse_json
from residual_rl.utils.text import one_line
from residual_rl.utils.validation import CheckedCfg

RATE = "success_once"


@dataclass(frozen=True)
class Deployment(CheckedCfg):
    """What `best_model` contains, and the comparison with the base policy on fresh episodes behind it."""

    policy: Literal["residual", "base"]
    """`base`: the base policy alone, exported as the best model with a residual scale of 0."""
    confirmed: bool
    """Whether the residual showed a gain; False where there was no comparison, or none that was completed."""
    step: int
    """Env steps of training of the best model."""
    episodes: int = 0
    """Episodes of the comparison, which stops once the answer is clear."""
    max_episodes: int = 0
    """Episodes that it would have had at most."""
    success_rate: float | None = None
    """Success rate of the residual in them."""
    base_success_rate: float | None = None
    """Success rate of the base policy in them."""
    won: int = 0
    """Episodes in which only the residual succeeded."""
    lost: int = 0
    """Episodes in which only the base policy succeeded."""
    gain: float | None = None
    """Difference of the success rates."""
    interval: tuple[float, float] | None = None
    """Its 95 % interval, valid although the comparison may stop at any time."""
    e_value: float | None = None
    """Evidence for a gain; 40 and more shows one."""
    window: int = 0
    """Of a training on a robot, which compares nothing with the base policy: number of successive training
    episodes whose `success_rate` selected the best model."""

    @property
    def note(self) -> str:
        """The outcome in a few words."""
        if self.policy == "base":
            return "best_model: the base policy, no gain shown"
        return f"best_model: the residual{'' if self.confirmed else ', not confirmed'}"

    @property
    def text(self) -> str:
        """The outcome in a few sentences."""
        if self.window:
            return self._robot_text
        if self.policy == "base" and not self.max_episodes:
            return (
                "No evaluation solved more episodes than the base policy, so best_model is the base policy "
                "(residual_scale 0)."
            )
        if self.gain is None or self.interval is None:
            return "best_model was not compared with the base policy on fresh episodes: not confirmed."
        gain = f"{value_text(RATE, self.gain, sign=True)} {interval_text(RATE, self.interval)}"
        if self.policy == "base":
            return (
                f"No gain over the base policy on {self.episodes} fresh episodes ({gain}), so best_model is "
                "the base policy (residual_scale 0)."
            )
        rate, base_rate = (value_text(RATE, r or 0.0) for r in (self.success_rate, self.base_success_rate))
        return (
            f"best_model is better than the base policy on {self.episodes} fresh episodes: "
            f"{rate} against {base_rate} ({gain})."
        )

    @property
    def _robot_text(self) -> str:
        """The outcome of a training on a robot."""
        if self.policy == "base":
            return (
                f"No {self.window} successive training episodes without interventions have shown success, so "
                "best_model is the base policy (residual_scale 0)."
            )
        rate = value_text(RATE, self.success_rate or 0.0)
        return (
            f"best_model is the residual after the best {self.window} successive training episodes without "
            f"interventions ({rate} success). It was not compared with the base policy, which may be better."
        )

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> Deployment | None:
        """The deployment in a training summary; None if there is none.

        Raises `ValueError` or `TypeError` for other fields or values.
        """
        content = summary.get("deployment")
        return None if content is None else from_plain(cls, content)


def deployment_text(summary_file: Path) -> str | None:
    """The sentence about the best model of a run, from its `training_summary.json`; None if it has none.

    Raises `CheckpointError` for a file that is damaged.
    """
    try:
        deployment = Deployment.from_summary(parse_json(summary_file.read_text("utf-8")))
        return None if deployment is None else deployment.text
    except FileNotFoundError:
        return None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{summary_file} is damaged ({one_line(error)}); restore it, or remove it"
        ) from error
