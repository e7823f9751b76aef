"""Relative poses of the tool and the objects, which a network would otherwise have to compute itself."""

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
"""The fine scale is about linear below these values of positions [m] and rotations, and logarithmic above."""


class RelativePoses:
    """Adds the observation `relative_poses` [B, 18 P + 6 Q].

    Bodies are the tool and the observed poses (`…_pose`), points the observed positions (`…_pos`). There are
    P pairs of two bodies and Q pairs of a body and a point. The second of a pair is expressed in the frame of
    the first: its position [m] and, for bodies, the first two columns of its rotation matrix, which are
    continuous where quaternions are not (Zhou et al., CVPR 2019). The second half of the observation repeats
    the first on a fine scale, sign(x) ln(1 + |x| / f) with f = 1 mm for positions and 0.01 for rotations:
    with normalised metres in a workspace of half a metre, a network would hardly see a millimetre.

    Each half has all positions, those of bodies first, and then all rotations. The tool is the first body,
    and the others follow in the order of their names.

    Args:
        observations: the observations of one env by name. Without a `tcp_pose` or without objects, nothing
            is added.
        device: device of the observations.
    """

    def __init__(self, observations: Mapping[str, ArraySpec], device: torch.device | str = "cpu"):
        # bodies are 7-vectors named ..._pose, points 3-vectors named ..._pos; without a tool there are none
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
        # pairs of bodies come first, because only these have a relative rotation
        pairs = list(combinations(range(len(self.bodies)), 2))
        num_rotations = len(pairs)
        pairs += product(
            range(len(self.bodies)), range(len(self.bodies), len(self.bodies) + len(self.points))
        )
        self.size = 6 * len(pairs) + 12 * num_rotations
        first, second = torch.tensor(pairs, device=device).reshape(-1, 2).unbind(1)
        self._first, self._second, self._turned = first, second, second[:num_rotations]
        fine_scale = [_FINE_POSITION] * (3 * len(pairs)) + [_FINE_ROTATION] * (6 * num_rotations)
        self._fine_scale = torch.tensor(fine_scale, device=device)

    def add(self, obs: Obs) -> Obs:
        """Return `obs` ([B, …] each) with the relative poses added."""
        if not self.size:
            return obs
        # positions of all bodies and points, and rotations of the bodies
        poses = torch.stack([obs[name] for name in self.bodies], 1)
        rotations = matrix_from_quaternion(poses[..., 3:])
        absolute = torch.cat([poses[..., :3], *(obs[name][:, None] for name in self.points)], 1)
        # the second of each pair in the frame of the first
        to_first = rotations.index_select(1, self._first).transpose(2, 3)
        offset = absolute.index_select(1, self._second) - absolute.index_select(1, self._first)
        positions = (to_first @ offset[..., None]).flatten(1)
        columns = rotations[..., :2].index_select(1, self._turned)
        relative_rotations = (to_first[:, : len(self._turned)] @ columns).transpose(2, 3).flatten(1)
        # the same values on two scales
        coarse = torch.cat([positions, relative_rotations], 1)
        fine = coarse.sign() * (coarse.abs() / self._fine_scale).log1p()
        return obs | {RELATIVE_POSES: torch.cat([coarse, fine], 1)}


def _is_point(name: str) -> bool:
    """Whether an observation is an absolute position (`goal_pos`) and not an offset (`tcp_to_obj_pos`)."""
    return name.endswith("_pos") and "_to_" not in name
