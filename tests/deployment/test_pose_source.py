"""Poses that are read beside the control loop."""

from __future__ import annotations

import time

import numpy as np
import pytest

from residual_rl.deployment.pose_source import BackgroundPoseSource, load_pose_source
from residual_rl.errors import ArmError, ConfigError
from residual_rl.robots.arm_driver import Pose

POSE = Pose(np.array([0.2, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0]), 5.0)


def test_background_pose_source__a_slow_camera_does_not_delay_the_loop():
    def slow():
        time.sleep(0.2)
        return POSE

    source = BackgroundPoseSource(slow)
    began = time.monotonic()
    assert source() is None  # at once, and not after 0.2 s
    assert time.monotonic() - began < 0.15
    source.wait_for_first()
    assert source().position[0] == 0.2
    source.close()


def test_background_pose_source__keeps_the_last_pose_that_was_seen():
    answers = iter([None, POSE])
    source = BackgroundPoseSource(lambda: next(answers, None))
    source.wait_for_first()
    time.sleep(0.05)
    assert source().time == 5.0
    source.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (RuntimeError("no camera"), "the pose source failed: no camera"),
        ("left of the cup", "it must return a Pose or None"),
    ],
)
def test_background_pose_source__an_error_is_raised_in_the_loop(answer, message):
    def source():
        if isinstance(answer, Exception):
            raise answer
        return answer

    background = BackgroundPoseSource(source)
    with pytest.raises(ArmError, match=message):
        background.wait_for_first()


def test_background_pose_source__an_object_that_is_never_seen_is_an_error():
    source = BackgroundPoseSource(lambda: None)
    with pytest.raises(ArmError, match="has seen nothing within 0"):
        source.wait_for_first(0.05)
    source.close()


def test_load_pose_source__a_name_that_is_no_function_is_refused():
    assert load_pose_source("time:monotonic") is time.monotonic
    with pytest.raises(ConfigError, match="must be a function"):
        load_pose_source("time:timezone")
    with pytest.raises(ConfigError, match="no_such_module"):
        load_pose_source("no_such_module:pose")
