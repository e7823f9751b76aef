"""Build a wheel and test it in a new virtual environment.

Only the wheel is installed there. Its dependencies come from the environment that runs this script, whose
site-packages are appended to the path. `.pth` files in them are not read, so the editable install has no
effect.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "residual_rl"

IMPORT_ALL = """
WITH_MANISKILL = ("mani_skill", "sapien")  # modules that need ManiSkill
import importlib, pkgutil, sys
import residual_rl
assert residual_rl.__file__.startswith(sys.prefix), residual_rl.__file__
for module in pkgutil.walk_packages(residual_rl.__path__, "residual_rl."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in WITH_MANISKILL:
            raise
for name in residual_rl.__all__:
    getattr(residual_rl, name)
print(residual_rl.__version__)
"""


def build(folder: Path) -> Path:
    """Build the wheel from a clean copy in `folder`, with the installed setuptools, so without downloads."""
    copy = folder / "source"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"the build failed:\n{run.stdout}{run.stderr}")
    (wheel,) = folder.glob("residual_rl-*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Check that the wheel contains every file of the package, and otherwise only metadata."""
    sources = {
        f"residual_rl/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    if files != sources:
        sys.exit(f"{wheel.name}: missing {sorted(sources - files)}, unexpected {sorted(files - sources)}")


def check_installed(wheel: Path, folder: Path) -> None:
    """Install the wheel into a new environment in `folder`, import all modules and run commands."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    elsewhere = folder / "empty"
    elsewhere.mkdir()
    commands = [
        [str(python), "-I", "-c", IMPORT_ALL],
        [str(venv / "bin" / "residual-rl"), "--help"],
        [str(venv / "bin" / "residual-rl"), "list"],
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for command in commands:
        run = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
        )
        if run.returncode:
            sys.exit(
                f"{wheel.name}: {' '.join(command[:2])} failed with {run.returncode}:\n"
                f"{run.stdout}{run.stderr}"
            )


def main() -> None:
    """Build and check the wheel; the first argument is a folder to copy it to."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = build(folder)
        check_contents(wheel)
        check_installed(wheel, folder)
        if len(sys.argv) > 1:
            target = Path(sys.argv[1])
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, target)
        print(f"{wheel.name}: contents, installation, imports and commands are correct")


if __name__ == "__main__":
    main()
