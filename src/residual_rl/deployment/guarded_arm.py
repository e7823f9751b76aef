"""A driver whose readings are checked, whose targets are limited, and which stops safely."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from residual_rl.deployment.arm_cfg import GuardCfg
from residual_rl.deployment.loop_timing import LoopTiming
from residual_rl.errors import ArmError
from residual_rl.robots.arm_driver import ArmDriver, ArmReading
from residual_rl.robots.safety_limits import SafetyLimits
from residual_rl.utils.text import one_line

_log = logging.getLogger(__name__)
_FROZEN_ERROR = 0.03
"""Distance between target and reading at which joints that do not move at all are suspicious [rad]."""
_REPORT_ERROR = 0.1
"""Distance by which the targets that a driver reports may differ from any that make sense [rad]."""
_SEEN_MOVE = 0.3
"""Motion of a joint that every camera should see [rad]."""
_POLL = 0.002
"""Time between two attempts to get a new reading [s]."""
_WATCH = 0.01
"""Time between two checks of the policy's answer [s]."""


@dataclass(frozen=True)
class Limitation:
    """A command that limits have changed."""

    time: float
    """On the driver's clock [s]."""
    wanted: NDArray[np.float64]
    """[J] the targets of the policy [rad]."""
    sent: NDArray[np.float64]
    """[J] the targets that were sent [rad]."""
    changes: dict[str, NDArray[np.float64]]
    """[J] the change by each limit that acted [rad]."""


class GuardedArm:
    """`driver` with every reading checked, every target limited, and one way to stop.

    - Nothing is commanded before the first valid reading, and the first target is limited around the joints'
      measured positions.
    - No target is sent on a reading that was used before, is stale, or is older than `max_latency`.
    - `stop` holds the arm or turns its torque off; afterwards nothing is sent. A thread of its own calls it
      if the policy does not answer within `max_latency`.
    - With `dry_run` nothing is sent at all, and the targets stay where the arm is.

    Args:
        driver: not connected yet.
        limits: limits of the joint targets.
        cfg: when to stop, and how.
        dry_run: send nothing.
        on_command: receives the reading, and the wanted and the limited targets [J], of each command.
    """

    def __init__(
        self,
        driver: ArmDriver,
        limits: SafetyLimits,
        cfg: GuardCfg | None = None,
        dry_run: bool = False,
        on_command: Callable[[ArmReading, Limitation], None] | None = None,
    ):
        self.driver = driver
        self.hardware = driver.hardware
        self.limits = limits
        self.cfg = cfg or GuardCfg()
        self.dry_run = dry_run
        self.timing = LoopTiming()
        """Latency and intervals of the commands."""
        self.stopped: str | None = None
        """Why the arm was stopped; None: it was not."""
        self._stop_failure: str | None = None
        self._on_command = on_command
        self._lock = threading.RLock()
        # readings
        self._reading: ArmReading | None = None
        self._used: float | None = None
        self._unchanged_since = 0.0
        self._images: dict[str, ArmReading] = {}
        """By camera, the first reading with the present image."""
        # targets: None at rest, where the next one starts from the measured positions
        self._target: NDArray[np.float64] | None = None
        self._target_step = np.zeros(len(driver.hardware.joint_names))
        self._has_commanded = False
        # the watchdog
        self._computing_since: float | None = None
        self._ended = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="watchdog of the policy", daemon=True)

    # --- the driver ---

    def connect(self) -> None:
        """Connect, and check that the readings are valid and that their time advances. Nothing moves."""
        self.driver.connect()
        self._used = self.read().time
        self.read()
        self.rest()
        self._watchdog.start()

    def read(self) -> ArmReading:
        """The next valid reading: newer than the one of the last command.

        Raises:
            ArmError: it is malformed, implausible, stale or frozen, or there is none.
        """
        self._computing_since = None
        began = self.driver.now()
        while True:
            reading = self._checked(self.driver.read())
            now = self.driver.now()
            self._check_age(reading, now)
            if self._used is None or reading.time > self._used:
                break
            if now - began > self.cfg.stale_after:
                raise ArmError(f"the arm has given the same reading for {now - began:.2f} s")
            self.driver.wait_until(now + _POLL)
        self._check_frozen(reading)
        self._check_images(reading)
        self._reading = reading
        self.timing.reading(reading.time)
        if self._target is not None:
            self._computing_since = self.driver.now()
        return reading

    def command(self, joint_target: NDArray[np.float64]) -> NDArray[np.float64]:
        """Limit `joint_target` [J] in [rad] and send it; returns what was sent.

        Raises:
            ArmError: the arm was stopped, there is no valid reading yet or none since the last command, the
                reading is too old, or a target is not finite.
        """
        with self._lock:
            self._computing_since = None
            # What is not checked is not sent.
            if self.stopped is not None:
                raise ArmError(self.stopped)
            if self._reading is None:
                raise ArmError("the arm has given no valid reading yet, so nothing is commanded")
            wanted = self._finite(joint_target)
            at_rest = self._target is None
            if at_rest:  # a policy may take long before its first command; the arm has not moved since
                self.read()
            reading, now = self._reading, self.driver.now()
            if not at_rest and now - reading.time > self.cfg.max_latency:
                raise ArmError(self._too_slow(now - reading.time))
            if self._used is not None and reading.time <= self._used:
                raise ArmError("there is no new reading since the last command")

            # Limit and send.
            previous = reading.joint_position if self._target is None else self._target
            limited = self._limited(wanted, previous, now)
            if self.dry_run:
                sent = previous = reading.joint_position.copy()
            else:
                self._has_commanded = True
                sent = self._believable(self.driver.command(limited.sent), limited.sent, reading, previous)
            self.timing.command(now, at_rest)
            self._used = reading.time
            self._target, self._target_step = sent, sent - previous
            if self._on_command is not None:
                self._on_command(reading, limited)
            return sent

    def hold(self) -> None:
        self.stop("held")

    def torque_off(self) -> None:
        self.driver.torque_off()

    def rest(self) -> None:
        """Tell that no policy acts from now on, for a pause or a reset: the next target starts from where the
        arm is measured then."""
        self._computing_since = None
        self._used = None
        self._target = None
        self._target_step = np.zeros_like(self._target_step)
        self._unchanged_since = self.driver.now()
        self.timing.pause()

    def stop(self, reason: str) -> str | None:
        """Hold the arm or turn its torque off, as `at_exit` says. Later calls do nothing.

        Returns what failed in the first call, or None. It never raises an exception.
        """
        # A command in progress may never end: then the driver is told all the same.
        locked = self._lock.acquire(timeout=0.05)
        try:
            if self.stopped is not None:
                return self._stop_failure
            self.stopped = reason
            self._computing_since = None
            if self.dry_run:
                return None
            if self.cfg.at_exit == "hold" and not self._has_commanded:
                return None  # it stands where it stood before, by its own servos
            if self.cfg.at_exit == "hold":
                self.driver.hold()
            else:
                self.driver.torque_off()
        except Exception as error:  # noqa: BLE001 (whatever a driver raises, the program goes on to its end)
            what = "held" if self.cfg.at_exit == "hold" else "freed of torque"
            self._stop_failure = f"the arm could not be {what}: {one_line(error)}"
        finally:
            if locked:
                self._lock.release()
        return self._stop_failure

    def disconnect(self) -> None:
        self._ended.set()
        if self._watchdog.is_alive():
            self._watchdog.join(1.0)
        with contextlib.suppress(Exception):  # the arm was stopped before, and the reason is known
            self.driver.disconnect()

    def now(self) -> float:
        return self.driver.now()

    def wait_until(self, time: float) -> None:
        self._computing_since = None
        self.driver.wait_until(time)

    # --- checks ---

    def _checked(self, reading: Any) -> ArmReading:
        """`reading` with float64 joint positions, if it can be right."""
        if not isinstance(reading, ArmReading):
            raise ArmError(f"the arm gave {type(reading).__name__} in place of a reading")
        names = self.hardware.joint_names
        try:
            joints = np.array(reading.joint_position, np.float64)
            taken = float(reading.time)
        except (TypeError, ValueError, OverflowError) as error:
            raise ArmError(f"the arm gave a reading that is no numbers: {one_line(error)}") from None
        if joints.shape != (len(names),):
            raise ArmError(f"the arm gave joint positions of shape {joints.shape}, not ({len(names)},)")
        if not np.isfinite(joints).all() or not np.isfinite(taken):
            bad = [name for name, value in zip(names, joints, strict=True) if not np.isfinite(value)]
            raise ArmError(f"the arm gave NaN or infinity for {', '.join(bad) or 'the time'}")
        if not self.hardware.is_plausible(torch.from_numpy(joints)):
            at = int(self.hardware.beyond_range(torch.from_numpy(joints)).argmax())
            raise ArmError(
                f"the arm gave {np.degrees(joints[at]):.0f}° for {names[at]}, far beyond its range: check its"
                " calibration"
            )
        if not isinstance(reading.images, Mapping):
            raise ArmError(f"the arm gave {type(reading.images).__name__} in place of images by camera")
        for name, image in reading.images.items():
            if (
                not isinstance(image, np.ndarray)
                or image.dtype != np.uint8
                or image.shape[2:] != (3,)
                or not image.size
            ):
                raise ArmError(f"the arm's camera {name} gave no image [H, W, 3] of uint8")
        return ArmReading(joints, taken, dict(reading.images))

    def _check_age(self, reading: ArmReading, now: float) -> None:
        age = now - reading.time
        if age > self.cfg.stale_after or age < -self.cfg.stale_after:
            raise ArmError(
                f"the arm's reading is {age:.2f} s old, on its own clock (at most {self.cfg.stale_after:g} s)"
            )

    def _check_frozen(self, reading: ArmReading) -> None:
        last = self._reading
        if last is None or self._target is None or (reading.joint_position != last.joint_position).any():
            self._unchanged_since = reading.time
            return
        away = np.abs(self._target - reading.joint_position)
        unchanged = reading.time - self._unchanged_since
        if away.max() > _FROZEN_ERROR and unchanged > self.cfg.frozen_after:
            name = self.hardware.joint_names[int(away.argmax())]
            raise ArmError(
                f"the joints have given exactly the same positions for {unchanged:.1f} s, although the target"
                f" of {name} is {np.degrees(away.max()):.1f}° away: the arm is blocked, or its readings are"
                " frozen"
            )

    def _check_images(self, reading: ArmReading) -> None:
        for name, image in reading.images.items():
            first = self._images.get(name)
            if first is None or not np.array_equal(first.images[name], image):
                self._images[name] = reading
                continue
            unchanged = reading.time - first.time
            moved = np.abs(reading.joint_position - first.joint_position).max()
            if unchanged > self.cfg.frozen_after and moved > _SEEN_MOVE:
                raise ArmError(
                    f"the arm's camera {name} has given exactly the same image for {unchanged:.1f} s,"
                    f" although the arm has moved by {np.degrees(moved):.0f}°"
                )

    def _finite(self, joint_target: Any) -> NDArray[np.float64]:
        target = np.array(joint_target, np.float64)
        if target.shape != self._target_step.shape or not np.isfinite(target).all():
            raise ArmError(f"joint targets must be {len(self._target_step)} finite numbers, not {target}")
        return target

    def _believable(
        self,
        reported: Any,
        commanded: NDArray[np.float64],
        reading: ArmReading,
        previous: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """The targets [J] that a driver says to have sent. The next ones are limited around them, so that an
        arm that says otherwise than it does would be commanded to jump."""
        sent = self._finite(reported)
        # A driver may only limit further: towards where the arm is, or where it was commanded before.
        kept = np.maximum(np.abs(reading.joint_position - commanded), np.abs(previous - commanded))
        excess = np.abs(sent - commanded) - kept - _REPORT_ERROR
        if excess.max() > 0.0:
            at = int(excess.argmax())
            raise ArmError(
                f"the arm says that it was sent {np.degrees(sent[at]):.1f}° for"
                f" {self.hardware.joint_names[at]}, although {np.degrees(commanded[at]):.1f}° was commanded"
            )
        return sent

    def _limited(self, wanted: NDArray[np.float64], previous: NDArray[np.float64], now: float) -> Limitation:
        rows = [torch.from_numpy(row)[None] for row in (wanted, previous, self._target_step)]
        result = self.limits(*rows)
        changes = {name: change[0].numpy() for name, change in result.changes.items()}
        return Limitation(now, wanted, result.target[0].numpy(), changes)

    def _too_slow(self, took: float) -> str:
        limit = self.cfg.max_latency
        return f"the policy took {took:.2f} s for an action (at most {limit:g} s, see --max-latency)"

    def _watch(self) -> None:
        """Stop the arm when the policy does not answer in time, or when this thread cannot tell."""
        while not self._ended.is_set():
            since = self._computing_since
            if since is not None:
                took = self.driver.now() - since
                if took > self.cfg.max_latency:
                    failed = self.stop(self._too_slow(took))
                    _log.error("%s%s", self.stopped, f"; {failed}" if failed else "")
                    return
            self._ended.wait(_WATCH)
