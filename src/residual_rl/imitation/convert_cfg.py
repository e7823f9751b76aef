"""Settings of the conversion of public checkpoints, apart from its code so that the command line's help needs
no torch."""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.errors import ConfigError
from residual_rl.imitation.config import check_sampling_steps
from residual_rl.utils.validation import CheckedCfg, PositiveInt


@dataclass(frozen=True)
class ConvertCfg(CheckedCfg):
    """Settings that the tensors of a public Diffusion Policy checkpoint do not contain; the defaults are the
    published ones."""

    num_obs_steps: PositiveInt = 2
    """Observations that it predicts from; published as obs_horizon."""
    prediction_horizon: PositiveInt = 16
    """Actions that its network predicts, from its oldest observation on; published as pred_horizon."""
    num_action_steps: PositiveInt = 8
    """Actions executed from the present step on, before the next prediction; published as act_horizon."""
    diffusion_steps: PositiveInt = 100
    """Noise levels in training; published as num_diffusion_iters."""
    sampling_steps: PositiveInt = 10
    """Denoising steps of DDIM, at least 2. Can be changed when the policy is used."""
    obs_key: str = "state"
    """Named observation of the policy; its size follows from the tensors."""
    pad_obs_to: int | None = None
    """Size of the observations in training, where the env's is 7 less: the policy inserts the pose of the
    robot's base, which flat states of ManiSkill 2 have at index 18."""
    control_mode: str | None = None
    """Control mode of its actions; an env with another one is refused."""
    task: str = "unknown"
    """Name of its task, for messages."""
    weights: str | None = None
    """Name of the network in a file with several. None: the averaged one, whose name contains `ema`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling_steps(self.sampling_steps, self.diffusion_steps)
        if self.num_action_steps > self.chunk_size:
            raise ConfigError(
                f"num_action_steps must be at most {self.chunk_size}, the actions of prediction_horizon "
                f"{self.prediction_horizon} from the "
                f"present step on with num_obs_steps {self.num_obs_steps}, not {self.num_action_steps}"
            )

    @property
    def chunk_size(self) -> int:
        """Number of predicted actions from the current step on."""
        return self.prediction_horizon - self.num_obs_steps + 1
