"""Settings of imitation training, apart from its code so that the command line's help needs no torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.utils.validation import (
    BatchSize,
    CheckedCfg,
    ChunkLength,
    LayerSizes,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    NumThreads,
    PositiveFloat,
    PositiveInt,
    Share,
    TorchSeed,
)

ALGOS: dict[str, str] = {
    "bc": "residual_rl.imitation.trainer:train",
    "diffusion": "residual_rl.imitation.trainer:train",
    "flow": "residual_rl.imitation.trainer:train",
    "act": "residual_rl.lerobot.act:train",
}
"""Training function of each algorithm, as `module:attribute`: `train(cfg: ImitateCfg, demos: Path, out: Path,
resume: bool) -> dict`.

It trains on the demonstrations `demos` in the run folder `out`, or resumes there, and returns a summary:
`finished`, `signal` (the signal that stopped it, or None), `steps`, `wall_time` [s], `best_success_rate`
(None without evaluation), `best_val_loss` (None without validation), `task` (its id), `base_policy` (the id
of the base policy that runs the model, with `out` as its checkpoint) and `model` (the model's name in `out`).
A finished training also writes the summary to `training_summary.json`; a stopped one only saves its state.
Settings that an algorithm does not use are ignored.
"""

_CPU = {"batch_size": 256, "learning_rate": 1e-3, "warmup_steps": 300, "eval_freq": 2_000, "save_freq": 1_000}
_TINY = {"channels": (32, 64), "kernel_size": 3, "time_dim": 64}

PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "small": {"channels": (32, 64, 128), "time_dim": 32},
    "tiny": _TINY,
    "cpu": {**_TINY, **_CPU, "hidden_sizes": (256, 256, 256), "total_steps": 10_000},
}
"""Settings that differ from the defaults. `full`: about 4.5 million parameters, for a GPU; `small`: 1
million; `tiny`: 0.25 million; `cpu`: `tiny` with smaller batches and fewer steps, for two cores."""
_OF_ALGO: dict[str, dict[str, Any]] = {
    "bc": {"num_obs_steps": 1, "chunk_size": 1, "num_action_steps": 1, "learning_rate": 1e-3},
    "diffusion": {"sampling_steps": 10},
    "flow": {"sampling_steps": 2},
    "act": {"num_obs_steps": 1, "chunk_size": 16},
}
_OF_BOTH: dict[tuple[str, str], dict[str, Any]] = {
    ("bc", "cpu"): {"total_steps": 20_000},
    ("act", "full"): {"learning_rate": 1e-4},
    ("act", "cpu"): {"batch_size": 64, "total_steps": 6_000},
}


def check_sampling_steps(sampling_steps: int, diffusion_steps: int) -> None:
    """Raise `ConfigError` if a diffusion policy with `diffusion_steps` noise levels cannot be sampled in
    `sampling_steps` steps.

    A network that predicts noise cannot remove all of it in one step: the result is clipped noise.
    """
    if sampling_steps > diffusion_steps:
        raise ConfigError(
            f"sampling_steps must be at most diffusion_steps ({diffusion_steps}), not {sampling_steps}"
        )
    if sampling_steps < 2:
        raise ConfigError(
            f"sampling_steps must be at least 2 for diffusion, not {sampling_steps}: one step gives clipped"
            " noise; flow matching can be sampled in one"
        )


@dataclass(frozen=True)
class ImitateCfg(CheckedCfg):
    """Settings of imitation training."""

    algo: str = "flow"
    """Algorithm: bc (MLP, mean squared error), diffusion (Diffusion Policy), flow (flow matching) or act
    (LeRobot's ACT)."""
    preset: str = "full"
    """Source of the other defaults: full (for a GPU), small, tiny or cpu. Without the flag: cpu on a CPU,
    otherwise full."""

    # --- data ---
    n_episodes: PositiveInt | None = None
    """Number of demonstrations to use, from the first on. None: all."""
    obs_keys: Names = ("state",)
    """Observations that the policy reads, concatenated in this order."""
    val_share: Annotated[float, Interval(ge=0.0, le=0.5)] = 0.1
    """Share of the episodes used for validation; 0 uses none."""
    pad_obs_to: int | None = None
    """Pad observations to this size with the constant pose of the robot's base at index 18, as in flat states
    of ManiSkill 2. The trained policy pads its observations, too. None: no padding."""
    normalize_actions: bool = True
    """Scale the range of the demonstrated actions to [-1, 1] for the network, instead of using the env's
    normalised actions."""

    # --- initialisation ---
    init_from: str = ""
    """Model to fine-tune, including its settings and normalisation: a folder or file written by `imitate` or
    `convert`."""
    adapt_obs: bool = False
    """With --init-from: reinitialise the weights that read the observations, which may then differ from the
    model's."""

    # --- policy ---
    num_obs_steps: ChunkLength = 2
    """Number of observations that the policy reads, including the current one."""
    chunk_size: ChunkLength = 16
    """Number of predicted actions from the current step on."""
    num_action_steps: ChunkLength = 8
    """Number of actions of a chunk that are executed before the next prediction."""
    num_past_actions: NonNegativeInt = 0
    """Number of predicted actions before the current step, which are never executed. Public checkpoints of
    Diffusion Policy have num_obs_steps − 1."""
    hidden_sizes: LayerSizes = (512, 512, 512)
    """bc: width of each hidden layer."""
    channels: tuple[int, ...] = (64, 128, 256)
    """diffusion, flow: channels of each level of the U-Net, multiples of 8."""
    kernel_size: int = 5
    """diffusion, flow: kernel size of the convolutions [steps]."""
    time_dim: int = 96
    """diffusion, flow: size of the embeddings of time and observations."""
    layout: Literal["own", "public"] = "own"
    """diffusion, flow: layout of the U-Net: own, or public, that of Diffusion Policy's checkpoints
    (`ConditionalUnet1D`)."""
    diffusion_steps: ChunkLength = 100
    """diffusion: number of noise levels in training."""
    sampling_steps: PositiveInt = 10
    """Denoising steps: DDIM for diffusion (at least 2), Euler for flow. Can be changed when the policy is
    used."""

    # --- training ---
    total_steps: PositiveInt = 20_000
    """Number of gradient steps."""
    batch_size: BatchSize = 1024
    """Number of windows per gradient step."""
    learning_rate: PositiveFloat = 3e-4
    """Learning rate of Adam after the warm-up; it decays to 0 along a cosine."""
    warmup_steps: NonNegativeInt = 500
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: PositiveFloat = 1.0
    """Maximum norm of the gradient of all parameters."""
    ema_power: PositiveFloat = 0.75
    """Power of the decay of the averaged weights, 1 − (1 + t)^−power after step t, at most 0.9999."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, as in AdamW."""
    obs_noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise added to the normalised observations in training."""
    amp: bool = False
    """Compute the loss in bfloat16 where it is safe (automatic mixed precision)."""
    compile: bool = False
    """Compile the network with torch.compile. Intended for GPUs."""
    seed: TorchSeed = 1
    """Seed of the weights, batches, noise and choice of validation episodes."""
    device: str = "cpu"
    """Device of the data and the network: cpu, cuda, cuda:1, …"""
    torch_threads: NonNegativeInt = 0
    """CPU threads of the network; 0 means OMP_NUM_THREADS, or else half of the cores, at most 4. Rounding
    depends on the number."""

    # --- evaluation and output ---
    log_freq: PositiveInt = 100
    """Gradient steps between two rows of metrics."""
    val_freq: PositiveInt = 500
    """Gradient steps between two validations."""
    eval_freq: NonNegativeInt = 1_000
    """Gradient steps between two evaluations of success in simulation; 0 disables them."""
    eval_episodes: PositiveInt = 32
    """Number of episodes per evaluation, on fixed seeds."""
    eval_share: Share = 0.2
    """Maximum share of the time for evaluations; those that would exceed it are skipped, except the last."""
    num_threads: NumThreads = 0
    """Simulator threads; 0 means OMP_NUM_THREADS, or else one per CPU core."""
    save_freq: PositiveInt = 1_000
    """Gradient steps between two checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algo not in ALGOS:
            raise UnknownNameError("algorithm", self.algo, ALGOS)
        if self.preset not in PRESETS:
            raise UnknownNameError("preset", self.preset, PRESETS)
        if self.num_action_steps > self.chunk_size:
            raise ConfigError(
                f"num_action_steps must be at most chunk_size ({self.chunk_size}), not "
                f"{self.num_action_steps}"
            )
        if self.adapt_obs and not self.init_from:
            raise ConfigError("adapt_obs needs a model to fine-tune: set it with --init-from MODEL")
        if self.algo == "diffusion":
            check_sampling_steps(self.sampling_steps, self.diffusion_steps)

    @classmethod
    def default(cls, algo: str = "flow", preset: str | None = None, device: str = "cpu") -> ImitateCfg:
        """The default settings of an algorithm, with a preset (default: the one for the device)."""
        preset = preset or ("cpu" if device == "cpu" else "full")
        values = {**PRESETS.get(preset, {}), **_OF_ALGO.get(algo, {}), **_OF_BOTH.get((algo, preset), {})}
        return cls(**{**values, "algo": algo, "preset": preset, "device": device})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: tuples become lists."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of gradient step `step` (from 0): a linear rise, then a half cosine down to 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
