"""Processors of the policy type `residual_rl`, which normalise nothing: it acts in the robot's units."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from lerobot_policy_residual_rl.configuration_residual_rl import ResidualRlConfig


def make_residual_rl_pre_post_processors(
    config: ResidualRlConfig,
    dataset_stats: Any = None,  # noqa: ARG001
) -> tuple[Any, Any]:
    """The pre- and the postprocessor, as `residual-rl export` writes them."""
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device or "cpu"),
    ]
    return (
        PolicyProcessorPipeline(steps=before, name="policy_preprocessor"),
        PolicyProcessorPipeline(
            steps=[DeviceProcessorStep(device="cpu")],
            name="policy_postprocessor",
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
