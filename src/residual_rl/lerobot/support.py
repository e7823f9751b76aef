"""What everything that speaks with LeRobot shares: the releases it works with, the names of features, and the units of the joints."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from residual_rl.base_policies.lerobot import JointUnits
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.utils.files import TEMP_SUFFIX, make_folder, writing

OLDEST, BELOW = "0.4.4", "0.7"
"""LeRobot releases that the adapters work with: from the first, up to below the second. Tested with 0.4.4 and 0.6.1."""
INSTALL = (
    "install it with `pip install residual-rl[lerobot]` (Python 3.12 or newer), or in a checkout `make setup-lerobot` "
    "makes an environment with it: .venv-lerobot/bin/residual-rl"
)

STATE, ENVIRONMENT_STATE, ACTION = "observation.state", "observation.environment_state", "action"
IMAGES = "observation.images."
"""What the name of a camera's feature begins with."""


def require_lerobot(user: str) -> None:
    """Raise `MissingDependencyError` where LeRobot is not installed, and `ConfigError` where it is a release that `user` does not know."""
    try:
        version = importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(f"LeRobot, which {user} needs,", INSTALL) from None
    if not _numbers(OLDEST) <= _numbers(version) < _numbers(BELOW):
        raise ConfigError(
            f"LeRobot {version} is installed, but {user} works with {OLDEST} up to below {BELOW}: pip install 'lerobot>={OLDEST},<{BELOW}'"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """`0.4.4rc1` → (0, 4, 4)."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])[:3])


def is_hub_id(name: str) -> bool:
    """Whether it could be the name of a repository on the Hugging Face hub: `owner/name`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


@contextlib.contextmanager
def replacing_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Gives the path of a folder that is not there yet, beside `path`; when the block ends well it is synced and takes the place of `path`.

    When the block fails it is removed, and `path` stays as it was. Raises `WriteError`, and `ConfigError` where `path` may not be replaced.
    """
    if path.exists() and not replace:
        raise ConfigError(f"{path} exists already; choose another --out")
    name = f".{path.name}.{secrets.token_hex(4)}"
    temp, old = path.parent / f"{name}{TEMP_SUFFIX}", path.parent / f"{name}.old{TEMP_SUFFIX}"
    make_folder(path.parent)
    try:
        with writing(path):
            yield temp
            for part in [*temp.rglob("*"), temp]:
                _sync(part)
            if path.exists():
                os.rename(path, old)
            os.rename(temp, path)
            _sync(path.parent)
    finally:
        for leftover in (temp, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what LeRobot prints and warns of while it reads and writes."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield


def video_backend() -> str:
    """What decodes videos: torchcodec where it is installed. LeRobot would choose the same, and warn."""
    return "torchcodec" if importlib.util.find_spec("torchcodec") else "pyav"


def joint_features(hardware: HardwareUnits) -> list[str]:
    """What LeRobot calls the joints' positions, e.g. `shoulder_pan.pos`."""
    return [f"{name}.pos" for name in hardware.joint_names]


def to_units(hardware: HardwareUnits, angles: Tensor, units: JointUnits) -> Tensor:
    """Joint positions, float64 [..., J] in `units`, of `angles` [..., J] in [rad]."""
    if units == "rad":
        return angles.double()
    values = hardware.to_hardware(angles)
    if units == "hardware":
        return values
    low, span = _range(hardware, values)
    return torch.where(_is_arm(hardware, values), 200.0 * (values - low) / span - 100.0, values)


def from_units(hardware: HardwareUnits, values: Tensor, units: JointUnits) -> Tensor:
    """Joint angles [rad], float64 [..., J]: the way back."""
    values = values.double()
    if units == "rad":
        return values
    if units == "range":
        low, span = _range(hardware, values)
        values = torch.where(_is_arm(hardware, values), low + (values + 100.0) * span / 200.0, values)
    return hardware.from_hardware(values)


def _is_arm(hardware: HardwareUnits, values: Tensor) -> Tensor:
    """[J] bool: joints that are told in degrees; a gripper's per cent are the same either way."""
    return torch.tensor([unit != "%" for unit in hardware.units], device=values.device)


def _range(hardware: HardwareUnits, values: Tensor) -> tuple[Tensor, Tensor]:
    low, high = values.new_tensor(hardware.low), values.new_tensor(hardware.high)
    return low, high - low
