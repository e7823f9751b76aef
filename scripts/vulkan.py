"""See whether ManiSkill can draw; if not, install a software Vulkan driver where that is possible.

Only camera observations and videos need one. So this never fails: what is missing is said. To be run by the Python that has ManiSkill.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# That a driver is found is not enough (older ones of Mesa crash): a picture has to come out drawn.
DRAW = """
import gymnasium, mani_skill.envs
env = gymnasium.make("PushCube-v1", obs_mode="rgb", sim_backend="physx_cpu", render_backend="{backend}", num_envs=1)
observation, _ = env.reset(seed=0)
assert observation["sensor_data"]["base_camera"]["rgb"].float().std() > 1
"""

BACKPORTS_OF = "bookworm"
"""Debian 12: its own Mesa, 22.3.6, is too old, and that of its backports is not. Later releases have a newer one themselves."""
SOURCE = """Types: deb
URIs: http://deb.debian.org/debian
Suites: {release} {release}-updates {release}-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def quietly(command: list[str]) -> bool:
    """Run a command and say whether it succeeded; one that hangs did not."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def working_backend() -> str | None:
    """What ManiSkill can draw with: its names of a software driver and of the GPU (where it has none, it takes the other for it). In
    processes of their own, since a driver may crash."""
    return next(
        (
            backend
            for backend in ("cpu", "gpu")
            if quietly([sys.executable, "-c", DRAW.format(backend=backend)])
        ),
        None,
    )


def install() -> None:
    """Install Mesa's software driver and Vulkan's loader."""
    packages = ["libvulkan1", "mesa-vulkan-drivers"]
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    with tempfile.TemporaryDirectory() as folder:
        options = []
        if release == BACKPORTS_OF:  # for this one call: the machine's own list of sources stays as it is
            for name in ("parts", "lists/partial"):
                (Path(folder) / name).mkdir(parents=True)
            os.chmod(folder, 0o755)  # apt downloads as a user of its own
            (Path(folder) / "parts" / "backports.sources").write_text(SOURCE.format(release=release))
            settings = {
                "Etc::sourcelist": "/dev/null",
                "Etc::sourceparts": f"{folder}/parts",
                "State::Lists": f"{folder}/lists",
            }
            options = [part for name, value in settings.items() for part in ("-o", f"Dir::{name}={value}")]
            packages[-1] += f"/{release}-backports"
        print(f"Vulkan: no driver that works, so: apt-get install {' '.join(packages)}", flush=True)
        quietly(["apt-get", *options, "update"])  # may fail in part and still be enough
        quietly(["apt-get", *options, "install", "-y", "--no-install-recommends", *packages])


def main() -> None:
    backend = working_backend()
    if backend is None and sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get"):
        install()
        backend = working_backend()
    if backend is None:
        print(
            "Vulkan: no driver that works, so ManiSkill has no cameras and no videos here (its state observations need none). To mend it:"
        )
        print(
            "  a GPU with its driver, or as root apt-get install libvulkan1 mesa-vulkan-drivers (Mesa 25 or newer; in Debian 12 from"
        )
        print("  bookworm-backports), then make vulkan")
    else:
        print(f"Vulkan: ManiSkill draws with --render-backend {backend}")


if __name__ == "__main__":
    main()
