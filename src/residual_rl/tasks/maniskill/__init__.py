"""Any task of ManiSkill 3, with any of its robots."""

from residual_rl.registry import TaskSpec, register_task

SPEC = register_task(
    TaskSpec(
        id="maniskill",
        summary="any task of ManiSkill 3 (--env-id, --robot-uids), on its CPU or its GPU simulation",
        config=f"{__name__}.config:ManiSkillCfg",
        make=f"{__name__}.factory:make",
        base_policy="zero",
        doctor=f"{__name__}.doctor:doctor",
        demo_settings=("env_id", "robot_uids", "control_mode", "reward_mode", "ignore_terminations"),
        external_trajectory_settings=f"{__name__}.trajectory_settings:settings",
        planners={"motion-planning": "residual_rl.demos.maniskill_planner:make"},
        train_overrides={"eval_episodes": 16},  # evaluation has separate envs, which are slow to create
        variant="env_id",
        variant_overrides=f"{__name__}.ppo_defaults:train_overrides",
    )
)
