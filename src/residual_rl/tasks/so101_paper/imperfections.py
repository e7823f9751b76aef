"""The imperfections of a real arm: latency, lost poses, backlash, and servos and joints that vary.

All of them are functions of an episode's seed and of its steps so far. What they need of earlier steps is the
task's memory, which the vec_env keeps; see `Task.remember`. Where nothing keeps a memory, as for a policy on
an arm, they add no latency, lost poses or backlash to those of the arm itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from residual_rl.envs.task import Quantities
from residual_rl.robots.kinematics import KinematicChain
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.robot import JOINTS
from residual_rl.utils.seeding import uniform

# The streams of the other draws are 0 and, for the noise of step t, 1 + t.
_EPISODE_STREAM = -1
_DROPOUT_STREAM = -2
"""Stream of the draws of step 0; that of step t is smaller by t."""
MeasurePose = Callable[[Quantities], Tensor]
"""Returns the measured pose of the sheet [B, 7]."""


class Imperfections:
    """The imperfections that the task's settings turn on.

    Args:
        cfg: the task's settings.
        kinematics: of the joints up to the fingertip; only for backlash.
    """

    def __init__(self, cfg: SO101PaperCfg, kinematics: KinematicChain | None = None):
        self.cfg = cfg
        self._kinematics = kinematics
        self._action_latency = _pair(cfg.action_latency)
        self._pose_latency = _pair(cfg.pose_latency)
        self._holds_pose = bool(cfg.pose_dropout or self._pose_latency[1] or cfg.observe_sheet_seen)
        self._has_backlash = cfg.backlash[1] > 0.0

    @property
    def longest_action_latency(self) -> int:
        """Largest number of steps after which an action reaches the servos."""
        return self._action_latency[1]

    # --- the draws of an episode ---

    def randomize(self, seed: Tensor) -> Quantities:
        """The draws of episodes, of what varies between them only, by `seed` [n] int64.

        `action_latency` and `pose_latency` [n] int64 are in steps, `servo_gain_scale` and
        `joint_friction_scale` [n, J] are factors, and `backlash` [n, J] is in [rad].
        """
        cfg, joints = self.cfg, len(JOINTS)
        shares = uniform(seed, _EPISODE_STREAM, 2 + 3 * joints)
        if cfg.randomization == "off":
            shares = torch.full_like(shares, 0.5)
        action, pose, gain, friction, backlash = shares.split([1, 1, joints, joints, joints], 1)
        drawn = {}
        if self._action_latency[0] < self._action_latency[1]:
            drawn["action_latency"] = _whole(action[:, 0], self._action_latency)
        if self._pose_latency[0] < self._pose_latency[1]:
            drawn["pose_latency"] = _whole(pose[:, 0], self._pose_latency)
        if cfg.servo_gain_scale != (1.0, 1.0):
            low, high = cfg.servo_gain_scale
            drawn["servo_gain_scale"] = low * (high / low) ** gain
        if cfg.joint_friction_scale != (1.0, 1.0):
            low, high = cfg.joint_friction_scale
            drawn["joint_friction_scale"] = low + friction * (high - low)
        if self._has_backlash:
            low, high = cfg.backlash
            drawn["backlash"] = low + backlash * (high - low)
        return drawn

    # --- the memory of earlier steps ---

    def begin_memory(self, q: Quantities, measure_pose: MeasurePose) -> Quantities:
        """The memory at the start of an episode, in which the sheet's pose is seen.

        The servos are in the middle of their backlash, and the actions of earlier steps are 0.
        """
        memory = {}
        if self._action_latency[1] > 1:
            memory["earlier_actions"] = torch.zeros_like(q["action"])[:, None].repeat(
                1, self._action_latency[1] - 1, 1
            )
        if self._holds_pose:
            memory["poses"] = measure_pose(q)[:, None].repeat(1, 1 + self._pose_latency[1], 1)
            memory["poses_seen"] = torch.ones_like(memory["poses"][..., 0], dtype=torch.bool)
            memory["steps_lost"] = torch.zeros_like(q["step"])
        if self._has_backlash:
            memory["play"] = torch.zeros_like(q["joint_target"])
        return memory

    def remember(self, q: Quantities, before: Quantities, measure_pose: MeasurePose) -> Quantities:
        """The memory after a step, by name:

        - `earlier_actions` [B, …, A]: the actions before the last one, newest first;
        - `poses` [B, …, 7] and `poses_seen` [B, …]: for the last steps, newest first, the pose that was last
          seen by then, and whether it was seen in that step;
        - `steps_lost` [B] int64: the number of steps for which the pose will be lost, with this one;
        - `play` [B, J]: how far each servo is ahead of its link [rad].

        Args:
            q: the quantities after the step.
            before: those before it.
            measure_pose: the measured pose [B, 7] of the sheet.
        """
        memory = {}
        if self._action_latency[1] > 1:
            memory["earlier_actions"] = _push(before["earlier_actions"], before["action"])
        if self._holds_pose:
            lost = self.steps_lost(q["seed"], q["step"], before["steps_lost"])
            seen = lost == 0
            if "sheet_seen" in q:
                seen = seen & (q["sheet_seen"] > 0)
            last_seen = torch.where(seen[:, None], measure_pose(q), before["poses"][:, 0])
            memory["poses"] = _push(before["poses"], last_seen)
            memory["poses_seen"] = _push(before["poses_seen"], seen)
            memory["steps_lost"] = lost
        if self._has_backlash:
            memory["play"] = self._play(q["joint_target"], before)
        return memory

    def steps_lost(self, seed: Tensor, step: Tensor, lost: Tensor) -> Tensor:
        """`steps_lost` [B] of this step, from that of the step before. A stretch that begins within another
        one may prolong it."""
        low, high = self.cfg.pose_dropout_steps
        shares = uniform(seed, _DROPOUT_STREAM - step, 2)
        length = torch.where(shares[:, 0] < self.cfg.pose_dropout, _whole(shares[:, 1], (low, high)), 0)
        return (lost - 1).clamp(min=0).maximum(length)

    # --- what the arm does and what is observed ---

    def delayed(self, action: Tensor, q: Quantities) -> Tensor:
        """The action [B, A] that reaches the servos when `action` [B, A] is sent."""
        low, high = self._action_latency
        if high == 0 or (high > 1 and "earlier_actions" not in q):
            return action
        earlier = q["earlier_actions"].unbind(1) if high > 1 else ()
        return _chosen(torch.stack([action, q["action"], *earlier], 1), q.get("action_latency", low))

    def link_target(self, target: Tensor, q: Quantities) -> Tensor:
        """The joint targets [B, J] of the links for the `target` [B, J] of the servos."""
        return target - self._play(target, q) if "play" in q else target

    def _play(self, target: Tensor, before: Quantities) -> Tensor:
        """`play` [B, J] after the servos have moved to `target` [B, J].

        This is the hysteresis of backlash where friction holds the link: it moves only while the servo pushes
        it at one end of the gap. Source: Nordin and Gutman 2002, "Controlling mechanical systems with
        backlash: a survey", Automatica 38, the model that neglects the link's inertia. Gravity and contacts,
        which may also move the link in the gap, are left out.
        """
        half = 0.5 * before["backlash"]
        return (before["play"] + target - before["joint_target"]).maximum(-half).minimum(half)

    def measured_joints(self, q: Quantities) -> Quantities:
        """The quantities as the servos' encoders measure them: the joint positions on the servos' side of the
        backlash, and the fingertip computed from these."""
        if "play" not in q:
            return q
        measured = {**q, "joint_position": q["joint_position"] + q["play"]}
        if self._kinematics is not None:
            joints = measured["joint_position"][:, : self._kinematics.num_joints]
            measured["ee_position"] = self._kinematics.forward(joints)[1][:, :3, 3]
        return measured

    def observed_pose(self, q: Quantities) -> tuple[Tensor, Tensor] | None:
        """The sheet's pose [B, 7] as it is observed, and whether it was seen [B]; None if nothing keeps it
        from being seen at once."""
        if "poses" not in q:
            return None
        latency = q.get("pose_latency", self._pose_latency[0])
        return _chosen(q["poses"], latency), _chosen(q["poses_seen"], latency)


def _pair(steps: int | tuple[int, int]) -> tuple[int, int]:
    return steps if isinstance(steps, tuple) else (steps, steps)


def _whole(share: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Whole numbers [n] from the first to the second of `bounds`, with equal probabilities."""
    low, high = bounds
    return low + (share * (high - low + 1)).long()


def _push(newest_first: Tensor, value: Tensor) -> Tensor:
    """`value` [B, …] in front of `newest_first` [B, K, …], without the oldest."""
    return torch.cat([value[:, None], newest_first[:, :-1]], 1)


def _chosen(newest_first: Tensor, steps_ago: Tensor | int) -> Tensor:
    """The values [B, …] of `newest_first` [B, K, …] at `steps_ago` [B]."""
    if isinstance(steps_ago, int):
        return newest_first[:, steps_ago]
    return newest_first[torch.arange(len(newest_first), device=newest_first.device), steps_ago]
