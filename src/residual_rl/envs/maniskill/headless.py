"""Simulation without rendering on a machine without a Vulkan device.

ManiSkill 3.0.1 creates render materials for its scenes even with `render_backend="none"`, and SAPIEN's
materials need a device. On machines without a device, this module replaces them by a plain object.
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
    """Whether SAPIEN finds a rendering device: a GPU or a software driver.

    The first result is cached. Call it before `replace_materials`, which would change the result.
    """
    import_sapien()
    import sapien

    try:
        sapien.render.RenderMaterial()  # `sapien.Device.can_render` is false for software drivers
    except RuntimeError:  # "failed to find a rendering device"
        return False
    return True


def import_sapien() -> None:
    """Import SAPIEN without its warning about the bundled Vulkan loader."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to find system libvulkan")
        import sapien  # noqa: F401


class PlainMaterial:
    """Stores the values of a `sapien.render.RenderMaterial` and renders nothing."""

    def __init__(self, *args: Any, **values: Any):  # noqa: ARG002 (positional arguments, such as colours)
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set_"):
            return functools.partial(setattr, self, name.removeprefix("set_"))
        raise AttributeError(name)


def replace_materials() -> None:
    """Replace SAPIEN's render materials by `PlainMaterial` in all imported modules.

    Only for processes that never render.
    """
    import_sapien()
    import sapien.wrapper.urdf_loader  # imports the class by name, so it must be loaded before the loop

    original = sapien.render.RenderMaterial
    if original is PlainMaterial:
        return
    _log.info("no Vulkan device: ManiSkill's scenes are built without render materials")
    # modules that imported the class by name have their own references
    for module in list(sys.modules.values()):
        if vars(module).get("RenderMaterial") is original:
            module.RenderMaterial = PlainMaterial  # type: ignore[attr-defined]


@functools.cache
def build_push_t_unrendered() -> None:
    """Make PushT-v1 build its table without a renderer: it changes the texture of the table, which then has
    none."""
    from mani_skill.envs.tasks.tabletop import push_t
    from mani_skill.utils.scene_builder.table import TableSceneBuilder

    original = push_t.WhiteTableSceneBuilder.build

    def build(builder: Any) -> None:
        (original if builder.scene.can_render() else TableSceneBuilder.build)(builder)

    push_t.WhiteTableSceneBuilder.build = build
