"""Forward kinematics and Jacobians of a serial arm in torch, batched over envs."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

import torch
from torch import Tensor

from residual_rl.errors import ModelError
from residual_rl.utils.text import one_line

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
    """A serial chain of N hinge and slide joints, from the world to a tool frame.

    Args:
        offset: [N, 4, 4], each joint's frame in the frame of the joint before it (the world's for the first).
        axis: [N, 3], each joint's axis in its own frame.
        tool: [4, 4], the tool frame in the last joint's frame.
        slides: [N] bool, whether a joint slides along its axis; None if all joints are hinges.
        joint_names: N names, or none.
    """

    def __init__(
        self,
        offset: Tensor,
        axis: Tensor,
        tool: Tensor,
        slides: Tensor | None = None,
        joint_names: tuple[str, ...] = (),
    ):
        self.offset = offset
        self.axis = axis
        self.tool = tool
        self.slides = slides
        self.joint_names = joint_names

        # The cross product with the axis as a matrix, 0 for a slide.
        zero = torch.zeros_like(axis[:, 0])
        turning = axis if slides is None else axis.masked_fill(slides[:, None], 0.0)
        x, y, z = turning.unbind(-1)
        k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))

        # Rodrigues: R = I + sin(q) K + (1 - cos(q)) K². With the offset multiplied in, the transform of a
        # joint is a sum of three fixed matrices, weighted by 1, sin q and 1 - cos q. Slides add a fourth,
        # weighted by q.
        num_terms = 3 if slides is None else 4
        basis = torch.zeros(len(axis), num_terms, 4, 4, dtype=axis.dtype, device=axis.device)
        basis[:, 0] = torch.eye(4, dtype=axis.dtype, device=axis.device)
        basis[:, 1, :3, :3] = k
        basis[:, 2, :3, :3] = k @ k
        if slides is not None:
            basis[:, 3, :3, 3] = axis.masked_fill(~slides[:, None], 0.0)
        self._basis = offset[:, None] @ basis

    @property
    def num_joints(self) -> int:
        """N."""
        return len(self.axis)

    def to(self, device: torch.device) -> KinematicChain:
        """The same chain with its tensors on `device`."""
        slides = None if self.slides is None else self.slides.to(device)
        tensors = (self.offset.to(device), self.axis.to(device), self.tool.to(device))
        return KinematicChain(*tensors, slides, self.joint_names)

    def forward(self, joint_position: Tensor) -> tuple[Tensor, Tensor]:
        """World frames of the joints [B, N, 4, 4] and of the tool [B, 4, 4].

        `joint_position` [B, N] is in [rad] for hinges and [m] for slides.
        """
        terms = [torch.ones_like(joint_position), joint_position.sin(), 1.0 - joint_position.cos()]
        if self.slides is not None:
            terms.append(joint_position)
        weights = torch.stack(terms, -1)
        local = (weights[..., None, None] * self._basis).sum(2)
        frames = [local[:, 0]]
        for i in range(1, self.num_joints):
            frames.append(frames[-1] @ local[:, i])
        return torch.stack(frames, 1), frames[-1] @ self.tool

    def jacobian(self, frames: Tensor, tool: Tensor) -> tuple[Tensor, Tensor]:
        """Linear and angular Jacobian of the tool's origin, each [B, 3, N], from the result of `forward`."""
        axis = (frames[..., :3, :3] @ self.axis[..., None]).squeeze(-1)
        lever = tool[:, None, :3, 3] - frames[..., :3, 3]
        linear, angular = torch.linalg.cross(axis, lever), axis
        if self.slides is not None:
            slides = self.slides[:, None]
            linear, angular = torch.where(slides, axis, linear), torch.where(slides, 0.0, angular)
        return linear.mT, angular.mT

    @classmethod
    def from_mujoco(
        cls, model: mujoco.MjModel, site: str, dtype: torch.dtype = torch.float64
    ) -> KinematicChain:
        """The chain of joints that move `site` in a compiled MuJoCo model.

        Raises `ModelError` if there is no such site, or if a joint is neither a hinge nor a slide.
        """
        from residual_rl.utils.mujoco_library import mujoco

        # Find the bodies from the site to the world.
        site_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, site)
        if site_id < 0:
            raise ModelError(f"the model has no site {site!r}")
        bodies, body = [], int(model.site_bodyid[site_id])
        while body:
            bodies.append(body)
            body = int(model.body_parentid[body])

        def frame(position: object, quat: object) -> Tensor:
            return transform(torch.as_tensor(position, dtype=dtype), torch.as_tensor(quat, dtype=dtype))

        # From the world to the site, multiply the transforms between two joints into one.
        offsets, axes, slides, names = [], [], [], []
        pending = torch.eye(4, dtype=dtype)
        for body in reversed(bodies):
            pending = pending @ frame(model.body_pos[body], model.body_quat[body])
            for joint in range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body]):
                kind, name = model.jnt_type[joint], model.joint(joint).name
                is_slide = kind == mujoco.mjtJoint.mjJNT_SLIDE
                if not (is_slide or kind == mujoco.mjtJoint.mjJNT_HINGE) or model.jnt_pos[joint].any():
                    raise ModelError(
                        f"joint {name!r} on the way to {site!r} is not a hinge or slide at its body's origin"
                    )
                offsets.append(pending)
                axes.append(torch.as_tensor(model.jnt_axis[joint], dtype=dtype))
                slides.append(is_slide)
                names.append(name)
                pending = torch.eye(4, dtype=dtype)
        if not offsets:
            raise ModelError(f"no joint moves the site {site!r}")
        tool = pending @ frame(model.site_pos[site_id], model.site_quat[site_id])
        sliding = torch.tensor(slides) if any(slides) else None
        return cls(torch.stack(offsets), torch.stack(axes), tool, sliding, tuple(names))

    @classmethod
    def from_urdf(cls, urdf: str | bytes, link: str, dtype: torch.dtype = torch.float64) -> KinematicChain:
        """The chain of joints from the root to `link` in the text of a URDF, which MuJoCo parses.

        Only these joints are passed to MuJoCo, without geometry, inertia and limits, so that meshes need not
        be on disk. Raises `ModelError` if there is no such link or chain, or if the text is not a URDF, and
        `MissingDependencyError` without MuJoCo.
        """
        from residual_rl.utils.mujoco_library import mujoco

        try:
            spec = mujoco.MjSpec.from_string(_chain_urdf(urdf, link))
            spec.compiler.fusestatic = False  # fixed links keep their frames
            spec.compiler.boundmass = spec.compiler.boundinertia = 1.0
            spec.body(link).add_site(name=link)
            model = spec.compile()
        except ValueError as error:
            raise ModelError(f"MuJoCo cannot parse the URDF: {one_line(error)}") from error
        return cls.from_mujoco(model, link, dtype)


def _chain_urdf(urdf: str | bytes, link: str) -> str:
    """A URDF with only the links and joints from the root to `link`."""
    # Index the joints by the link that they move.
    try:
        robot = ElementTree.fromstring(urdf)
    except ElementTree.ParseError as error:
        raise ModelError(f"the URDF is not XML: {error}") from error
    links = {element.get("name") for element in robot.iter("link")}
    if link not in links:
        raise ModelError(
            f"the URDF has no link {link!r}; it has {', '.join(sorted(map(str, links))) or 'none'}"
        )
    joint_of: dict[str, tuple[str, ElementTree.Element]] = {}
    for joint in robot.findall("joint"):
        parent, child = joint.find("parent"), joint.find("child")
        if parent is not None and child is not None:
            joint_of[child.get("link", "")] = (parent.get("link", ""), joint)

    # Copy what defines the kinematics, from the link to the root.
    chain = ElementTree.Element("robot", name="chain")
    ElementTree.SubElement(chain, "link", name=link)
    while link in joint_of:
        link, joint = joint_of.pop(link)
        ElementTree.SubElement(chain, "link", name=link)
        copy = ElementTree.SubElement(chain, "joint", joint.attrib)
        copy.extend(element for element in joint if element.tag in ("parent", "child", "origin", "axis"))
    return ElementTree.tostring(chain, encoding="unicode")


def finger_steps(
    chain: KinematicChain, frames: Tensor, tool: Tensor, error: Tensor, damping: float
) -> Tensor:
    """Joint steps [B, N-1] that move a finger, by damped least squares; the last joint, its roll, stays.

    Args:
        chain: the joints, with the finger along the x axis of the tool.
        frames: see `KinematicChain.jacobian`.
        tool: see `KinematicChain.jacobian`.
        error: [B, 4], the change of the tool's origin [m] and of the z component of its x axis, which is the
            finger's pitch.
        damping: see `damped_least_squares`.
    """
    linear, angular = chain.jacobian(frames, tool)
    finger = tool[:, :3, 0]
    # The fourth row is the z component of ω × finger, which changes the finger's pitch.
    finger_z = angular[:, 0] * finger[:, None, 1] - angular[:, 1] * finger[:, None, 0]
    jacobian = torch.cat([linear, finger_z[:, None]], 1)[..., :-1]
    return damped_least_squares(jacobian, error, damping)


def damped_least_squares(jacobian: Tensor, error: Tensor, damping: float) -> Tensor:
    """Joint steps `Jᵀ (J Jᵀ + damping² I)⁻¹ e` [B, N] for a task-space error [B, M] and Jacobian [B, M, N].

    Wampler (1986), "Manipulator inverse kinematic solutions based on vector formulations and damped
    least-squares methods".
    """
    gram = jacobian @ jacobian.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(damping**2)
    return (jacobian.mT @ torch.linalg.solve(gram, error[..., None])).squeeze(-1)
