"""Simulation without rendering on a machine without a Vulkan device.

ManiSkill 3.0.1 creates render materials for its scenes even with `render_backend="none"`, and SAPIEN's
materials need a device. On machines without one, this module replaces them by a plain object.
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
    """Whether SAPIEN finds a device to render with: a GPU or a software driver.

    Call it before `replace_materials`, which changes the answer; later calls return the first result.
    """
    import_sapien()
    import sapien

    try:
        sapien.render.RenderMaterial()  # `sapien.Device.can_render` is false for software drivers
    except RuntimeError:  # "failed to find a rendering device"
        return False
    return True


def import_sapien() -> None:
    """Import SAPIEN without its warning about the Vulkan loader that it includes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to find system libvulkan")
        import sapien  # noqa: F401


class PlainMaterial:
    """Stores the values given to a `sapien.render.RenderMaterial`, and renders nothing."""

    def __init__(self, *args: Any, **values: Any):  # noqa: ARG002 (colours and such, by position)
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set_"):
            return functools.partial(setattr, self, name.removeprefix("set_"))
        raise AttributeError(name)


def replace_materials() -> None:
    """Replace SAPIEN's render materials by `PlainMaterial` in all imported modules.

    For processes that never render.
    """
    import_sapien()
    import sapien.wrapper.urdf_loader  # the last of SAPIEN's own that imports them by name

    theirs = sapien.render.RenderMaterial
    if theirs is PlainMaterial:
        return
    _log.info("no Vulkan device: ManiSkill's scenes are built without render materials")
    # modules that imported the class by name hold references of their own
    for module in list(sys.modules.values()):
        if vars(module).get("RenderMaterial") is theirs:
            module.RenderMaterial = PlainMaterial  # type: ignore[attr-defined]
