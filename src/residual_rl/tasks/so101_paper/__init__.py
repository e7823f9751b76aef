"""An SO-101 arm slides an A5 sheet into a taped rectangle."""

import dataclasses

from residual_rl.registry import TaskSpec, register_task
from residual_rl.tasks.so101_paper.presets import PRESETS

SPEC = register_task(
    TaskSpec(
        id="so101-paper",
        summary="SO-101 slides an A5 sheet into a taped rectangle (tolerance 2 cm)",
        config=f"{__name__}.config:SO101PaperCfg",
        make=f"{__name__}.mujoco_env:make",
        base_policy="jacobian",
        train_overrides={"noise_correlation": 0.9, "final_std": 0.05},
        presets=PRESETS,
        metric_units={"dist_to_goal": "m", "yaw_error": "rad"},
        doctor=f"{__name__}.doctor:doctor",
        demo_settings=(
            "tolerance",
            "success_hold_steps",
            "control_mode",
            "action_scale",
            "max_target_step",
            "max_target_error",
            "action_latency",
            "reward_mode",
            "reward_success",
            "reward_distance",
            "reward_yaw",
            "reward_step",
            "reward_reach",
        ),
        oracle="jacobian-yaw",
        simulated_arm=f"{__name__}.simulated_arm:SimulatedArm",
        hardware_settings={"action_latency": 0, "position_noise": 0.0, "angle_noise": 0.0},
        gymnasium_id="residual_rl/SO101Paper-v0",
    )
)
register_task(
    dataclasses.replace(
        SPEC,
        id="so101-paper-precise",
        summary="The same with a tolerance of 0.5 cm",
        config_overrides={"tolerance": 0.005},
        gymnasium_id="residual_rl/SO101PaperPrecise-v0",
    )
)
