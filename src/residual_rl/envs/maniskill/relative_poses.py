"""Relative poses of the tool and the objects, so that a network need not compute them from absolute poses."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product

import torch

from residual_rl.envs.workers.shared_memory import ArraySpec
from residual_rl.robots.kinematics import matrix_from_quaternion
from residual_rl.types import Obs

RELATIVE_POSES = "relative_poses"
_TOOL = "tcp_pose"
_FINE_POSITION, _FINE_ROTATION = 0.001, 0.01
"""What counts as near: the fine scale is linear below it, and logarithmic above [m], [1]."""


class RelativePoses:
    """Adds the observation `relative_poses` [B, 18 P + 6 Q].

    P pairs are any two of the tool and of the poses that the task tells (`…_pose`), Q those of such a body
    and a position (`…_pos`). The later of a pair is seen in the frame of the earlier: a position [m], and the
    first two columns of the rotation matrix, which are continuous where quaternions are not (Zhou et al.,
    CVPR 2019). The second half is the first on a fine scale, sign(x) ln(1 + |x| / f) with f of 1 mm and 0.01:
    in a workspace of half a metre, a network of normalised metres hardly sees a millimetre.

    In order: all positions, those of bodies first; all rotations; both again. Bodies: the tool, then by name.

    Args:
        observations: of one env, by name. Without a `tcp_pose` or without objects, nothing is added.
        device: device of the observations.
    """

    def __init__(self, observations: Mapping[str, ArraySpec], device: torch.device | str = "cpu"):
        # bodies are 7-vectors named ..._pose, points 3-vectors named ..._pos; both need a tool
        shapes = {name: array.shape for name, array in sorted(observations.items()) if name != "base_pose"}
        has_tool = shapes.pop(_TOOL, None) == (7,)
        self.bodies = (
            _TOOL,
            *(
                name
                for name, shape in shapes.items()
                if has_tool and name.endswith("_pose") and shape == (7,)
            ),
        )
        self.points = tuple(
            name for name, shape in shapes.items() if has_tool and _is_point(name) and shape == (3,)
        )
        # pairs of bodies come first: only these have a relative rotation
        pairs = list(combinations(range(len(self.bodies)), 2))
        num_turns = len(pairs)
        pairs += product(
            range(len(self.bodies)), range(len(self.bodies), len(self.bodies) + len(self.points))
        )
        self.size = 6 * len(pairs) + 12 * num_turns
        first, second = torch.tensor(pairs, device=device).reshape(-1, 2).unbind(1)
        self._first, self._second, self._turned = first, second, second[:num_turns]
        near = [_FINE_POSITION] * (3 * len(pairs)) + [_FINE_ROTATION] * (6 * num_turns)
        self._near = torch.tensor(near, device=device)

    def add(self, obs: Obs) -> Obs:
        """`obs`, all [B, …], with the relative poses."""
        if not self.size:
            return obs
        # positions of all bodies and points, and rotations of the bodies
        poses = torch.stack([obs[name] for name in self.bodies], 1)
        rotations = matrix_from_quaternion(poses[..., 3:])
        places = torch.cat([poses[..., :3], *(obs[name][:, None] for name in self.points)], 1)
        # the second of each pair in the frame of the first
        to_first = rotations.index_select(1, self._first).transpose(2, 3)
        away = places.index_select(1, self._second) - places.index_select(1, self._first)
        positions = (to_first @ away[..., None]).flatten(1)
        columns = rotations[..., :2].index_select(1, self._turned)
        turns = (to_first[:, : len(self._turned)] @ columns).transpose(2, 3).flatten(1)
        # the same values on two scales
        coarse = torch.cat([positions, turns], 1)
        fine = coarse.sign() * (coarse.abs() / self._near).log1p()
        return obs | {RELATIVE_POSES: torch.cat([coarse, fine], 1)}


def _is_point(name: str) -> bool:
    """Whether ManiSkill's tasks name a position so: `goal_pos`; `tcp_to_obj_pos` is a difference of two."""
    return name.endswith("_pos") and "_to_" not in name
