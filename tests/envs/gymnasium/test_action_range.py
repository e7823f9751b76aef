"""Actions of an env, normalised to [-1, 1]."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from residual_rl.envs.gymnasium.action_range import ActionRange


def test_action_range_raw__maps_to_the_bounds() -> None:
    actions = ActionRange(spaces.Box(np.float32([0.0, -2.0]), np.float32([512.0, 4.0])), "Toy")
    assert actions.raw(np.float32([-1.0, -1.0])).tolist() == [0.0, -2.0]
    assert actions.raw(np.float32([1.0, 1.0])).tolist() == [512.0, 4.0]
    assert actions.raw(np.float32([0.5, 0.0])).tolist() == [384.0, 1.0]
    assert actions.unit.tolist() == [256.0, 3.0]
    assert actions.raw(np.float32([0.0, 0.0])).dtype == np.float32


def test_action_range_raw__is_the_same_bit_for_bit_where_the_bounds_are_one() -> None:
    actions = ActionRange(spaces.Box(-1.0, 1.0, (1000,), np.float32), "Toy")
    given = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32) ** 9  # also very small ones
    assert (actions.raw(given) == given).all()
    assert (actions.normalised(given) == given).all()


def test_action_range_raw__never_leaves_bounds_that_are_no_binary_fractions() -> None:
    space = spaces.Box(-0.1, 0.3, (3,), np.float32)
    actions = ActionRange(space, "Toy")
    for value in (-1.0, 1.0):
        assert space.contains(actions.raw(np.full(3, value, np.float32)))


def test_action_range_raw__has_the_shape_and_dtype_of_the_space() -> None:
    actions = ActionRange(spaces.Box(0, 10, (2, 2), np.int64), "Toy")
    raw = actions.raw(np.float32([-1.0, -0.5, 0.1, 1.0]))
    assert raw.dtype == np.int64
    assert raw.tolist() == [[0, 2], [6, 10]]  # 2.5 and 5.5 are rounded to even


def test_action_range_normalised__is_the_inverse_and_clips() -> None:
    actions = ActionRange(spaces.Box(0.0, 512.0, (2, 1)), "Toy")
    assert actions.normalised([[384.0], [-100.0]]).tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(4), r"Toy has actions Discrete\(4\); a residual needs a bounded Box"),
        (spaces.Dict({"a": spaces.Box(-1, 1)}), r"Toy has actions Dict\(.*needs a bounded Box"),
        (spaces.Box(-np.inf, np.inf, (2,)), r"Toy has unbounded actions \(dimensions \[0, 1\]\); create it"),
        (spaces.Box(-3.4e38, 3.4e38, (1,)), r"Toy has unbounded actions \(dimensions \[0\]\)"),
        (spaces.Box(np.float32([0, 1]), np.float32([1, 1])), r"without a range \(dimensions \[1\]\)"),
    ],
    ids=["discrete", "dict", "infinite", "huge", "empty"],
)
def test_action_range__refuses_other_spaces_in_one_line(space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ActionRange(space, "Toy")
    assert "\n" not in str(caught.value)
