"""Settings and description of a ManiSkill env: plain values, exchanged with worker processes as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from residual_rl.envs.workers.shared_memory import ArraySpec
from residual_rl.robots.arm import Arm

WITHOUT_VULKAN = (
    "needs a Vulkan driver, and this machine has no working one; without a GPU, install Mesa 25 or newer:"
    " apt-get install libvulkan1 mesa-vulkan-drivers (on Debian 12 from bookworm-backports), or run"
    " `make vulkan` as root in a checkout"
)
"""End of an error message; the feature that needs the driver comes before it."""


@dataclass(frozen=True)
class ManiSkillEnvCfg:
    """Arguments of `gymnasium.make`. None means the task's default."""

    env_id: str
    robot_uids: str | None = None
    control_mode: str | None = None
    obs_mode: str = "state"
    """`state`, `rgb` or `rgb+state`."""
    reward_mode: str | None = None
    sim_backend: str = "physx_cpu"
    render_backend: str = "none"
    reconfiguration_freq: int | None = None
    image_size: tuple[int, int] | None = None
    """Height and width of all cameras [px]."""
    modules: tuple[str, ...] = ()
    """Modules to import first, which register further tasks and robots."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ManiSkillEnvCfg:
        size = data["image_size"]
        return cls(
            **{**data, "image_size": None if size is None else tuple(size), "modules": tuple(data["modules"])}
        )

    @property
    def has_images(self) -> bool:
        """Whether images are observed."""
        return self.obs_mode != "state"


@dataclass(frozen=True)
class EnvDescription:
    """Properties of a ManiSkill env that are known after its creation."""

    robot: str
    control_mode: str
    max_episode_steps: int | None
    control_hz: float
    observations: dict[str, ArraySpec]
    """The observations of one env by name: float32, or uint8 for images."""
    metrics: tuple[str, ...]
    """The task's own metrics of a step, besides success."""
    action_unit: tuple[float, ...]
    """The physical value of an action of 1, in the units of the controllers ([rad], [m], [rad/s])."""
    state_size: int
    """Size of the simulator's state."""
    deterministic: bool
    """Whether an episode is a function of its seed and its actions alone, bit for bit."""
    env_id: str = ""
    """Id of the ManiSkill task."""
    arm: Arm | None = None
    """Description of the arm; None with several robots and for robots without an arm."""
    state_parts: tuple[tuple[str, int], ...] = ()
    """Name and size of each part of the simulator's state that can be set, in order: `actors/cube`, …"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def action_unit_name(self) -> str:
        """Unit of the arm's translations or joints in `action_unit`; rotations and the gripper differ."""
        return "m" if "_ee_" in self.control_mode else "rad"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EnvDescription:
        observations = {
            name: ArraySpec(tuple(value["shape"]), value["dtype"])
            for name, value in data["observations"].items()
        }
        # JSON has lists where the fields are tuples
        tuples = {name: tuple(data[name]) for name in ("metrics", "action_unit")}
        tuples["state_parts"] = tuple((name, size) for name, size in data["state_parts"])
        arm = None if data["arm"] is None else Arm.from_json(data["arm"])
        return cls(**{**data, **tuples, "observations": observations, "arm": arm})
