"""SimEnvs without pictures on a machine without a Vulkan device.

ManiSkill 3.0.1 makes render materials for its scenes even where `render_backend="none"` leaves nothing to draw them, and SAPIEN's
materials want a device. Here, and nowhere else, a plain object takes their place; only where no device exists.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import Any

_log = logging.getLogger(__name__)


@functools.cache
def vulkan_works() -> bool:
    """Whether SAPIEN finds a device that can draw: a GPU, or a software driver. To be asked before materials are replaced."""
    import_sapien()
    import sapien

    try:
        sapien.render.RenderMaterial()  # `sapien.Device.can_render` says no of software drivers that do
    except RuntimeError:  # "failed to find a rendering device"
        return False
    return True


def import_sapien() -> None:
    """Import it without its warning that it brings a Vulkan loader of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to find system libvulkan")
        import sapien  # noqa: F401


class PlainMaterial:
    """Holds what a `sapien.render.RenderMaterial` is given, and draws nothing."""

    def __init__(self, *args: Any, **values: Any):  # noqa: ARG002 (colours and such, by position)
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set_"):
            return functools.partial(setattr, self, name.removeprefix("set_"))
        raise AttributeError(name)


def replace_materials() -> None:
    """Put `PlainMaterial` in the place of SAPIEN's render materials, wherever they were imported to. For a process that never draws."""
    import_sapien()
    import sapien.wrapper.urdf_loader  # the last of SAPIEN's own that imports them by name

    theirs = sapien.render.RenderMaterial
    if theirs is PlainMaterial:
        return
    _log.info("no Vulkan device: ManiSkill's scenes are built without render materials")
    for module in list(sys.modules.values()):
        if vars(module).get("RenderMaterial") is theirs:
            module.RenderMaterial = PlainMaterial  # type: ignore[attr-defined]
