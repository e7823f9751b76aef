"""See whether MuJoCo can draw without a display; if not, install an OpenGL library where that is possible.

Only videos and camera pictures need one. So this never fails: what is missing is said in one line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

BACKENDS = ("egl", "osmesa") if sys.platform == "linux" else ("glfw",)
"""Values of MUJOCO_GL that draw without a display, in the order in which the package tries them."""

PACKAGES = (["libosmesa6"], ["libegl1", "libgl1-mesa-dri"])
"""Debian packages to try, one set after the other: newer releases have no OSMesa."""

# That the library loads is not enough (EGL loads without any driver): a scene has to come out drawn.
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
    """Run a command and say whether it succeeded; one that hangs did not."""
    try:
        run = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def draws(backend: str) -> bool:
    """Whether MuJoCo can draw with this MUJOCO_GL value. In its own process, since a broken driver may crash it."""
    environment = {**os.environ, "MUJOCO_GL": backend}
    environment.pop("PYOPENGL_PLATFORM", None)  # MuJoCo sets it to match
    return quietly([sys.executable, "-c", DRAW], environment)


def working_backend() -> str | None:
    return next(filter(draws, BACKENDS), None)


def install(packages: list[str]) -> bool:
    """Install Debian packages; whether that worked."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    print(f"OpenGL: none that works, so: {' '.join(command)}", flush=True)
    quietly(["apt-get", "update"], environment)  # may fail in part and still be enough
    return quietly(command, environment)


def main() -> None:
    backend = working_backend()
    if backend is None and sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get"):
        for packages in PACKAGES:
            if install(packages) and (backend := working_backend()):
                break
    if backend is None:
        print(
            "OpenGL: none that works, so no videos, no cameras. To mend it: apt-get install libosmesa6 (or libegl1), then make opengl"
        )
    else:
        print(f"OpenGL: MuJoCo draws with MUJOCO_GL={backend}")


if __name__ == "__main__":
    main()
