"""Export to and import from LeRobot's datasets: values by hand, recordings of a real arm, and errors."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_runs
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot_case import HIGH, LOW, in_hardware, write_demos

from residual_rl.cli.main import main
from residual_rl.demos.episode import Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.writer import DemoWriter
from residual_rl.factory import make_vec_env
from residual_rl.lerobot.dataset_export import commanded_targets

pytestmark = pytest.mark.lerobot

NAMES = [
    "shoulder_pan.pos",
    "shoulder_lift.pos",
    "elbow_flex.pos",
    "wrist_flex.pos",
    "wrist_roll.pos",
    "gripper.pos",
]


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demos(tmp_path_factory.mktemp("demos") / "demos.h5", episodes=2, steps=4)


@pytest.fixture(scope="session")
def exported(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of `demos`. Tests may copy it but must not change it."""
    folder = tmp_path_factory.mktemp("dataset") / "set"
    assert (
        main(
            ["demos", "to-lerobot", str(demos), "--out", str(folder), "--task-description", "slide the sheet"]
        )
        == 0
    )
    return folder


@pytest.fixture
def dataset(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "set"))


def rows_of(folder: Path) -> pd.DataFrame:
    """The frames, read without LeRobot."""
    return pd.concat([pd.read_parquet(file) for file in sorted(folder.glob("data/*/*.parquet"))])


# --- export -------------------------------------------------------------------------------------------------


def test_to_lerobot__frames_match_the_demonstrations(demos: Path, exported: Path) -> None:
    frames = rows_of(exported)
    with Demonstrations.open(demos) as stored:
        for i, demo in enumerate(stored):
            mine = frames[frames["episode_index"] == i]
            assert len(mine) == len(demo) + 1
            np.testing.assert_allclose(
                np.stack(mine["observation.state"]), in_hardware(demo.obs["joint_position"]), atol=1e-4
            )
            np.testing.assert_array_equal(np.stack(mine["observation.environment_state"]), demo.obs["state"])
            targets = in_hardware(demo.obs["joint_target"])
            np.testing.assert_allclose(
                np.stack(mine["action"]), np.concatenate([targets[1:], targets[-1:]]), atol=1e-4
            )
            np.testing.assert_allclose(np.stack(mine["next.reward"]).ravel(), [*demo.rewards, 0.0])
            assert np.stack(mine["next.done"]).ravel().tolist() == [False, False, False, True, True]
            np.testing.assert_allclose(mine["timestamp"], np.arange(5) / 30, atol=1e-6)


def test_to_lerobot__lerobot_reads_the_metadata(exported: Path) -> None:
    info = json.loads((exported / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == (
        "v3.0",
        30,
        2,
        10,
    )
    assert info["features"]["observation.state"]["names"] == info["features"]["action"]["names"] == NAMES
    opened = LeRobotDataset("local/set", root=exported)
    assert opened[7]["task"] == "slide the sheet"
    assert set(opened.meta.stats) >= {"observation.state", "observation.environment_state", "action"}


def test_commanded_targets__distinguishes_intended_and_executed_actions(tmp_path: Path) -> None:
    """With noise on the actions, the targets are those that the policy intended: 0.25 and -1 steps of 0.02
    rad."""
    env = make_vec_env("so101-paper", 1, num_threads=1)
    with Demonstrations.open(write_demos(tmp_path / "demos.h5", episodes=1, steps=2)) as stored:
        demo = dataclasses.replace(
            stored.episode(0), intended_actions=np.full((2, 6), [[0.25], [-1.0]], np.float32)
        )
        start = demo.obs["joint_target"].astype(np.float64)
        np.testing.assert_allclose(commanded_targets(demo, env, "executed"), start[1:])
        wanted = start[:2] + np.array([[0.005], [-0.02]])
        wanted[:, 5] = wanted[:, 5].clip(LOW)  # the gripper cannot close further
        np.testing.assert_allclose(commanded_targets(demo, env, "intended"), wanted, atol=1e-7)
        assert stored.episode(0).intended_actions is not None


def test_from_lerobot__images_survive_a_round_trip(tmp_path: Path, opengl: None) -> None:
    source = write_demos(
        tmp_path / "demos.h5", episodes=1, steps=2, obs_mode="rgb", image_size=(16, 24), obs_cameras=("top",)
    )
    assert main(["demos", "to-lerobot", str(source), "--out", str(tmp_path / "set")]) == 0
    features = json.loads((tmp_path / "set" / "meta" / "info.json").read_text())["features"]
    assert features["observation.images.top"]["shape"] == [16, 24, 3]
    assert "observation.environment_state" not in features
    assert main(["demos", "from-lerobot", str(tmp_path / "set"), "--out", str(tmp_path / "back.h5")]) == 0
    assert (
        main(
            [
                "demos",
                "from-lerobot",
                str(tmp_path / "set"),
                "--out",
                str(tmp_path / "blind.h5"),
                "--no-images",
            ]
        )
        == 0
    )
    with Demonstrations.open(source) as before, Demonstrations.open(tmp_path / "back.h5") as after:
        np.testing.assert_array_equal(after.episode(0).obs["top"], before.episode(0).obs["top"])
    with Demonstrations.open(tmp_path / "blind.h5") as blind:
        assert "top" not in blind.obs_shapes


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_to_lerobot__interrupted_export_leaves_no_files(
    failure: type[BaseException], demos: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    save = LeRobotDataset.save_episode

    def interrupted(self: Any, *args: Any, **more: Any) -> None:
        if self.meta.total_episodes == 1:
            raise failure
        save(self, *args, **more)

    monkeypatch.setattr(LeRobotDataset, "save_episode", interrupted)
    assert main(["demos", "to-lerobot", str(demos), "--out", str(tmp_path / "out" / "set")]) != 0
    assert list((tmp_path / "out").iterdir()) == []


def test_to_lerobot__refuses_invalid_exports(
    demos: Path, exported: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    out = ["--out", str(tmp_path / "set")]
    assert "already exists" in fails("demos", "to-lerobot", str(demos), "--out", str(exported))
    assert "fps is 50, but" in fails("demos", "to-lerobot", str(demos), *out, "--fps", "50")
    with Demonstrations.open(demos) as stored:
        demo = stored.episode(0)
        with DemoWriter(
            tmp_path / "bare.h5", {k: v for k, v in stored.info.items() if k != "episodes"}
        ) as writer:
            writer.add(dataclasses.replace(demo, obs={"state": demo.obs["state"]}))
    text = fails("demos", "to-lerobot", str(tmp_path / "bare.h5"), *out)
    assert "lack joint_position, joint_target, which a LeRobot dataset needs; they have state" in text
    assert not (tmp_path / "set").exists()


# --- import of exported datasets ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["joint_delta", "joint_target"])
def test_from_lerobot__restores_an_exported_dataset(
    mode: str, demos: Path, exported: Path, tmp_path: Path
) -> None:
    """The same episodes, in either control mode: seeds, draws, rewards, observations, and targets to 1e-5
    rad."""
    out = tmp_path / "back.h5"
    assert main(["demos", "from-lerobot", str(exported), "--out", str(out), "--control-mode", mode]) == 0
    env = make_vec_env("so101-paper", 1, num_threads=1, control_mode=mode)
    with Demonstrations.open(demos) as before, Demonstrations.open(out) as after:
        assert after.task_settings["control_mode"] == mode
        assert len(after) == 2
        for mine, theirs in zip(after, before, strict=True):
            assert (mine.seed, len(mine)) == (theirs.seed, 4)
            for name, value in theirs.draws.items():
                np.testing.assert_array_equal(mine.draws[name], value)
            np.testing.assert_array_equal(mine.rewards, theirs.rewards)
            np.testing.assert_array_equal(mine.truncated, theirs.truncated)
            np.testing.assert_array_equal(mine.obs["state"], theirs.obs["state"])
            np.testing.assert_allclose(mine.obs["joint_position"], theirs.obs["joint_position"], atol=1e-6)
            np.testing.assert_allclose(mine.obs["joint_target"], theirs.obs["joint_target"], atol=1e-5)
            start = {"joint_target": torch.from_numpy(theirs.obs["joint_target"][:1])}
            reached = env.actions_to_targets(torch.from_numpy(mine.actions)[None], start)[0]
            np.testing.assert_allclose(reached, theirs.obs["joint_target"][1:], atol=1e-5)


def test_replay__reproduces_a_restored_dataset(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demos", "from-lerobot", str(exported), "--out", str(tmp_path / "back.h5")]) == 0
    assert main(["demos", "replay", str(tmp_path / "back.h5")]) == 0
    text = capsys.readouterr().out
    assert "2 of 2 episodes end as stored" in text
    assert float(text.split("largest drift ")[1].split()[0]) < 1e-4


def test_from_lerobot__refuses_a_side_file_of_other_episodes(
    dataset: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    file = dataset / "meta" / "residual_rl.json"
    side = json.loads(file.read_text())
    side["episodes"][1]["frames"] = 17
    file.write_text(json.dumps(side))
    out = ["--out", str(tmp_path / "back.h5")]
    text = fails("demos", "from-lerobot", str(dataset), *out)
    assert "describes episodes of [5, 17] … frames, but the dataset has [5, 5]" in text
    file.unlink()
    assert "does not name its task; give it with --task" in fails("demos", "from-lerobot", str(dataset), *out)


# --- import of a real arm's recordings ----------------------------------------------------------------------

ORDER = [5, 0, 1, 2, 3, 4]
"""Order of the joints in a recording: the gripper first."""
POSITIONS = [
    [0.0, -30.0, 45.0, 60.0, 90.0, 0.0],
    [3.0, -30.0, 45.0, 60.0, 90.0, 50.0],
    [6.0, -30.0, 45.0, 60.0, 90.0, 100.0],
]
TARGETS = [
    [3.0, -30.0, 45.0, 60.0, 90.0, 50.0],
    [6.0, -30.0, 45.0, 60.0, 90.0, 100.0],
    [9.0, -30.0, 45.0, 60.0, 90.0, 100.0],
]
"""Degrees and per cent, in the order of NAMES: three frames."""


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recording of one episode as LeRobot does on the arm, to a new folder in each call."""

    def make(
        positions: Any = POSITIONS,
        targets: Any = TARGETS,
        fps: int = 30,
        names: list[str] = NAMES,
        order: list[int] = ORDER,
        **more: Any,
    ) -> Path:
        folder = tmp_path / f"recorded-{len(list(tmp_path.glob('recorded-*')))}"
        joints = {"dtype": "float32", "shape": (len(order),), "names": [names[i] for i in order]}
        features = {"observation.state": joints, "action": joints, **more}
        made = LeRobotDataset.create(
            "local/real", fps, features, root=folder, robot_type="so101_follower", use_videos=False
        )
        for position, target in zip(positions, targets, strict=True):
            frame = {"observation.state": position, "action": target}
            made.add_frame(
                {**{k: np.asarray(v, np.float32)[order] for k, v in frame.items()}, "task": "slide"}
            )
        made.save_episode()
        made.finalize()
        return folder

    return make


def converted(folder: Path, *flags: str) -> Demo:
    out = folder.parent / f"{folder.name}.h5"
    arguments = [
        "demos",
        "from-lerobot",
        str(folder),
        "--task",
        "so101-paper",
        "--out",
        str(out),
        "--overwrite",
        *flags,
    ]
    assert main(arguments) == 0
    with Demonstrations.open(out) as demos:
        return demos.episode(0)


def test_from_lerobot__converts_a_recording_of_the_arm(record: Callable[..., Path]) -> None:
    """Three frames are two steps in joint_target. 3 degrees are 3 / 110 of the first joint's range, and 50 %
    is the middle of the gripper's."""
    folder = record()
    demo = converted(folder)
    with Demonstrations.open(folder.parent / f"{folder.name}.h5") as demos:
        assert demos.task_settings["control_mode"] == "joint_target"
    assert len(demo) == 2
    pan = math.radians(3.0) / 1.91986
    np.testing.assert_allclose(demo.actions[:, 0], [pan, 2 * pan], atol=1e-6)
    np.testing.assert_allclose(demo.actions[:, 5], [0.0, 1.0], atol=1e-5)
    radians = np.deg2rad([0.0, -30.0, 45.0, 60.0, 90.0])
    np.testing.assert_allclose(demo.obs["joint_position"][0], [*radians, LOW], atol=1e-6)
    np.testing.assert_allclose(demo.obs["joint_position"][2, [0, 5]], [math.radians(6.0), HIGH], atol=1e-6)
    np.testing.assert_allclose(demo.obs["joint_target"][:, 0], np.deg2rad([0.0, 3.0, 6.0]), atol=1e-6)
    np.testing.assert_allclose(demo.draws["start_joint_position"], [*radians, LOW], atol=1e-6)
    assert demo.seed is None
    assert demo.success is None
    assert demo.truncated.tolist() == [False, True]


def test_replay__starts_a_recording_at_the_arms_pose(
    record: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record([POSITIONS[0]] * 4, [POSITIONS[0]] * 4)
    converted(folder)
    assert main(["demos", "replay", str(folder.parent / f"{folder.name}.h5")]) == 0
    text = capsys.readouterr().out
    assert float(text.split("largest drift ")[1].split()[0]) < 0.05  # [rad]: the arm sags a little


def test_from_lerobot__bounded_actions_lag_and_are_reported(
    record: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """In joint_delta, 3 degrees take several steps of 0.02 rad = 1.146 degrees, and the lag is reported."""
    demo = converted(record(), "--control-mode", "joint_delta")
    np.testing.assert_allclose(demo.actions[:, 0], [1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(demo.obs["joint_target"][:, 0], [0.0, 0.02, 0.04], atol=1e-6)
    text = capsys.readouterr().out
    assert (
        "in 2 steps, the target of a joint lags more than 0.5 degrees or percent behind the recording" in text
    )
    left = 100.0 - 100.0 * 2 * 0.02 / (HIGH - LOW)  # the recorded target is a fully open gripper
    assert f"{left:.1f} at most" in text


def test_joint_offsets__are_added_to_recorded_joints(record: Callable[..., Path]) -> None:
    demo = converted(record(), "--joint-offsets", "shoulder_pan=-1.5", "elbow_flex.pos=2")
    np.testing.assert_allclose(demo.obs["joint_position"][0, :3], np.deg2rad([-1.5, -30.0, 47.0]), atol=1e-6)
    np.testing.assert_allclose(demo.obs["joint_target"][1, :3], np.deg2rad([1.5, -30.0, 47.0]), atol=1e-6)


def test_units__range_converts_per_cent_of_the_joint_range(record: Callable[..., Path]) -> None:
    """For an arm without `use_degrees`: 50 is halfway from the middle to the upper limit. The gripper's unit
    is the same."""
    values = [[50.0, 0.0, 0.0, 0.0, 0.0, 25.0]] * 3
    demo = converted(record(values, values), "--units", "range")
    np.testing.assert_allclose(
        demo.obs["joint_position"][0, [0, 5]], [1.91986 / 2, LOW + 0.25 * (HIGH - LOW)], atol=1e-5
    )
    np.testing.assert_allclose(demo.obs["joint_position"][0, 4], (-2.74385 + 2.84121) / 2, atol=1e-5)


def test_clip__limits_values_that_are_refused_without_it(
    record: Callable[..., Path], tmp_path: Path, fails: tiny_runs.Fails, capfd: Any
) -> None:
    positions = [list(row) for row in POSITIONS]
    positions[1][2] = 130.0
    folder = record(positions)
    command = [
        "demos",
        "from-lerobot",
        str(folder),
        "--task",
        "so101-paper",
        "--out",
        str(tmp_path / "out.h5"),
    ]
    text = fails(*command)
    assert (
        "episode 0, frame 1: joint elbow_flex of observation.state is at 130.0 deg, outside of -96.8 to"
        " 96.8 deg" in text
    )
    assert "(1 of 3 frames have a joint out of range)" in text
    assert not (tmp_path / "out.h5").exists()
    demo = converted(folder, "--clip")
    np.testing.assert_allclose(demo.obs["joint_position"][1, 2], 1.69, atol=1e-6)
    assert "1 values were clipped to the range of their joint" in capfd.readouterr().out
    closed = [[*row[:5], -7.0] for row in POSITIONS]
    assert "joint gripper of action is at -7.0 %, outside of 0.0 to 100.0 %" in fails(
        *command[:2], str(record(targets=closed)), *command[3:]
    )


def test_resample__interpolates_a_recording_of_another_rate(
    record: Callable[..., Path], tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    """At 60 Hz the task's steps are 60 / 30.3 = 1.98 frames apart; positions are interpolated linearly."""
    values = [[3.0 * i, 0.0, 0.0, 0.0, 0.0, 10.0] for i in range(5)]
    folder = record(values, values, fps=60)
    command = [
        "demos",
        "from-lerobot",
        str(folder),
        "--task",
        "so101-paper",
        "--out",
        str(tmp_path / "out.h5"),
    ]
    assert (
        "has 60 frames per second, but task 'so101-paper' runs at 30.3 Hz; interpolate between its frames"
        " with --resample" in fails(*command)
    )
    demo = converted(folder, "--resample")
    assert len(demo) == 2
    np.testing.assert_allclose(
        demo.obs["joint_position"][:, 0], np.deg2rad([0.0, 3 * 1.98, 3 * 3.96]), atol=1e-6
    )


def test_from_lerobot__names_missing_joints(
    record: Callable[..., Path], tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    names = ["base.pos", *NAMES[1:]]
    folder = record(names=names)
    text = fails(
        "demos", "from-lerobot", str(folder), "--task", "so101-paper", "--out", str(tmp_path / "out.h5")
    )
    assert (
        "observation.state: joint(s) shoulder_pan missing; there are gripper.pos, base.pos, shoulder_lift.pos"
        in text
    )


def test_from_lerobot__names_invalid_settings_and_values(
    record: Callable[..., Path], tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    command = [
        "demos",
        "from-lerobot",
        str(record()),
        "--task",
        "so101-paper",
        "--out",
        str(tmp_path / "out.h5"),
    ]
    assert "joint_offsets 'shoulder_pan': expected NAME=DEGREES" in fails(
        *command, "--joint-offsets", "shoulder_pan"
    )
    assert "joint_offsets has thumb; the joints are shoulder_pan" in fails(
        *command, "--joint-offsets", "thumb=3"
    )
    short = record(POSITIONS[:1], TARGETS[:1])
    assert "episode 0 has 1 frame(s); at least two are needed" in fails(
        *command[:2], str(short), *command[3:]
    )
    broken = [[math.nan] * 6, *POSITIONS[1:]]
    assert "episode 0, frame 0: observation.state is NaN" in fails(
        *command[:2], str(record(broken)), *command[3:]
    )


def test_from_lerobot__names_a_folder_without_a_dataset(
    dataset: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    def refusal(source: Path | str) -> str:
        return fails(
            "demos", "from-lerobot", str(source), "--task", "so101-paper", "--out", str(tmp_path / "out.h5")
        )

    assert "no/such/thing does not exist" in refusal("no/such/thing")
    (tmp_path / "empty").mkdir()
    assert "empty has no meta/info.json" in refusal(tmp_path / "empty")
    assert "nobody/nothing cannot be read as a LeRobotDataset (" in refusal("nobody/nothing")
    info = dataset / "meta" / "info.json"
    whole = info.read_text()
    info.write_text(whole.replace("v3.0", "v1.6"))
    assert "is a LeRobotDataset v1.6; expected v2.0, v2.1 or v3.0" in refusal(dataset)
    info.write_text(whole)
    (file,) = dataset.glob("data/*/*.parquet")
    file.write_bytes(file.read_bytes()[:400])
    assert "cannot be read as a LeRobotDataset (" in refusal(dataset)
    assert not (tmp_path / "out.h5").exists()


# --- recordings with gaps -----------------------------------------------------------------------------------

RAMP = [[3.0 * i, 0.0, 0.0, 0.0, 0.0, 10.0] for i in range(8)]
"""One joint moves by 3 degrees in each of 8 frames."""


def edit(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """Change the table of frames of a dataset."""
    (file,) = (folder / "data").rglob("*.parquet")
    change(pd.read_parquet(file)).to_parquet(file, index=False)
    return folder


def without(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["frame_index"].isin([2, 3])]


def late(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(timestamp=table["timestamp"] + (table["frame_index"] >= 4) * np.float32(0.5))


@pytest.mark.parametrize(
    ("change", "gap"),
    [
        (without, "episode 0: frame 2 is missing (2 of 8 are)"),
        (late, "episode 0: frame 4 is 0.533 s after the one before it"),
    ],
)
def test_from_lerobot__names_episode_and_frame_of_a_gap(
    change: Any, gap: str, record: Callable[..., Path], tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    folder = edit(record(RAMP, RAMP), change)
    command = ["demos", "from-lerobot", str(folder), "--task", "so101-paper"]
    text = fails(*command, "--out", str(tmp_path / "out.h5"))
    assert gap in text
    assert "interpolate across gaps with --resample" in text
    assert not (tmp_path / "out.h5").exists()


def test_resample__interpolates_across_a_gap(record: Callable[..., Path]) -> None:
    """Without frames 2 and 3 the joint still moves by 3 degrees per 1/30 s."""
    demo = converted(edit(record(RAMP, RAMP), without), "--resample")
    angles = np.rad2deg(demo.obs["joint_position"][:, 0])
    np.testing.assert_allclose(angles, 90.0 * np.arange(len(angles)) / 30.303, atol=0.01)
    assert len(demo) == 7


def test_from_lerobot__does_not_trust_the_order_of_rows(record: Callable[..., Path]) -> None:
    straight = converted(record(RAMP, RAMP))
    shuffled = converted(edit(record(RAMP, RAMP), lambda table: table.sample(frac=1.0, random_state=1)))
    np.testing.assert_array_equal(shuffled.actions, straight.actions)


def test_from_lerobot__warns_about_joints_that_look_like_radians(
    record: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    radians = np.deg2rad(RAMP).tolist()
    converted(record(radians, radians))
    assert "if its unit is radians, add --units rad" in caplog.text


@pytest.mark.parametrize("missing", ["action", "observation.state"])
def test_from_lerobot__names_a_missing_feature(
    missing: str, record: Callable[..., Path], tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    folder = edit(record(RAMP, RAMP), lambda table: table.drop(columns=missing))
    file = folder / "meta" / "info.json"
    info = json.loads(file.read_text(encoding="utf-8"))
    del info["features"][missing]
    file.write_text(json.dumps(info), encoding="utf-8")
    command = ["demos", "from-lerobot", str(folder), "--task", "so101-paper"]
    assert f"has no {missing}; it has " in fails(*command, "--out", str(tmp_path / "out.h5"))
