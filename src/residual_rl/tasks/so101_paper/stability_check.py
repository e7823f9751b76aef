"""The stability check of `so101-paper`: random actions, with every physics step recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from residual_rl.envs.sanity_checks import DOCTOR_SEED, Check, MakePolicy
from residual_rl.envs.task_env import TaskEnv
from residual_rl.errors import NonFiniteError
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.mujoco_env import SO101PaperPhysics, make

SHEET_QPOS = slice(6, 13)
"""The sheet's pose in `qpos`."""


class RolloutRecorder:
    """Wraps a `Batch` and records its rollouts' controls and, for each physics step, `fields`."""

    fields: tuple[str, ...] = ()
    """Names of the recorded fields."""

    def __init__(self, batch: Any):
        self._batch = batch
        self.control = np.zeros((0, 0, 0))
        """[n, steps, J]: controls of the last rollout."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def rollout(
        self,
        nstep: int,
        control: np.ndarray,
        record: Sequence[str] = (),  # noqa: ARG002
        ids: np.ndarray | None = None,
    ) -> None:
        """`Batch.rollout`, recorded."""
        self.control = control.copy()
        self.on_rollout(self._batch.rollout(nstep, control, record=self.fields, ids=ids))

    def on_rollout(self, records: dict[str, np.ndarray]) -> None:
        """Called with the recorded `fields` by name, [n, steps, …] each."""


class Monitor(RolloutRecorder):
    """Keeps the extremes of speeds, positions and torques over all envs and physics steps."""

    fields = ("qpos", "qvel", "actuator_force", "qfrc_constraint")

    def __init__(self, batch: Any):
        super().__init__(batch)
        self._worst = np.zeros(7)

    def on_rollout(self, records: dict[str, np.ndarray]) -> None:
        """Update the extremes."""
        qpos, qvel, servo, constraint = (records[name] for name in self.fields)
        position = qpos[..., SHEET_QPOS][..., :3]
        now = [
            np.abs(qvel[..., :6]).max(),
            np.linalg.norm(qvel[..., 6:9], axis=-1).max(),
            -1e3 * position[..., 2].min(),
            1e3 * position[..., 2].max(),
            np.linalg.norm(position[..., :2], axis=-1).max(),
            np.abs(servo).max(),
            np.abs(constraint[..., :6]).max(),
        ]
        self._worst = np.maximum(self._worst, now)

    def extremes(self) -> dict[str, tuple[float, float, str]]:
        """By name: the extreme, its limit, and the unit of both."""
        limits = {
            "joint speed": (6.0, "rad/s"),
            "speed of the sheet": (2.0, "m/s"),
            "sheet's centre below the table": (8.0, "mm"),
            "sheet's centre above the table": (20.0, "mm"),
            "sheet's distance from the base": (0.8, "m"),
            "servo torque": (3.5, "N m"),
            "torque of contacts on a joint": (40.0, "N m"),
        }
        return {name: (float(value), *limits[name]) for name, value in zip(limits, self._worst, strict=True)}


def check_stability(
    cfg: SO101PaperCfg, make_policy: MakePolicy, num_steps: int, num_envs: int = 25
) -> Iterator[Check]:
    """Check that every physics step stays within limits under four kinds of random actions.

    The actions are white noise, all joints at full speed for 20 steps at a time, correlated noise, and
    correlated noise on top of a policy that keeps the finger on the sheet.
    """
    env = make(cfg, num_envs)
    what = f"{num_envs * num_steps:,} random steps"
    physics, presser = physics_of(env), make_policy("jacobian-yaw", env)
    obs, _ = env.reset(seed=DOCTOR_SEED)
    physics.batch = monitor = Monitor(physics.batch)
    generator = np.random.default_rng(DOCTOR_SEED)
    kind = np.arange(num_envs)[:, None] % 4
    held = correlated = np.zeros((num_envs, 6))
    episodes = 0
    try:
        for step in range(num_steps):
            white = generator.uniform(-1.0, 1.0, (num_envs, 6))
            held = np.sign(white) if step % 20 == 0 else held
            correlated = 0.95 * correlated + 0.22 * generator.standard_normal((num_envs, 6))
            pressing = presser.act(obs).numpy() + 0.6 * correlated
            action = np.select([kind == i for i in range(4)], [white, held, correlated, pressing])
            obs, _, _, _, info = env.step(torch.from_numpy(action.astype(np.float32)))
            ended = info["_final_info"]
            episodes += int(ended.sum())
            if ended.any():
                presser.reset(ended)
    except NonFiniteError as error:
        yield Check(what, "finite throughout", str(error), False)
        return
    finally:
        env.close()
    yield Check(what, "finite throughout", f"finite, {episodes} episodes ended", True)
    for name, (value, limit, unit) in monitor.extremes().items():
        yield Check(name, f"below {limit:g} {unit}", f"{value:.3g} {unit}", value < limit)


def physics_of(env: TaskEnv) -> SO101PaperPhysics:
    """The MuJoCo physics of `env`."""
    assert isinstance(env.physics, SO101PaperPhysics)
    return env.physics
