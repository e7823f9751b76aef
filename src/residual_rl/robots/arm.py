"""Description of an env's arm for Cartesian controllers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Arm:
    """One arm with one tool, and what its actions are.

    The tool's z axis points out of it, and a gripper's fingers close along its y axis.
    """

    robot: str
    control: Literal["joint_delta", "ee_delta_pos", "ee_delta_pose"] | None
    """What the arm's actions are: changes of its joints from where they are; of the tool's position, or of
    its position and orientation (a rotation vector), from where it is, along the axes of the robot's base.
    None for anything else."""
    action_index: tuple[int, ...]
    """The arm's actions among all, in the order of `joint_names`, or of x, y, z and the rotations about
    them."""
    action_scale: tuple[float, ...]
    """What an action of 1 is for each of them [rad] or [m]; below 0 where its sign is turned."""
    joint_names: tuple[str, ...]
    """The joints that the arm's actions move."""
    all_joint_names: tuple[str, ...]
    """All joints, in the order of the observation `joint_position`."""
    moving_joint_names: tuple[str, ...]
    """The joints that move the tool, the first one first."""
    tool_link: str
    """The link whose pose is the observation `tcp_pose`."""
    urdf: str | None
    """File of the robot's model, if there is a URDF."""
    gripper_index: tuple[int, ...] = ()
    """The gripper's actions among all; none where there is no gripper."""
    gripper_opens: float | None = None
    """The gripper's action that opens it, 1 or -1, where that is known; the other closes it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Arm:
        """What `to_json` gave, lists in the place of tuples allowed."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)
