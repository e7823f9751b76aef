"""MuJoCo, an optional dependency: `from residual_rl.utils.mujoco_library import mujoco`.

Where it is missing or too old, importing this module raises `MissingDependencyError`. `mujoco.batch` is
imported too.
"""

from residual_rl.errors import MissingDependencyError

OLDEST = (4, 0)
"""The oldest supported version; earlier ones have no `mujoco.batch`."""
_INSTALL = "install it with `pip install 'residual-rl[mujoco]'`"

try:
    import mujoco
except ImportError as error:
    raise MissingDependencyError("MuJoCo", f"{_INSTALL} ({error})") from error
if tuple(int(part) for part in mujoco.__version__.split(".")[:2]) < OLDEST:
    raise MissingDependencyError(
        f"MuJoCo {'.'.join(map(str, OLDEST))}", f"{_INSTALL}, which replaces version {mujoco.__version__}"
    )
import mujoco.batch  # noqa: E402

__all__ = ["mujoco"]
