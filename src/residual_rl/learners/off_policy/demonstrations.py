"""Demonstrations and interventions as a source of the off-policy learners' batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.learners.off_policy.config import OffPolicyCfg
from residual_rl.learners.off_policy.replay_buffer import ReplayBuffer
from residual_rl.types import Transition


class LearnsFromDemonstrations:
    """The part of `OffPolicyLearner` that fills `demonstrations`, from which a share of each batch is
    sampled."""

    cfg: OffPolicyCfg
    num_envs: int
    buffer: ReplayBuffer
    demonstrations: ReplayBuffer | None
    collects_interventions: bool = False
    """Whether steps that a person commanded are added to `demonstrations`."""
    _person_acted: bool = False
    """Whether a person commanded the last step of the running episode."""

    def load_demonstrations(self, episodes: Sequence[Transition]) -> None:
        """Add demonstrations, which fill the fraction `demo_share` of each batch.

        Args:
            episodes: one `Transition` per episode, with time T in place of the envs: [T, …]. Its last step is
                terminated or truncated.

        Raises:
            ConfigError: no episodes, or shapes that do not match.
        """
        if not episodes:
            raise ConfigError("there are no demonstrations to learn from")
        rows = [self._row(episode) for episode in episodes]
        self.demonstrations = ReplayBuffer.of_episodes(rows, self.buffer, "demonstrations")

    def collect_interventions(self) -> None:
        """From now on, add the steps that a person commanded to the demonstrations as well.

        Source: Luo et al., "Precise and Dexterous Robotic Manipulation via Human-in-the-Loop Reinforcement
        Learning" (HIL-SERL), 2024. Deviation: an n-step window ends where the person hands back.

        Raises:
            ConfigError: several envs, settings with which such a window would end in a value of 0, or critics
                that see residuals: that of a person may be beyond the bound, and would then be cut.
        """
        if self.num_envs != 1:
            raise ConfigError(f"interventions are for one robot: set num_envs to 1, not {self.num_envs}")
        if self.cfg.bootstrap_at_done == "never":
            raise ConfigError(
                "bootstrap_at_done never would take the end of an intervention for the end of the episode: "
                "choose --bootstrap-at-done truncated"
            )
        if self.cfg.critic_input != "sum":
            raise ConfigError(
                f"with critic_input {self.cfg.critic_input}, critics would not see what a person commands"
                " beyond the residual's bound: choose --critic-input sum"
            )
        demos = self.demonstrations
        if demos is None:
            demos = self.buffer.empty_like(1, "demonstrations")
        self.demonstrations = demos.extended(self.buffer.num_rows)
        self.collects_interventions = True

    def _add_intervention(self, row: Mapping[str, Tensor], transition: Transition) -> None:
        """Add the step to the demonstrations, if a person commanded it; end the window after the last."""
        assert transition.intervention is not None
        demos, person_acts = self.demonstrations, bool(transition.intervention)
        if not self.collects_interventions or demos is None:
            return
        if person_acts:
            demos.add(row)
        elif self._person_acted:
            demos.end_windows()
        self._person_acted = person_acts and not bool(transition.terminated | transition.truncated)

    def _row(self, transition: Transition) -> dict[str, Tensor]:
        raise NotImplementedError
