"""Training of imitation policies: sample windows, step, average weights, validate, evaluate, save."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from residual_rl.base_policies.il import ILCfg
from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import ConfigError
from residual_rl.evaluation.training_curves import save_curves
from residual_rl.factory import usable_device
from residual_rl.imitation.config import ImitateCfg
from residual_rl.imitation.fine_tuning import (
    check_initial,
    check_observations,
    initial_statistics,
    initial_weights,
    warn_out_of_range,
)
from residual_rl.imitation.model import LAST_FILE, MODEL_FILE, ImitationModel, ModelSettings
from residual_rl.imitation.normalization import Statistics
from residual_rl.imitation.obs_padding import padding_to
from residual_rl.imitation.policy import ILPolicy
from residual_rl.imitation.success_evaluation import SuccessEvaluation
from residual_rl.imitation.trainer_state import Progress, ResumableTrainer
from residual_rl.imitation.windows import Windows, make_windows, split_episodes
from residual_rl.learners.common.compilation import compiled
from residual_rl.learners.common.ema import ActorEMA
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.logger import Logger
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.runs.run_folder import RunFolder
from residual_rl.types import BasePolicy, Metrics, State
from residual_rl.utils.files import write_json
from residual_rl.utils.signals import stop_signals
from residual_rl.utils.text import shell_command
from residual_rl.utils.threads import network_threads

VAL_WINDOWS = 4096
"""Maximum number of validation windows, evenly spaced."""
_log = logging.getLogger(__name__)


def train(cfg: ImitateCfg, demos: Path, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train on the demonstrations `demos` in the run folder `out`, or resume there; `config.ALGOS` documents
    the result.

    Invalid settings and damaged files raise an error before anything is written.
    """
    trainer = Trainer(cfg, demos, RunFolder(out))
    try:
        config = {"demos": str(demos), **cfg.to_dict()}
        with trainer.folder.resume() if resume else trainer.folder.start(config):
            if resume:
                trainer.resume()
                write_json(trainer.folder.config_file, config)
            return trainer.learn()
    finally:
        trainer.close()


class Trainer(ResumableTrainer):
    """Trains an imitation policy.

    Args:
        cfg: the settings.
        demos: file of demonstrations, which is read by the constructor.
        folder: the run folder. It must be started or resumed before `learn`; the constructor writes nothing.
    """

    def __init__(self, cfg: ImitateCfg, demos: Path, folder: RunFolder):
        # Settings and data
        self.cfg = cfg
        self.folder = folder
        self.device = usable_device(cfg.device)
        torch.set_num_threads(cfg.torch_threads or network_threads())
        self.initial = ImitationModel.load(cfg.init_from) if cfg.init_from else None
        """The model to fine-tune."""
        self._read(demos)
        # Network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            fresh = ImitationModel(self.settings, self.statistics)
        if self.initial is not None:
            initial_weights(fresh, self.initial, cfg.adapt_obs)
        self.algorithm = fresh.algorithm
        self.network = fresh.network.to(self.device).requires_grad_(True).train()
        # Optimiser and weight average
        named = self.network.named_parameters()
        self.optimizer = FlatAdam(
            named, cfg.learning_rate, cfg.max_grad_norm, epsilon=1e-8, weight_decay=cfg.weight_decay
        )
        self.ema = ActorEMA(self.network, cfg.ema_power)
        self._predict = compiled(self.network, cfg.compile)
        self.generator = torch.Generator(self.device).manual_seed(cfg.seed)
        # Observation noise only where observations vary
        varies = (self.statistics.obs_std > 0.0).float()
        if self.settings.obs_padding is not None:
            varies = self.settings.obs_padding.erased(varies)
        self._varies = varies.to(self.device)
        # Progress
        self.progress = Progress()
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_count = 0
        self._note = ""
        self.checkpoints = CheckpointFolder(folder.checkpoints, cfg.keep_checkpoints)
        self.wall_time = 0.0
        """Duration of all sessions [s]."""
        self._resumed = False
        if self.evaluation is not None:
            self.evaluation.check(self.policy(), self.settings.action_dim)

    def close(self) -> None:
        """Close the evaluation envs."""
        if self.evaluation is not None:
            self.evaluation.close()

    def learn(self) -> dict[str, Any]:
        """Train to the end, or until SIGINT or SIGTERM. Returns the summary."""
        cfg = self.cfg
        progress = self.progress
        session = time.perf_counter() - self.wall_time
        resume_step = progress.step if self._resumed else None
        with (
            stop_signals() as stop,
            Logger(self.folder.path, resume_step=resume_step) as logger,
            self._bar() as bar,
        ):
            while progress.step < cfg.total_steps and stop.signal is None:
                self._step()
                metrics: Metrics = {}
                if self._due(cfg.log_freq):
                    metrics |= self._training_metrics()
                if self._due(cfg.val_freq) or self._due(cfg.eval_freq):
                    metrics |= self._assess()
                if metrics:
                    self.wall_time = time.perf_counter() - session
                    spent = self.evaluation.spent if self.evaluation else 0.0
                    logger.log(
                        {**metrics, "time/wall": self.wall_time, "time/evaluation": spent}, progress.step
                    )
                bar.update(progress.step, progress.success, self._note)
                if self._due(cfg.save_freq) or stop.signal is not None:
                    self.optimizer.raise_if_nonfinite()
                    self.checkpoints.save(progress.step, self.state_dict())
            self.wall_time = time.perf_counter() - session
            # Inside `stop_signals`, so that another SIGTERM cannot interrupt it.
            return self._finish(stop.signal)

    # --- data -----------------------------------------------------------------------------------------------

    def _read(self, path: Path) -> None:
        """Read the demonstrations: normalised windows on the device, the model's settings, and the evaluation
        envs."""
        cfg = self.cfg
        # Episodes
        with Demonstrations.open(path) as demos:
            count = len(demos) if cfg.n_episodes is None else cfg.n_episodes
            if count > len(demos):
                raise ConfigError(f"n_episodes is {count}, but {path} has {len(demos)} episodes")
            if not count:
                raise ConfigError(f"{path} has no episodes")
            train_episodes, val_episodes = split_episodes(count, cfg.val_share, cfg.seed)
            read = (demos.episode(i, cfg.obs_keys) for i in range(count))
            pairs = [(demo.obs, demo.intended_actions) for demo in read]
            shapes = {key: tuple(demos.obs_shapes[key]) for key in cfg.obs_keys}
            task_id, task_settings, action_dim = demos.task_id, demos.task_settings, demos.action_dim
            info = demos.info
        # Windows
        self.episodes = {"train": len(train_episodes), "val": len(val_episodes)}
        windows = make_windows([pairs[i] for i in train_episodes], cfg.obs_keys)
        if self.initial is not None:
            check_observations(self.initial, cfg, windows.obs.shape[1])
        padding = padding_to(cfg.pad_obs_to, windows.obs.shape[1])
        windows = windows.padded(padding)
        # Evaluation envs
        self.evaluation: SuccessEvaluation | None = None
        action_unit = info.get("action_unit")
        action_unit_name = info.get("action_unit_name")
        if cfg.eval_freq and not demos.names_task:
            _log.warning(
                "%s names no task, so success is not evaluated during training; `%s` adds a task",
                path,
                shell_command("demos", "convert", path, "--task", "TASK", "--output", "FILE"),
            )
        elif cfg.eval_freq:
            self.evaluation = SuccessEvaluation(demos, cfg.eval_episodes, cfg.num_threads, cfg.eval_share)
            action_unit = self.evaluation.env.action_unit.tolist()
            action_unit_name = self.evaluation.env.action_unit_name
        # Settings of the model
        unet: dict[str, Any] = {
            "channels": cfg.channels,
            "kernel_size": cfg.kernel_size,
            "time_dim": cfg.time_dim,
        }
        if cfg.layout != "own":
            unet["layout"] = cfg.layout
        network: dict[str, dict[str, Any]] = {
            "bc": {"hidden_sizes": cfg.hidden_sizes},
            "flow": unet,
            "diffusion": {**unet, "diffusion_steps": cfg.diffusion_steps},
        }
        self.settings = ModelSettings(
            algo=cfg.algo,
            network=network[cfg.algo],
            obs_keys=cfg.obs_keys,
            obs_shapes=shapes,
            action_dim=action_dim,
            num_obs_steps=cfg.num_obs_steps,
            chunk_size=cfg.chunk_size,
            num_action_steps=cfg.num_action_steps,
            sampling_steps=cfg.sampling_steps,
            task_id=task_id,
            task_settings=task_settings,
            action_unit=None if action_unit is None else tuple(action_unit),
            action_unit_name=action_unit_name,
            num_past_actions=cfg.num_past_actions,
            obs_padding=padding,
        )
        # Normalisation
        self.statistics = Statistics.of(windows.obs, windows.actions)
        if not cfg.normalize_actions:
            self.statistics = self.statistics.with_raw_actions()
        if self.initial is not None:
            check_initial(self.initial, self.settings, self.statistics)
            self.statistics = initial_statistics(self.initial, self.statistics, cfg.adapt_obs)
        warn_out_of_range(self.statistics, windows.actions)
        self.windows = windows.normalized(self.statistics, self.device)
        self.val_windows: Windows | None = None
        if val_episodes:
            val_windows = make_windows([pairs[i] for i in val_episodes], cfg.obs_keys).padded(padding)
            self.val_windows = val_windows.normalized(self.statistics, self.device)

    # --- one step -------------------------------------------------------------------------------------------

    def _step(self) -> None:
        cfg, step = self.cfg, self.progress.step
        chosen = torch.randint(
            len(self.windows), (cfg.batch_size,), generator=self.generator, device=self.device
        )
        loss = self._loss(self._predict, self.windows, chosen, self.generator, cfg.obs_noise)
        self.optimizer.learning_rate.fill_(cfg.learning_rate_at(step))
        self.optimizer.step(torch.autograd.grad(loss, self.optimizer.parameters))
        self.ema.update(step)
        self._loss_sum, self._loss_count = self._loss_sum + loss.detach(), self._loss_count + 1
        self.progress.step += 1

    def _loss(
        self,
        predict: Any,
        windows: Windows,
        chosen: Tensor,
        generator: torch.Generator,
        obs_noise: float = 0.0,
    ) -> Tensor:
        cfg = self.cfg
        obs, actions, valid = windows.at(chosen, cfg.num_obs_steps, cfg.chunk_size, cfg.num_past_actions)
        if obs_noise:
            noise = torch.randn(obs.shape, generator=generator, device=obs.device)
            obs = obs + obs_noise * self._varies * noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=cfg.amp):
            return self.algorithm.loss(predict, obs.flatten(1), actions, valid, generator)

    def _training_metrics(self) -> Metrics:
        """Mean loss since the last call, and the learning rate."""
        self.optimizer.raise_if_nonfinite()
        loss = float(self._loss_sum) / self._loss_count
        self._loss_sum = torch.zeros_like(self._loss_sum)
        self._loss_count = 0
        self._note = f"loss {loss:.4f}"
        return {"train/loss": loss, "train/learning_rate": float(self.optimizer.learning_rate)}

    def _due(self, freq: int) -> bool:
        return freq > 0 and (self.progress.step % freq == 0 or self.progress.step >= self.cfg.total_steps)

    def _bar(self) -> ProgressBar:
        return ProgressBar(self.cfg.total_steps, self.progress.step, title="imitate")

    # --- evaluation -----------------------------------------------------------------------------------------

    def model(self) -> ImitationModel:
        """The current model with the averaged weights, on the CPU."""
        weights: State = {name: tensor.cpu() for name, tensor in self.ema.weights.items()}
        return ImitationModel(self.settings, self.statistics, weights, self.progress.step)

    def policy(self) -> BasePolicy:
        """The current model as a base policy, for evaluation."""
        return ILPolicy(ILCfg(), self.model(), self.device)

    def _assess(self) -> Metrics:
        """Validate, evaluate if it is due and within the budget, and save the model if it is the best so
        far."""
        progress, metrics = self.progress, {}
        self.optimizer.raise_if_nonfinite()
        val_loss = success = None
        if self.val_windows is not None:
            val_loss = metrics["val/loss"] = self._validate(self.val_windows)
        last = progress.step >= self.cfg.total_steps
        if (
            self.evaluation
            and self._due(self.cfg.eval_freq)
            and (last or self.evaluation.affordable(progress.step))
        ):
            metrics |= self.evaluation(self.policy())
            success = metrics["eval/success_rate"]
        if self._better(success, val_loss):
            progress.success, progress.val_loss, progress.has_best = success, val_loss, True
            self.model().save(self.folder.path / MODEL_FILE)
        return metrics

    def _better(self, success: float | None, val_loss: float | None) -> bool:
        """Whether the model is the best so far: by success rate if there are evaluations, then by validation
        loss, then newest."""
        progress = self.progress
        if self.evaluation is not None and success is None:
            return False
        if not progress.has_best:
            return True
        then = (progress.success or 0.0, -(progress.val_loss if progress.val_loss is not None else math.inf))
        return ((success or 0.0), -(val_loss if val_loss is not None else math.inf)) >= then

    @torch.no_grad()
    def _validate(self, windows: Windows) -> float:
        """The loss of the averaged weights, with the same noise in each call."""
        network = self.model().network.to(self.device)
        count = min(len(windows), VAL_WINDOWS)
        chosen = torch.linspace(0, len(windows) - 1, count, device=self.device).long()
        generator = torch.Generator(self.device).manual_seed(self.cfg.seed)
        losses = [
            self._loss(network, windows, part, generator) * len(part)
            for part in chosen.split(self.cfg.batch_size)
        ]
        return float(sum(losses)) / count

    # --- saving ---------------------------------------------------------------------------------------------

    def _finish(self, stopped_by: int | None) -> dict[str, Any]:
        progress, path = self.progress, self.folder.path
        model = self.model()
        model.save(path / LAST_FILE)
        if not progress.has_best:
            model.save(path / MODEL_FILE)
        finished = progress.step >= self.cfg.total_steps
        summary = {
            "finished": finished,
            "signal": stopped_by,
            "steps": progress.step,
            "wall_time": self.wall_time,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "episodes": self.episodes,
            "best_success_rate": progress.success,
            "best_val_loss": progress.val_loss,
            "model": MODEL_FILE,
            "base_policy": "il",
            "task": self.settings.task_id,
            "task_settings": self.settings.task_settings,
        }
        if finished:
            write_json(self.folder.summary_file, summary)
        save_curves(path)
        return summary
