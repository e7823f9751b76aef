"""Check that ManiSkill can render; if not, try to install a software driver for Vulkan.

Only camera observations and videos need Vulkan, so a missing driver is reported and is not an error. Run it
with the Python of the environment that has ManiSkill.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Finding a driver is not a sufficient test, since older drivers of Mesa crash: render an image.
DRAW = """ import gymnasium, mani_skill.envs env = gymnasium.make("PushCube-v1", obs_mode="rgb",
sim_backend="physx_cpu", render_backend="{backend}", num_envs=1) observation, _ = env.reset(seed=0) assert
observation["sensor_data"]["base_camera"]["rgb"].float().std() > 1
"""

BACKPORTS_OF = "bookworm"
"""Debian 12, whose Mesa 22.3.6 is too old, unlike that of its backports. Later releases have a newer one."""
SOURCE = """Types: deb
URIs: http://deb.debian.org/debian
Suites: {release} {release}-updates {release}-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def quietly(command: list[str]) -> bool:
    """Run a command without output; returns whether it succeeded within ten minutes."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def working_backend() -> str | None:
    """The first render backend that works, "cpu" (software driver) or "gpu".

    Each is tested in a process, which may crash. ManiSkill may also use the software driver for "gpu" if
    there is no GPU.
    """
    for backend in ("cpu", "gpu"):
        if quietly([sys.executable, "-c", DRAW.format(backend=backend)]):
            return backend
    return None


def install() -> None:
    """Install Mesa's software driver and Vulkan's loader."""
    packages = ["libvulkan1", "mesa-vulkan-drivers"]
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    with tempfile.TemporaryDirectory() as folder:
        options = []
        if release == BACKPORTS_OF:  # for this call only: the sources of the machine are not changed
            for name in ("parts", "lists/partial"):
                (Path(folder) / name).mkdir(parents=True)
            os.chmod(folder, 0o755)  # apt downloads as another user
            (Path(folder) / "parts" / "backports.sources").write_text(SOURCE.format(release=release))
            settings = {
                "Etc::sourcelist": "/dev/null",
                "Etc::sourceparts": f"{folder}/parts",
                "State::Lists": f"{folder}/lists",
            }
            options = [part for name, value in settings.items() for part in ("-o", f"Dir::{name}={value}")]
            packages[-1] += f"/{release}-backports"
        print(f"Vulkan: no working driver; running apt-get install {' '.join(packages)}", flush=True)
        quietly(["apt-get", *options, "update"])  # may fail in part and still be sufficient
        quietly(["apt-get", *options, "install", "-y", "--no-install-recommends", *packages])


def main() -> None:
    """Find a backend, install a driver as root on Debian if there is none, and print the result."""
    backend = working_backend()
    if backend is None and sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get"):
        install()
        backend = working_backend()
    if backend is None:
        print(
            "Vulkan: no working driver, so ManiSkill has no cameras and no videos (states need no driver).\n"
            "  To fix it: install a GPU with its driver, or as root\n"
            "  apt-get install libvulkan1 mesa-vulkan-drivers\n"
            "  (Mesa 25 or newer; in Debian 12 from bookworm-backports), then make vulkan"
        )
    else:
        print(f"Vulkan: ManiSkill renders with --render-backend {backend}")


if __name__ == "__main__":
    main()
