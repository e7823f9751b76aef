"""MuJoCo's viewer in real time, and camera images as PNG files."""

from __future__ import annotations

import functools
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.utils.files import make_folder, replacing

if TYPE_CHECKING:
    from residual_rl.evaluation.evaluate import Policy
    from residual_rl.residual_env import ResidualEnv

_PAUSE = 0.7
"""How long the last frame of an episode is shown [s]."""


@functools.cache
def require_display() -> None:
    """Raise `ConfigError` if no window can be opened, in which case MuJoCo's viewer would wait forever."""
    import glfw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", glfw.GLFWError)
        if glfw.init():  # not terminated, because viewers use it later
            return
        problem = (glfw.get_error()[1] or b"GLFW cannot be initialized").decode()  # type: ignore[union-attr]
    raise ConfigError(
        f"the viewer needs a display: {problem}; without one, `residual-rl view TASK --cameras DIR` writes "
        "images, and `--video FILE` a video"
    )


class LiveViewer:
    """MuJoCo's viewer, showing scenes in real time.

    Args:
        model: the MuJoCo model.
        hz: maximum number of scenes per second; 0 for no limit.

    Raises:
        ConfigError: no window can be opened.
    """

    def __init__(self, model: Any, hz: float = 0.0):
        require_display()
        import mujoco
        import mujoco.viewer

        self._model = model
        self._data = mujoco.MjData(model)
        self._forward = mujoco.mj_forward
        self._period = 1.0 / hz if hz else 0.0
        self._next = 0.0
        before = set(threading.enumerate())
        try:
            self._handle = mujoco.viewer.launch_passive(
                model, self._data, show_left_ui=False, show_right_ui=False
            )
        except RuntimeError as error:  # on macOS a window needs the main thread
            raise ConfigError(f"the viewer cannot be started: {error}") from error
        self._threads = set(threading.enumerate()) - before

    @property
    def is_open(self) -> bool:
        """Whether the user has not closed the window."""
        return self._handle.is_running()

    def show(self, scene: Tensor) -> None:
        """Draw `scene` [S], one row of `VecEnv.scenes()`, and wait as long as `hz` requires."""
        if not self.is_open:
            return
        with self._handle.lock():
            self._data.qpos[:] = scene.numpy()
            self._forward(self._model, self._data)
        self._handle.sync()
        time.sleep(max(self._next - time.perf_counter(), 0.0))
        self._next = max(self._next, time.perf_counter()) + self._period

    def close(self) -> None:
        """Close the window. May be called more than once."""
        self._handle.close()
        for thread in self._threads:  # Python may crash if it exits while the viewer's thread draws
            thread.join(timeout=10.0)

    def __enter__(self) -> LiveViewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def watch(
    env: ResidualEnv,
    policy: Policy,
    seed: int,
    viewer: LiveViewer,
    report: Callable[[str], None],
    num_episodes: int | None = None,
) -> None:
    """Show episodes with the seeds `seed`, `seed + 1`, … in the first env.

    It ends when the window is closed or after `num_episodes`. `report` is called with a line at the end of
    each episode.
    """
    done = 0
    env.reset(seed)
    for info in _steps(env, policy):
        if not viewer.is_open:
            return
        if not info["_final_info"][0]:
            viewer.show(env.vec_env.scenes()[0])
            continue
        # The episode has ended: report it, and show its last frame for a moment.
        final = {name: value[0].item() for name, value in info["final_info"].items()}
        outcome = "success" if final["success_once"] else "no success"
        report(
            f"episode {final['seed']}: {outcome} after {final['episode_length']} steps, "
            f"return {final['episode_return']:.2f}"
        )
        viewer.show(info["final_scenes"][0])
        time.sleep(_PAUSE)
        done += 1
        if done == num_episodes:
            return


def _steps(env: ResidualEnv, policy: Policy) -> Iterator[dict[str, Any]]:
    """The info of each env step, without end."""
    while True:
        yield from (info for _, info in env.steps(policy(env.obs)))


def save_cameras(env: ResidualEnv, folder: Path, size: tuple[int, int]) -> list[Path]:
    """Write the current image of each camera of the first env to `folder/CAMERA.png`, or of the default view
    to `folder/default.png` if the env names no cameras.

    `size` is height and width [pixels]. Returns the paths. Raises `WriteError`, and `ConfigError` for an env
    that cannot be rendered.
    """
    from PIL import Image

    scenes = env.vec_env.scenes()[:1]
    make_folder(folder)
    paths = []
    for name in env.vec_env.cameras or (None,):
        path = folder / f"{name or 'default'}.png"
        image = env.vec_env.render_scenes(scenes, size, name)[0]
        with replacing(path) as temporary:
            Image.fromarray(image).save(temporary, format="PNG")
        paths.append(path)
    return paths
