"""Description of an env's arm for Cartesian controllers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Arm:
    """One arm with one tool, and the meaning of its actions.

    The tool's z axis points out of it, and a gripper's fingers close along its y axis.
    """

    robot: str
    control: Literal["joint_delta", "ee_delta_pos", "ee_delta_pose"] | None
    """Meaning of the arm's actions: changes of the current joint positions; changes of the tool's current
    position, or of its position and orientation (a rotation vector), along the axes of the robot's base.
    None: any other."""
    action_index: tuple[int, ...]
    """Indices of the arm's actions, in the order of `joint_names`, or of x, y, z and the rotations about
    them."""
    action_scale: tuple[float, ...]
    """Change by an action of 1, for each of them [rad] or [m]; negative if the direction is inverted."""
    joint_names: tuple[str, ...]
    """The joints that the arm's actions move."""
    all_joint_names: tuple[str, ...]
    """All joints, in the order of the observation `joint_position`."""
    moving_joint_names: tuple[str, ...]
    """The joints that move the tool, from the base to the tool."""
    tool_link: str
    """The link whose pose is the observation `tcp_pose`."""
    urdf: str | None
    """Path of the robot's URDF, if there is one."""
    gripper_index: tuple[int, ...] = ()
    """Indices of the gripper's actions; empty without a gripper."""
    gripper_opens: float | None = None
    """The action that opens the gripper, 1 or -1; the other closes it. None: unknown."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Arm:
        """Restore an arm from the result of `to_json`; lists become tuples."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)
