"""Settings of the conversion of public checkpoints. This module does not import torch, so that `--help` stays
fast."""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.errors import ConfigError
from residual_rl.utils.validation import check_fields


@dataclass(frozen=True)
class ConvertCfg:
    """Settings that cannot be derived from the tensors of a public Diffusion Policy checkpoint; published
    values by default."""

    num_obs_steps: int = 2
    """Number of most recent observations in the input (published as obs_horizon)."""
    prediction_horizon: int = 16
    """Number of predicted actions, starting at the oldest observation (published as pred_horizon)."""
    num_action_steps: int = 8
    """Number of actions executed per prediction, starting at the current step (published as act_horizon)."""
    diffusion_steps: int = 100
    """Noise levels used in training (published as num_diffusion_iters)."""
    sampling_steps: int = 10
    """DDIM steps from noise to actions. Can be changed when the policy is used."""
    obs_key: str = "state"
    """Observation that the policy reads; its size follows from the tensors."""
    pad_obs_to: int | None = None
    """Size of the observations in training, if the env's are 7 smaller: the pose of the robot's base, which
    flat states of ManiSkill 2 have at index 18, is then inserted whenever the policy is used."""
    control_mode: str | None = None
    """Control mode of the actions; envs with another one are rejected."""
    task: str = "unknown"
    """Task that the policy was trained for, for messages."""
    weights: str | None = None
    """Network to convert, if the file has several; by default the moving average, whose name contains
    `ema`."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("num_obs_steps", "prediction_horizon", "diffusion_steps", "sampling_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.sampling_steps > self.diffusion_steps:
            raise ConfigError(f"sampling_steps must be at most diffusion_steps {self.diffusion_steps}, not {self.sampling_steps}")
        if not 1 <= self.num_action_steps <= self.chunk_size:
            raise ConfigError(
                f"num_action_steps must be from 1 to {self.chunk_size}, what prediction_horizon {self.prediction_horizon} leaves from the "
                f"present step on with num_obs_steps {self.num_obs_steps}, not {self.num_action_steps}"
            )

    @property
    def chunk_size(self) -> int:
        """Number of predicted actions from the current step on."""
        return self.prediction_horizon - self.num_obs_steps + 1
