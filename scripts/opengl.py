"""Check that MuJoCo can render without a display; if not, try to install an OpenGL library.

Only videos and camera images need OpenGL, so a missing library is reported in one line and is not an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

BACKENDS = ("egl", "osmesa") if sys.platform == "linux" else ("glfw",)
"""Values of MUJOCO_GL that render without a display, in the order in which the package tries them."""

PACKAGES = (["libosmesa6"], ["libegl1", "libgl1-mesa-dri"])
"""Debian packages to try, one set after the other; newer releases have no OSMesa."""

# Loading the library is not a sufficient test, since EGL loads without a driver: render a scene.
DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom type="sphere" size="0.2"/></worldbody></mujoco>'
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().any()
renderer.close()
"""


def quietly(command: list[str], environment: dict[str, str]) -> bool:
    """Run a command without output; returns whether it succeeded within five minutes."""
    try:
        run = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def draws(backend: str) -> bool:
    """Whether MuJoCo can render with this value of MUJOCO_GL, tested in a process that may crash."""
    environment = {**os.environ, "MUJOCO_GL": backend}
    environment.pop("PYOPENGL_PLATFORM", None)  # MuJoCo sets it to match
    return quietly([sys.executable, "-c", DRAW], environment)


def working_backend() -> str | None:
    """The first value of MUJOCO_GL with which MuJoCo can render."""
    return next(filter(draws, BACKENDS), None)


def install(packages: list[str]) -> bool:
    """Install Debian packages; returns whether it succeeded."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    print(f"OpenGL: no working library; running {' '.join(command)}", flush=True)
    quietly(["apt-get", "update"], environment)  # may fail in part and still be sufficient
    return quietly(command, environment)


def main() -> None:
    """Find a backend, install one as root on Debian if there is none, and print the result."""
    backend = working_backend()
    if backend is None and sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get"):
        for packages in PACKAGES:
            if install(packages) and (backend := working_backend()):
                break
    if backend is None:
        print(
            "OpenGL: no working library, so no videos and no cameras. "
            "To fix it: apt-get install libosmesa6 (or libegl1), then make opengl"
        )
    else:
        print(f"OpenGL: MuJoCo renders with MUJOCO_GL={backend}")


if __name__ == "__main__":
    main()
