"""Many MuJoCo envs stepped together on a C++ thread pool (`mujoco.batch.Batch`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.task import Quantities
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.types import State
from residual_rl.utils.mujoco_library import mujoco
from residual_rl.utils.threads import simulator_threads

if TYPE_CHECKING:
    from residual_rl.envs.mujoco.renderer import CameraRenderer


class MujocoPhysics(ABC):
    """B envs of one compiled model. A subclass applies the draws of an episode in `write_episode`.

    Between two policy steps the joint targets move linearly, tick by tick.

    Args:
        model: actuators must be position servos, and keyframe 0 must be the start of an episode.
        num_envs: B.
        tick_steps: physics steps of each control tick between two policy steps, e.g. `(6, 5, 6, 5, 6, 5)`.
        sensors: for each quantity, the names of its sensors in order; they must be consecutive in the model.
        num_threads: number of threads; 0 means OMP_NUM_THREADS, or else one per CPU core.
    """

    deterministic = True

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        tick_steps: tuple[int, ...],
        sensors: dict[str, list[str]],
        num_threads: int = 0,
    ):
        if num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1, not {num_envs}")
        if num_threads < 0:
            raise ConfigError(f"num_threads must be at least 0, not {num_threads}")
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.batch = mujoco.batch.Batch(
            model, num_envs, nthread=num_threads or simulator_threads(), persistent=True
        )
        self._tick_steps = tick_steps
        self._ramp = np.repeat(np.arange(1, len(tick_steps) + 1) / len(tick_steps), tick_steps)[:, None]
        self.control_hz = 1.0 / (model.opt.timestep * sum(tick_steps))
        self._ctrl = self.batch.bind("ctrl")
        self._qpos = self.batch.bind("qpos")
        self._sensordata = self.batch.bind("sensordata")
        self._slices = {name: _sensor_slice(model, names) for name, names in sensors.items()}
        self._renderers: dict[tuple[tuple[str, ...], tuple[int, int], bool], CameraRenderer] = {}
        self._state_before = np.empty_like(self.batch.state)

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model, shared by all envs except for the fields that vary by episode."""
        return self.batch.model

    @abstractmethod
    def write_episode(self, env_ids: np.ndarray, episode: Quantities) -> None:
        """Write the start state and the varied model fields of the envs `env_ids` [n].

        Their state is keyframe 0 when this is called.
        """

    def reset(self, env_ids: Tensor, episode: Quantities) -> None:
        ids = env_ids.numpy()
        self.batch.reset(ids, keyframe=0, stage=mujoco.mjtStage.mjSTAGE_NONE)
        self.write_episode(ids, episode)
        self.batch.forward(ids, stage=mujoco.mjtStage.mjSTAGE_VEL)

    def step(self, joint_target: Tensor, env_ids: Tensor | None = None) -> Tensor | None:
        ids = None if env_ids is None else env_ids.numpy()
        # One call for all physics steps: synchronising the envs after each tick made stepping 10 % slower.
        self.follow(self.commands(joint_target)[slice(None) if ids is None else ids], ids)
        return None

    def follow(self, commands: NDArray[np.float64], ids: NDArray[np.int64] | None = None) -> None:
        """Advance the envs `ids` [n] (None: all) by one physics step per servo command [n, steps, J].

        Raises `NonFiniteError` if an env diverges.
        """
        np.copyto(self._state_before, self.batch.state)
        self.batch.rollout(commands.shape[1], commands, record=(), ids=ids)
        self.batch.forward(ids, stage=mujoco.mjtStage.mjSTAGE_VEL)
        self._raise_if_diverged()

    def commands(self, joint_target: Tensor) -> NDArray[np.float64]:
        """Servo commands [B, steps, J] on the way to `joint_target` [B, J]: a linear ramp in ticks."""
        start, end = self._ctrl[:, None], joint_target.numpy()[:, None]
        commands = start + self._ramp * (end - start)
        # The last tick commands the target exactly: start + 1.0 * (end - start) may differ in the last bit.
        commands[:, -self._tick_steps[-1] :] = end
        return commands

    def read(self) -> Quantities:
        data = torch.from_numpy(self._sensordata.copy())
        return {name: data[:, where] for name, where in self._slices.items()}

    def _raise_if_diverged(self) -> None:
        # MuJoCo resets a diverged env itself, so the warning is the only trace. Any other warning also ends
        # the rollout of the env.
        counts = self.batch.warning[:, :, 1]
        if counts.any():
            diverged = np.flatnonzero(counts.any(1)).tolist()
            kinds = np.flatnonzero(counts.any(0)).tolist()
            names = ", ".join(mujoco.mjtWarning(kind).name.removeprefix("mjWARN_") for kind in kinds)
            raise NonFiniteError(
                f"the simulation diverged (NaN or huge values; MuJoCo warns {names}) in env(s) {diverged[:8]}"
            )

    def scenes(self) -> Tensor:
        return torch.from_numpy(self._qpos.copy())

    def render(
        self, scenes: Tensor, cameras: Sequence[str], size: tuple[int, int], smooth: bool = False
    ) -> dict[str, NDArray[np.uint8]]:
        # Imported here so that OpenGL is needed only for rendering.
        from residual_rl.envs.mujoco.renderer import CameraRenderer

        key = (tuple(cameras), size, smooth)
        if key not in self._renderers:
            samples = 4 if smooth else 0
            self._renderers[key] = CameraRenderer(
                self.model, cameras, *size, num_threads=self.batch.nthread, samples=samples
            )
        return self._renderers[key].render(scenes.numpy())

    def state_dict(self) -> State:
        return {"state": torch.from_numpy(self.batch.state.copy())}

    def state_before(self) -> State:
        return {"state": torch.from_numpy(self._state_before.copy())}

    def load_state_dict(self, state: State) -> None:
        saved = state["state"].numpy()
        if saved.shape != self.batch.state.shape:
            wanted = self.batch.state.shape
            raise ConfigError(f"the saved physics state has shape {saved.shape}, this model needs {wanted}")
        self.set_env_states(torch.arange(self.num_envs), {"mujoco": state["state"]})

    def env_states(self) -> Quantities:
        return {"mujoco": torch.from_numpy(self.batch.state.copy())}

    def set_env_states(self, env_ids: Tensor, states: Quantities) -> None:
        ids = env_ids.numpy()
        self.batch.state[ids] = states["mujoco"].numpy()
        self.batch.forward(ids, stage=mujoco.mjtStage.mjSTAGE_VEL)

    def close(self) -> None:
        while self._renderers:
            self._renderers.popitem()[1].close()


def _sensor_slice(model: mujoco.MjModel, names: list[str]) -> slice:
    """The slice of `sensordata` with the consecutive sensors `names`."""
    sensors = [model.sensor(name) for name in names]
    start = stop = int(sensors[0].adr[0])
    for sensor in sensors:
        if int(sensor.adr[0]) != stop:
            raise ConfigError(f"sensors {names} are not consecutive in the model")
        stop += int(sensor.dim[0])
    return slice(start, stop)
