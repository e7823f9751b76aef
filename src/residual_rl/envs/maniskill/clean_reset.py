"""Clean resets of ManiSkill's CPU simulation.

A reset of ManiSkill sets poses and velocities, but PhysX keeps more than these: contacts, their order, the
sleep timers of bodies. So an episode in a used scene differs, now and then and in its last bits, from the
same one in a new scene. ManiSkill's remedy, building the scene anew, takes a hundred times as long as the
reset. Here the bodies move into a new, empty PhysX scene instead, which takes a fifth of a millisecond: after
it an episode is a function of its seed and its actions alone.
"""

from __future__ import annotations

from typing import Any


def give_fresh_physics(env: Any) -> None:
    """Move all bodies of `env`, unwrapped and on the CPU, into a new PhysX scene and reset their sleep
    timers."""
    import sapien
    from sapien import physx

    scene = env.scene
    # reset the sleep timers
    for actor in scene.actors.values():
        if actor.px_body_type == "dynamic":
            for body in actor._bodies:
                body.put_to_sleep()  # forgets how long it has been slow
                body.wake_up()
    # take all entities out of the old scene
    old = scene.sub_scenes[0]
    entities = list(old.entities)
    for entity in entities:
        entity.remove_from_scene()
    # global settings, which a new scene takes: another env of this process may have set its own
    env._set_scene_config()
    # put them into a new one, with the same time step and renderer
    system = physx.PhysxCpuSystem()
    system.timestep = old.physx_system.timestep
    new = sapien.Scene([system, *([old.render_system] if scene.can_render() else [])])
    for entity in entities:
        entity.add_to_scene(new)
    scene.sub_scenes[0], scene.px = new, system
