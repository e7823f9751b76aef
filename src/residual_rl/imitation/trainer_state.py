"""Progress of an imitation training, and saving and restoring its state."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from residual_rl.errors import CheckpointError
from residual_rl.imitation.model import ModelSettings
from residual_rl.imitation.normalization import Statistics
from residual_rl.learners.common.ema import ActorEMA
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.logger import read_metrics
from residual_rl.runs.run_folder import RunFolder
from residual_rl.types import State
from residual_rl.utils.module_state import load_module_state, module_state

_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Progress of training. It is part of every checkpoint and therefore has no wall times."""

    step: int = 0
    """Gradient steps done."""
    success: float | None = None
    """Success rate of the best model so far; None before an evaluation."""
    val_loss: float | None = None
    """Validation loss of the best model so far; None without validation."""
    has_best: bool = False
    """Whether a best model has been saved."""


class ResumableTrainer:
    """The part of `residual_rl.imitation.trainer.Trainer` that saves and restores its state."""

    progress: Progress
    network: torch.nn.Module
    ema: ActorEMA
    optimizer: FlatAdam
    generator: torch.Generator
    statistics: Statistics
    settings: ModelSettings
    checkpoints: CheckpointFolder
    folder: RunFolder
    device: torch.device
    wall_time: float
    _loss_sum: Tensor
    _loss_count: int
    _resumed: bool

    def state_dict(self) -> State:
        """The state needed to resume exactly."""
        return {
            "progress": dict(vars(self.progress)),
            "network": module_state(self.network),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "loss": {"sum": self._loss_sum, "count": self._loss_count},
            "statistics": self.statistics.state_dict(),
        }

    def resume(self) -> None:
        """Restore the newest checkpoint; without one, training starts from the beginning.

        Raises `CheckpointError` if it does not match the settings or the demonstrations.
        """
        self._resumed = True
        latest = self.checkpoints.latest()
        if latest is None:
            _log.warning(
                "%s has no checkpoint yet: training starts from the beginning", self.folder.checkpoints
            )
            return
        step, state = latest
        name = self.checkpoints.files()[step]
        try:
            mine, size = self.statistics.state_dict(), self.settings.obs_size
            theirs = Statistics.from_state(
                state["statistics"], size, self.settings.action_dim, str(name)
            ).state_dict()
            if any(not torch.equal(mine[key], theirs[key]) for key in mine):
                raise CheckpointError(
                    f"{name} was trained on different demonstrations: use the same file and --n-episodes"
                )
            load_module_state(self.network, state["network"], str(name))
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            self._loss_sum, self._loss_count = state["loss"]["sum"].to(self.device), state["loss"]["count"]
            self.progress = Progress(**state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{name} does not match this training ({type(error).__name__}: {error}); "
                "resume with the settings and the release that it was written with"
            ) from error
        rows = read_metrics(self.folder.metrics_file) if self.folder.metrics_file.exists() else []
        self.wall_time = max(
            (row.get("time/wall", 0.0) for row in rows if row["step"] <= self.progress.step), default=0.0
        )
