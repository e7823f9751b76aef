"""The pose source with ArUco markers, on images of the task's scene with markers on table and sheet."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from residual_rl.envs.mujoco.renderer import CameraRenderer
from residual_rl.errors import ConfigError
from residual_rl.tasks.so101_paper.robot import HOME
from residual_rl.tasks.so101_paper.scene import SceneCfg, build_spec
from residual_rl.utils.mujoco_library import mujoco

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install residual-rl[aruco]")
SIZE = 900
BORDER = 1.25
"""Side of a printed marker with its white border, in sides of the black square."""


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(
        "aruco_pose_source", ROOT / "examples" / "aruco_pose_source.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["aruco_pose_source"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def markers(example):
    Marker = example.Marker
    table = [
        Marker(0, 0.05, (0.05, -0.24)),
        Marker(1, 0.05, (0.42, -0.24)),
        Marker(2, 0.05, (0.42, 0.24), 0.5),
    ]
    return table, Marker(3, 0.05, (0.03, -0.06), 0.2)


def add_marker(example, spec, body, marker, height):
    """A thin box with the marker on its upper side."""
    pixels = example.marker_image(marker.id)
    rgb = np.repeat(pixels[..., None], 3, 2)
    name = f"marker{marker.id}"
    texture = spec.add_texture(
        name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=rgb.shape[1], height=rgb.shape[0], nchannel=3
    )
    texture.data = rgb.tobytes()
    material = spec.add_material(name=name, specular=0, shininess=0)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    half = 0.5 * marker.size * BORDER
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(half, half, 0.0001),
        pos=(*marker.position, height),
        quat=(math.cos(marker.yaw / 2), 0, 0, math.sin(marker.yaw / 2)),
        material=name,
        contype=0,
        conaffinity=0,
        mass=0,
    )


@pytest.fixture(scope="module")
def render(example, markers):
    """Images [H, W, 3] of the camera `top` for poses x, y, yaw of the sheet."""
    spec = build_spec(SceneCfg(top_fovy=90.0))
    for marker in markers[0]:
        add_marker(example, spec, spec.worldbody, marker, 0.0)
    add_marker(example, spec, spec.body("sheet"), markers[1], 0.0002)
    renderer = CameraRenderer(spec.compile(), ("top",), SIZE, SIZE, num_threads=1)

    def images(poses):
        qpos = [[*HOME, x, y, 0.0, math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)] for x, y, yaw in poses]
        return renderer.render(np.array(qpos))["top"]

    yield images
    renderer.close()


def camera_matrix():
    focal = 0.5 * SIZE / math.tan(math.radians(45.0))
    return np.array([[focal, 0, SIZE / 2 - 0.5], [0, focal, SIZE / 2 - 0.5], [0, 0, 1]])


def source_of(example, markers, images):
    images = iter(images)
    return example.ArucoPoseSource(lambda: next(images), camera_matrix(), np.zeros(5), *markers)


POSES = [(0.30, 0.10, 0.3), (0.33, -0.08, -0.4), (0.36, 0.02, 0.0), (0.28, 0.12, 1.2)]


def test_aruco_pose_source__finds_the_sheet_to_3_mm_and_1_degree(example, markers, render):
    source = source_of(example, markers, render(POSES))
    for x, y, yaw in POSES:
        pose = source()
        assert pose is not None
        assert np.hypot(pose.position[0] - x, pose.position[1] - y) < 0.003
        seen = 2 * math.atan2(pose.quaternion[3], pose.quaternion[0])
        assert abs(seen - yaw) < math.radians(1.0)
        assert pose.position[2] == 0.0


def test_aruco_pose_source__hidden_table_markers_are_no_problem_and_a_hidden_sheet_is_none(
    example, markers, render
):
    first, second = render(POSES[:2])
    without_table, without_sheet = second.copy(), first.copy()
    finder = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(example.DICTIONARY))
    for image, keep in ((without_table, {3}), (without_sheet, {0, 1, 2})):
        corners, ids, _ = finder.detectMarkers(image)
        for four, id in zip(corners, ids.flatten(), strict=True):
            if int(id) not in keep:
                cv2.fillConvexPoly(image, four.reshape(4, 2).astype(np.int32), (90, 90, 90))
    source = source_of(example, markers, [first, without_table, without_sheet, None])
    assert source() is not None
    pose = source()
    assert np.hypot(pose.position[0] - POSES[1][0], pose.position[1] - POSES[1][1]) < 0.003
    assert source() is None
    assert source() is None


def test_aruco_pose_source__without_a_table_marker_so_far_there_is_no_pose(example, markers):
    blank = np.full((SIZE, SIZE, 3), 128, np.uint8)
    assert source_of(example, markers, [blank])() is None


def test_object_pose__a_missing_or_wrong_file_is_a_clear_error(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"aruco\.json cannot be used"):
        example.object_pose()
    Path("aruco.json").write_text(json.dumps({"camera": 0, "size": [1, 2]}))
    with pytest.raises(ConfigError, match="table_markers"):
        example.object_pose()


def test_main__prints_markers(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert example.main(["print", "0", "7"]) == 0
    for id in (0, 7):
        image = cv2.imread(f"marker_{id}.png", cv2.IMREAD_GRAYSCALE)
        detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(example.DICTIONARY))
        assert detector.detectMarkers(image)[1].flatten().tolist() == [id]
    assert example.main([]) == 2
