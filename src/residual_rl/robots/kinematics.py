"""Forward kinematics and Jacobians of a serial arm in torch, batched over worlds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from residual_rl.errors import ModelError

if TYPE_CHECKING:
    import mujoco


def matrix_from_quaternion(quat: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of unit quaternions (w, x, y, z) [..., 4]."""
    w, x, y, z = quat.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def transform(position: Tensor, quat: Tensor) -> Tensor:
    """Homogeneous transforms [..., 4, 4] of positions [..., 3] and quaternions (w, x, y, z) [..., 4]."""
    result = torch.zeros(*position.shape[:-1], 4, 4, dtype=position.dtype, device=position.device)
    result[..., :3, :3] = matrix_from_quaternion(quat)
    result[..., :3, 3] = position
    result[..., 3, 3] = 1.0
    return result


class KinematicChain:
    """N hinges in a row, from the world to a tool frame.

    Args:
        offset: [N, 4, 4], each joint's frame in the frame of the joint before it (the world's for the first).
        axis: [N, 3], each joint's axis in its own frame.
        tool: [4, 4], the tool frame in the last joint's frame.
    """

    def __init__(self, offset: Tensor, axis: Tensor, tool: Tensor):
        self.offset, self.axis, self.tool = offset, axis, tool
        zero = torch.zeros_like(axis[:, 0])
        x, y, z = axis.unbind(-1)
        k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
        # Rodrigues: R = I + sin(q) K + (1 - cos(q)) K². With the offset multiplied in, a joint's transform is a sum of three fixed
        # matrices, weighted by 1, sin q and 1 - cos q.
        basis = torch.zeros(len(axis), 3, 4, 4, dtype=axis.dtype, device=axis.device)
        basis[:, 0] = torch.eye(4, dtype=axis.dtype, device=axis.device)
        basis[:, 1, :3, :3] = k
        basis[:, 2, :3, :3] = k @ k
        self._basis = offset[:, None] @ basis

    @property
    def num_joints(self) -> int:
        """N."""
        return len(self.axis)

    def forward(self, joint_position: Tensor) -> tuple[Tensor, Tensor]:
        """Frames of the joints [B, N, 4, 4] and of the tool [B, 4, 4] in the world, for `joint_position` [B, N] in [rad]."""
        weights = torch.stack([torch.ones_like(joint_position), joint_position.sin(), 1.0 - joint_position.cos()], -1)
        local = (weights[..., None, None] * self._basis).sum(2)
        frames = [local[:, 0]]
        for i in range(1, self.num_joints):
            frames.append(frames[-1] @ local[:, i])
        return torch.stack(frames, 1), frames[-1] @ self.tool

    def jacobian(self, frames: Tensor, tool: Tensor) -> tuple[Tensor, Tensor]:
        """Linear and angular velocity of the tool's origin per joint velocity, each [B, 3, N], from the result of `forward`."""
        axis = (frames[..., :3, :3] @ self.axis[..., None]).squeeze(-1)
        lever = tool[:, None, :3, 3] - frames[..., :3, 3]
        return torch.linalg.cross(axis, lever).mT, axis.mT

    @classmethod
    def from_mujoco(cls, model: mujoco.MjModel, site: str, dtype: torch.dtype = torch.float64) -> KinematicChain:
        """The chain of hinges that leads to `site` in a compiled MuJoCo model. Joints that do not move the site are left out."""
        import mujoco

        site_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, site)
        if site_id < 0:
            raise ModelError(f"the model has no site {site!r}")
        bodies, body = [], int(model.site_bodyid[site_id])
        while body:
            bodies.append(body)
            body = int(model.body_parentid[body])

        def frame(position: object, quat: object) -> Tensor:
            return transform(torch.as_tensor(position, dtype=dtype), torch.as_tensor(quat, dtype=dtype))

        offsets, axes, pending = [], [], torch.eye(4, dtype=dtype)
        for body in reversed(bodies):
            pending = pending @ frame(model.body_pos[body], model.body_quat[body])
            for joint in range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body]):
                if model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_HINGE or model.jnt_pos[joint].any():
                    raise ModelError(f"joint {model.joint(joint).name!r} on the way to {site!r} is not a hinge at its body's origin")
                offsets.append(pending)
                axes.append(torch.as_tensor(model.jnt_axis[joint], dtype=dtype))
                pending = torch.eye(4, dtype=dtype)
        if not offsets:
            raise ModelError(f"no joint moves the site {site!r}")
        tool = pending @ frame(model.site_pos[site_id], model.site_quat[site_id])
        return cls(torch.stack(offsets), torch.stack(axes), tool)


def damped_least_squares(jacobian: Tensor, error: Tensor, damping: float) -> Tensor:
    """Joint steps `Jᵀ (J Jᵀ + damping² I)⁻¹ e` [B, N] for a task-space error [B, M] and Jacobian [B, M, N].

    Wampler (1986), "Manipulator inverse kinematic solutions based on vector formulations and damped least-squares methods".
    """
    gram = jacobian @ jacobian.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(damping**2)
    return (jacobian.mT @ torch.linalg.solve(gram, error[..., None])).squeeze(-1)
