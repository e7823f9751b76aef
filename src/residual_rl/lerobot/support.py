"""Shared parts of the LeRobot adapters: supported releases, names of features, and units of joints."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import re
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from residual_rl.base_policies.lerobot import JointUnits
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.robots.hardware_units import HardwareUnits

OLDEST, BELOW = "0.4.4", "0.7"
"""Supported LeRobot releases: at least the first and below the second. Tested with 0.4.4 and 0.6.1."""
INSTALL = (
    "install it with `pip install residual-rl[lerobot]` (Python 3.12 or newer); in a checkout, "
    "`make setup-lerobot` creates an environment with it: .venv-lerobot/bin/residual-rl"
)

STATE, ENVIRONMENT_STATE, ACTION = "observation.state", "observation.environment_state", "action"
IMAGES = "observation.images."
"""Prefix of the names of camera features."""


def require_lerobot(user: str) -> None:
    """Check that a supported release of LeRobot is installed.

    Args:
        user: the part of the program that needs it, for the message.

    Raises:
        MissingDependencyError: LeRobot is not installed.
        ConfigError: the installed release is not supported.
    """
    try:
        version = importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(f"LeRobot, which {user} needs,", INSTALL) from None
    if not _numbers(OLDEST) <= _numbers(version) < _numbers(BELOW):
        raise ConfigError(
            f"LeRobot {version} is installed, but {user} needs a release from {OLDEST} to below {BELOW}: "
            f"pip install 'lerobot>={OLDEST},<{BELOW}'"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """`0.4.4rc1` → (0, 4, 4)."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])[:3])


def is_hub_id(name: str) -> bool:
    """Whether `name` could be a repository on the Hugging Face hub: `owner/name`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress LeRobot's output and warnings while it reads and writes."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield


def video_backend() -> str:
    """The video decoder: torchcodec if it is installed, else pyav. LeRobot would choose the same, with a
    warning."""
    return "torchcodec" if importlib.util.find_spec("torchcodec") else "pyav"


def joint_features(hardware: HardwareUnits) -> list[str]:
    """LeRobot's names of the joint positions, e.g. `shoulder_pan.pos`."""
    return [f"{name}.pos" for name in hardware.joint_names]


def to_units(hardware: HardwareUnits, angles: Tensor, units: JointUnits) -> Tensor:
    """Convert joint `angles` [..., J] in [rad] to positions in `units`, float64 [..., J]."""
    if units == "rad":
        return angles.double()
    values = hardware.to_hardware(angles)
    if units == "hardware":
        return values
    low, span = _range(hardware, values)
    return torch.where(_is_arm(hardware, values), 200.0 * (values - low) / span - 100.0, values)


def from_units(hardware: HardwareUnits, values: Tensor, units: JointUnits) -> Tensor:
    """Convert joint positions `values` [..., J] in `units` to angles in [rad], float64 [..., J]."""
    values = values.double()
    if units == "rad":
        return values
    if units == "range":
        low, span = _range(hardware, values)
        values = torch.where(_is_arm(hardware, values), low + (values + 100.0) * span / 200.0, values)
    return hardware.from_hardware(values)


def _is_arm(hardware: HardwareUnits, values: Tensor) -> Tensor:
    """[J] bool: joints in degrees. The gripper is in per cent in both units."""
    return torch.tensor([unit != "%" for unit in hardware.units], device=values.device)


def _range(hardware: HardwareUnits, values: Tensor) -> tuple[Tensor, Tensor]:
    low, high = values.new_tensor(hardware.low), values.new_tensor(hardware.high)
    return low, high - low
