"""A pose source for `residual-rl deploy`: ArUco markers, seen by one camera.

Print markers with `python examples/aruco_pose_source.py print 0 1 2`, glue those of the table around the
arm's workspace and one on the object, measure where they are, and write it into `aruco.json`:

    {
      "camera": 0,
      "size": [1280, 720],
      "camera_matrix": [[900, 0, 640], [0, 900, 360], [0, 0, 1]],
      "distortion": [0, 0, 0, 0, 0],
      "table_markers": [
        {"id": 0, "size": 0.05, "position": [0.10, -0.25], "yaw": 0},
        {"id": 1, "size": 0.05, "position": [0.40, -0.25], "yaw": 0}
      ],
      "object_marker": {"id": 2, "size": 0.04, "position": [0, 0], "yaw": 0}
    }

Lengths are in [m] and angles in [rad]. Positions of table markers are in the frame of the arm's base, that of
the object's marker in the object's frame. The camera matrix and distortion come from `cv2.calibrateCamera`.
Then, in the folder of that file:

    PYTHONPATH=examples residual-rl deploy RUN --pose-source aruco_pose_source:object_pose --robot.type …

The object must lie flat on the table, at the height of the table markers.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from residual_rl import ConfigError, MissingDependencyError, Pose

try:
    import cv2
except ImportError:
    raise MissingDependencyError("OpenCV", "install it with `pip install residual-rl[aruco]`") from None

DICTIONARY = cv2.aruco.DICT_4X4_50
CONFIG = Path("aruco.json")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Marker:
    """A marker that lies flat."""

    id: int
    size: float
    """Length of a side of the black square [m]."""
    position: tuple[float, float] = (0.0, 0.0)
    """Its centre [m]."""
    yaw: float = 0.0
    """Rotation about z [rad]; with 0, its upper edge points along y."""

    @property
    def corners(self) -> Floats:
        """[4, 2], in OpenCV's order: clockwise from the upper left."""
        half = 0.5 * self.size
        square = np.array([[-half, half], [half, half], [half, -half], [-half, -half]])
        return square @ rotation(self.yaw).T + np.asarray(self.position)


def rotation(yaw: float) -> Floats:
    """The rotation matrix [2, 2]."""
    return np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])


class ArucoPoseSource:
    """The pose of an object with a marker, in the frame in which the table's markers are given.

    The camera's pose follows from the table markers; one that is hidden for a while is no problem, since the
    last pose is kept. The object's corners are where their rays meet the table, which is more accurate than
    their size in the image.

    Args:
        read_image: returns an image [H, W, 3] or [H, W] of uint8, or None.
        camera_matrix: [3, 3].
        distortion: OpenCV's distortion coefficients.
        table_markers: one or, better, several around the workspace.
        object_marker: on the object, in its frame.
    """

    def __init__(
        self,
        read_image: Callable[[], NDArray[np.uint8] | None],
        camera_matrix: Floats,
        distortion: Floats,
        table_markers: Sequence[Marker],
        object_marker: Marker,
    ):
        self._read_image = read_image
        self._matrix = np.asarray(camera_matrix, np.float64)
        self._distortion = np.asarray(distortion, np.float64)
        self._table = {marker.id: marker for marker in table_markers}
        self._object = object_marker
        parameters = cv2.aruco.DetectorParameters()
        parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
        self._detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(DICTIONARY), parameters)
        self._camera: tuple[Floats, Floats] | None = None
        """Rotation [3, 3] and translation [3] from the table to the camera."""

    def __call__(self) -> Pose | None:
        """The pose now; None if the object or every table marker so far is hidden."""
        taken = time.monotonic()
        image = self._read_image()
        if image is None:
            return None
        found, ids, _ = self._detector.detectMarkers(image)
        if ids is None:
            return None
        seen = {int(id): corners.reshape(4, 2) for id, corners in zip(ids.flatten(), found, strict=True)}
        self._locate_camera(seen)
        if self._object.id not in seen or self._camera is None:
            return None

        # The rigid motion that brings the marker's corners in the object's frame to those on the table.
        on_table = self._on_table(seen[self._object.id])
        own = self._object.corners
        own_centre, centre = own.mean(0), on_table.mean(0)
        a, b = own - own_centre, on_table - centre
        yaw = np.arctan2((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a * b).sum())
        x, y = centre - rotation(yaw) @ own_centre
        return Pose(np.array([x, y, 0.0]), np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]), taken)

    def _locate_camera(self, seen: dict[int, Floats]) -> None:
        known = [marker for id, marker in self._table.items() if id in seen]
        if not known:
            return
        table = np.concatenate([marker.corners for marker in known])
        points = np.column_stack([table, np.zeros(len(table))])
        pixels = np.concatenate([seen[marker.id] for marker in known]).astype(np.float64)
        ok, turn, shift = cv2.solvePnP(
            points, pixels, self._matrix, self._distortion, flags=cv2.SOLVEPNP_IPPE
        )
        if ok:
            turn, shift = cv2.solvePnPRefineLM(points, pixels, self._matrix, self._distortion, turn, shift)
            self._camera = cv2.Rodrigues(turn)[0], shift.flatten()

    def _on_table(self, pixels: Floats) -> Floats:
        """Where the rays of `pixels` [N, 2] meet the table [N, 2]."""
        assert self._camera is not None
        turn, shift = self._camera
        straight = cv2.undistortPoints(pixels[:, None].astype(np.float64), self._matrix, self._distortion)
        rays = np.column_stack([straight[:, 0], np.ones(len(pixels))]) @ turn
        eye = -turn.T @ shift
        return (eye - rays * (eye[2] / rays[:, 2:]))[:, :2]


@functools.cache
def _source() -> ArucoPoseSource:
    """The source that `aruco.json` in the current folder describes."""
    try:
        settings = json.loads(CONFIG.read_text("utf-8"))
        camera, (width, height) = settings["camera"], settings["size"]
        table = [Marker(**marker) for marker in settings["table_markers"]]
        on_object = Marker(**settings["object_marker"])
        matrix, distortion = np.array(settings["camera_matrix"]), np.array(settings["distortion"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{CONFIG.absolute()} cannot be used ({error}); see {__file__}") from error
    capture = cv2.VideoCapture(camera)
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read() -> NDArray[np.uint8] | None:
        ok, image = capture.read()
        if not ok:
            raise ConfigError(f"camera {camera} gives no image")
        return image

    return ArucoPoseSource(read, matrix, distortion, table, on_object)


def object_pose() -> Pose | None:
    """The pose source for `--pose-source aruco_pose_source:object_pose`."""
    return _source()()


def marker_image(id: int, pixels: int = 400) -> NDArray[np.uint8]:
    """The marker `id` with a white border of an eighth of its side, [H, W] uint8."""
    black = cv2.aruco.generateImageMarker(cv2.aruco.getPredefinedDictionary(DICTIONARY), id, pixels)
    return np.pad(black, pixels // 8, constant_values=255)


def main(arguments: Sequence[str]) -> int:
    """`print ID …`: write marker_ID.png for each id."""
    if len(arguments) < 2 or arguments[0] != "print":
        print("usage: python aruco_pose_source.py print ID …")
        return 2
    for word in arguments[1:]:
        cv2.imwrite(f"marker_{word}.png", marker_image(int(word)))
        print(f"marker_{word}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
