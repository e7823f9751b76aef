"""An SO-101 arm slides an A5 sheet into a taped rectangle."""

from residual_rl.registry import TaskSpec, register_task

_COMMON = {
    "config": "residual_rl.tasks.so101_paper.config:SO101PaperCfg",
    "make": "residual_rl.tasks.so101_paper.mujoco_backend:make",
    "base_policy": "jacobian",
    "metric_units": {"dist_to_goal": "m", "yaw_error": "rad"},
}

register_task(TaskSpec(id="so101-paper", summary="SO-101 slides an A5 sheet into a taped rectangle (tolerance 2 cm)", **_COMMON))
register_task(
    TaskSpec(
        id="so101-paper-precise",
        summary="The same with a tolerance of 0.5 cm",
        config_overrides={"tolerance": 0.005},
        **_COMMON,
    )
)
