"""Any task of ManiSkill 3, with any of its robots."""

from residual_rl.registry import TaskSpec, register_task

SPEC = register_task(
    TaskSpec(
        id="maniskill",
        summary="any task of ManiSkill 3 (--env-id, --robot-uids), on its CPU or its GPU simulation",
        config=f"{__name__}.config:ManiSkillCfg",
        make=f"{__name__}.make:make",
        base_policy="zero",
        doctor=f"{__name__}.doctor:doctor",
        foreign_settings=f"{__name__}.foreign:settings",
        planners={"motion-planning": f"{__name__}.motion_planning:make"},
        # PPO's as ManiSkill publishes it for most tasks (defaults.py). Evaluations have worlds of their own, which take long to build.
        train_overrides={"num_steps": 50, "gamma": 0.8, "gae_lambda": 0.9, "eval_episodes": 16},
    )
)
