"""Clean resets of ManiSkill's CPU simulation.

ManiSkill's reset sets poses and velocities, but PhysX has further state: contacts, their order, and the sleep
timers of bodies. An episode in a used scene therefore sometimes differs in its last bits from the same
episode in a new scene. ManiSkill's remedy is to rebuild the scene, which takes a hundred times as long as the
reset. Here the bodies move into a new, empty PhysX scene instead, which takes 0.2 ms. Afterwards an episode
is a function of its seed and its actions alone.
"""

from __future__ import annotations

from typing import Any


def give_fresh_physics(env: Any) -> None:
    """Move all bodies of `env` into a new PhysX scene and reset their sleep timers.

    Args:
        env: the unwrapped env; it must use the CPU simulation.
    """
    import sapien
    from sapien import physx

    scene = env.scene
    # reset the sleep timers
    for actor in scene.actors.values():
        if actor.px_body_type == "dynamic":
            for body in actor._bodies:
                body.put_to_sleep()  # resets the timer
                body.wake_up()
    # take all entities out of the old scene
    old = scene.sub_scenes[0]
    entities = list(old.entities)
    for entity in entities:
        entity.remove_from_scene()
    # a new scene takes the global settings, which another env of this process may have changed
    env._set_scene_config()
    # add them to a new scene with the same time step and renderer
    system = physx.PhysxCpuSystem()
    system.timestep = old.physx_system.timestep
    new = sapien.Scene([system, *([old.render_system] if scene.can_render() else [])])
    for entity in entities:
        entity.add_to_scene(new)
    scene.sub_scenes[0], scene.px = new, system
