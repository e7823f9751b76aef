"""Demonstration files: our format and ManiSkill's, errors of damaged files, and crash-safe writing."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from demo_files import INFO, a_demo, maniskill, one_line_error, read, same, write
from paths import HELPERS

from residual_rl.demos import writer as demo_writer
from residual_rl.demos.episode import Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.writer import DemoWriter, describe
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.utils.files import WriteError

# --- the format ---------------------------------------------------------------------------------------------


def test_demo_writer__file_has_the_layout_of_maniskill(tmp_path: Path) -> None:
    demo = a_demo(
        seed=7, intended_actions=np.zeros((3, 2), np.float32), base_actions=np.ones((3, 2), np.float32)
    )
    info = {**INFO, "env_info": {**INFO["env_info"], "env_kwargs": {"control_mode": "joint_delta"}}}
    path = write(tmp_path / "x.h5", [demo, a_demo(seed=8, steps=4)], info)
    with h5py.File(path) as file:
        assert list(file) == ["traj_0", "traj_1"]
        found: dict[str, tuple[Any, ...]] = {}
        file["traj_0"].visititems(
            lambda name, node: found.update(
                {name: (node.shape, node.dtype.name)} if hasattr(node, "shape") else {}
            )
        )
        assert found == {
            "actions": ((3, 2), "float32"),
            "base_actions": ((3, 2), "float32"),
            "intended_actions": ((3, 2), "float32"),
            "env_states/sim/qpos": ((1, 7), "float64"),
            "episode/start": ((1, 2), "float64"),
            "episode/yaw": ((1,), "float64"),
            "obs/arm/top": ((4, 4, 4, 3), "uint8"),
            "obs/state": ((4, 5), "float32"),
            "rewards": ((3,), "float32"),
            "success": ((3,), "bool"),
            "terminated": ((3,), "bool"),
            "truncated": ((3,), "bool"),
        }
        images = file["traj_0/obs/arm/top"]
        assert (images.chunks, images.compression, images.compression_opts) == ((1, 4, 4, 3), "gzip", 1)
        assert np.array_equal(file["traj_0/actions"][:], demo.actions)
    side = json.loads((tmp_path / "x.json").read_text())
    assert side["episodes"] == [
        {
            "episode_id": i,
            "episode_seed": 7 + i,
            "control_mode": "joint_delta",
            "elapsed_steps": 3 + i,
            "success": True,
            "reset_kwargs": {"seed": 7 + i, "options": {}},
        }
        for i in range(2)
    ]
    assert {key: value for key, value in side.items() if key != "episodes"} == info
    with Demonstrations(path) as demos:
        assert demos.info == side
        assert demos.own
        assert (len(demos), demos.task_id, demos.task_settings, demos.action_dim) == (
            2,
            "point",
            {"control_mode": "joint_delta"},
            2,
        )
        assert demos.obs_shapes == {"state": (5,), "arm/top": (4, 4, 3)}
        assert same(demos.episode(0), demo)
        assert list(demos.episode(1, obs=["state"]).obs) == ["state"]
        assert demos.episode(1, obs=()).obs == {}
        with pytest.raises(
            UnknownNameError, match=r"unknown observation of .*x\.h5: 'stat'; did you mean 'state'"
        ):
            demos.episode(0, obs=["stat"])
        with pytest.raises(ConfigError, match=r"has the episodes 0 to 1, not 2"):
            demos.episode(2)


def test_describe__contains_task_source_and_versions() -> None:
    info = describe(
        "point",
        {"a": 1},
        max_episode_steps=10,
        control_hz=5.0,
        source_type="rl",
        source_desc="x",
        action_unit_name="m",
    )
    assert info["env_info"] == {
        "env_id": "point",
        "env_kwargs": {"a": 1},
        "max_episode_steps": 10,
        "control_hz": 5.0,
    }
    assert info["versions"]["packages"]["h5py"] == h5py.__version__
    assert (info["source_type"], info["source_desc"], info["action_unit_name"], info["format_version"]) == (
        "rl",
        "x",
        "m",
        1,
    )


@st.composite
def demos(draw: st.DrawFn) -> list[Demo]:
    names = st.text(st.characters(codec="ascii", exclude_characters="/.\x00"), min_size=1, max_size=8)
    floats = st.sampled_from([np.float32, np.float64])
    finite = {"allow_nan": False, "allow_infinity": False, "width": 32}
    obs_of = draw(
        st.dictionaries(
            names, st.tuples(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3), floats), max_size=3
        )
    )
    optional = draw(
        st.sets(
            st.sampled_from(["base_actions", "residual_actions", "intended_actions", "rewards", "success"])
        )
    )
    episodes = []
    for steps in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)):

        def array(dtype: Any, *shape: int) -> Any:
            elements = st.floats(**finite) if np.dtype(dtype).kind == "f" else None  # type: ignore[arg-type]
            return draw(hnp.arrays(dtype, shape, elements=elements))

        parts = {name: array(np.float32, steps, 2) for name in sorted(optional) if name.endswith("actions")}
        parts |= {"rewards": array(np.float32, steps)} if "rewards" in optional else {}
        parts |= {"success": array(bool, steps)} if "success" in optional else {}
        episodes.append(
            Demo(
                actions=array(np.float32, steps, 2),
                obs={name: array(dtype, steps + 1, *shape) for name, (shape, dtype) in obs_of.items()},
                terminated=array(bool, steps),
                truncated=array(bool, steps),
                seed=draw(st.none() | st.integers(0, 2**62)),
                draws={
                    name: array(np.float64, *draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=2)))
                    for name in draw(st.sets(names))
                },
                env_states=draw(st.dictionaries(names, st.just({"q": np.arange(3.0)[None]}), max_size=2)),
                **parts,
            )
        )
    return episodes


@pytest.mark.slow
@hypothesis.settings(max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(demos())
def test_demonstrations__read_equals_written(tmp_path: Path, episodes: list[Demo]) -> None:
    again = read(write(tmp_path / "x.h5", episodes, overwrite=True))
    assert all(same(a, b) for a, b in zip(episodes, again, strict=True))


SETTINGS = {"env_id": "PushCube-v1", "control_mode": "pd_joint_delta_pos", "max_episode_steps": 50}
"""Settings of such a file for this package's task `maniskill`."""


def test_demonstrations__reads_a_maniskill_file(tmp_path: Path) -> None:
    with Demonstrations.open(maniskill(tmp_path / "trajectory.h5")) as file:
        assert not file.own
        assert (len(file), file.task_id, file.task_settings, file.obs_shapes) == (
            2,
            "maniskill",
            SETTINGS,
            {"state": (35,)},
        )
        demo = file.episode(1)
    assert demo.obs["state"].tolist() == np.ones((4, 35)).tolist()
    assert (demo.seed, demo.succeeded, demo.rewards, demo.base_actions, demo.draws) == (
        6,
        False,
        None,
        None,
        {},
    )
    assert demo.intended_actions is demo.actions
    assert demo.env_states["articulations"]["panda"].shape == (4, 31)
    assert demo.env_states["actors"]["cube"].shape == (4, 13)
    with Demonstrations.open(maniskill(tmp_path / "long.h5", elapsed_steps=70)) as file:
        assert file.task_settings["max_episode_steps"] == 70


def test_demonstrations__maniskill_joint_positions_name_the_conversion_tool(tmp_path: Path) -> None:
    with Demonstrations.open(maniskill(tmp_path / "x.h5", control_mode="pd_joint_pos")) as file:
        with pytest.raises(
            ConfigError,
            match=r"x\.h5: .*pd_joint_pos.*replay_trajectory.*--target-control-mode pd_joint_delta_pos",
        ):
            _ = file.task_settings
        assert len(file.episode(0)) == 3


def test_demonstrations__reads_nested_and_missing_maniskill_observations(tmp_path: Path) -> None:
    nested = {"agent/qpos": np.zeros((4, 9)), "sensor_data/base_camera/rgb": np.zeros((4, 2, 2, 3), np.uint8)}
    demo = read(maniskill(tmp_path / "dict.h5", nested, episode_seed=[9]))[0]
    assert set(demo.obs) == {"agent/qpos", "sensor_data/base_camera/rgb"}
    assert demo.seed == 9
    demo = read(maniskill(tmp_path / "none.h5", {}, episode_seed=[9, 10]))[0]
    assert demo.obs == {}
    assert demo.seed is None  # the list has the seeds of all envs reset together


# --- damaged files ------------------------------------------------------------------------------------------


def spoil(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def on(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return on


def replace(name: str, value: Any) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return spoil(change)


def side(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def on(path: Path) -> None:
        document = json.loads(path.with_suffix(".json").read_text())
        change(document)
        path.with_suffix(".json").write_text(json.dumps(document))

    return on


NAN = np.array([[0.0] * 8, [np.nan] * 8, [0.0] * 8], np.float32)


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (
            replace("traj_1/actions", None),
            "traj_1 lacks 'actions'; the file is damaged or incomplete: collect it again",
        ),
        (replace("traj_1/truncated", None), "traj_1 lacks 'truncated'"),
        (replace("traj_1/obs", np.zeros((3, 35))), "traj_1: actions has 3 steps but obs/state 3, expected 4"),
        (
            replace("traj_1/obs", np.float32(1.0)),
            "traj_1: actions has 3 steps but obs/state none, expected 4",
        ),
        (
            replace("traj_1/obs", np.zeros((4, 34))),
            "traj_1: obs/state has the shape [34] a step, but [35] in traj_0",
        ),
        (
            replace("traj_1/actions", np.zeros((3, 7))),
            "traj_1: actions has the shape [7] a step, but [8] in traj_0",
        ),
        (replace("traj_1/actions", np.zeros(3)), "traj_1: actions has the shape [3]; expected [T, A]"),
        (
            replace("traj_1/actions", np.zeros((0, 8))),
            "traj_1: the episode has no steps; remove empty trajectories with `clean_trajectories`",
        ),
        (replace("traj_1/actions", NAN), "traj_1: actions is NaN or infinite at step 1 (1 of 3 steps)"),
        (
            replace("traj_1/obs", np.full((4, 35), np.inf)),
            "traj_1: obs/state is NaN or infinite at step 0 (4 of 4 steps)",
        ),
        (
            replace("traj_1/success", np.zeros((3, 1), bool)),
            "traj_1: success has the shape [3, 1]; expected [3], one for each action",
        ),
        (
            spoil(lambda f: f.create_dataset("traj_1/base_actions", data=np.zeros((2, 8)))),
            "base_actions has the shape [2, 8]; expected that of",
        ),
        (replace("traj_1/actions", [b"a", b"b", b"c"]), "traj_1: actions has dtype object, expected numbers"),
        (
            spoil(
                lambda f: f.move("traj_1/actions", "traj_1/a") or f.move("traj_1/a", "traj_1/actions/panda")
            ),
            "traj_1: actions is a group of panda, as in tasks with several robots, which are not supported",
        ),
        (replace("traj_1", None), "describes 2 trajectories"),
        (replace("traj_0", None), "describes 2 trajectories"),
        (
            spoil(lambda f: f.clear()),
            "has no trajectories traj_0, traj_1, …; expected demonstrations in ManiSkill's layout",
        ),
        (lambda p: p.with_suffix(".json").unlink(), "trajectory.json is missing"),
        (lambda p: p.with_suffix(".json").write_text("{"), "trajectory.json cannot be read"),
        (side(lambda d: d.pop("env_info")), "trajectory.json cannot be read (KeyError('env_info'))"),
        (side(lambda d: d["episodes"].pop()), "describes 1 trajectories"),
        (lambda p: p.write_bytes(p.read_bytes()[:-2000]), "truncated"),
        (
            lambda p: p.write_bytes(b""),
            "is not an HDF5 file; expected demonstrations: HDF5 in the layout of ManiSkill's trajectories",
        ),
        (lambda p: p.write_text("PK" * 100), "is not an HDF5 file"),
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: (p.unlink(), p.mkdir()), "is a folder without data/main_data.hdf5"),
    ],
)
def test_demonstrations__names_the_defect_of_a_file(
    tmp_path: Path, spoiled: Callable[[Path], Any], message: str
) -> None:
    path = maniskill(tmp_path / "trajectory.h5")
    spoiled(path)
    with one_line_error(CheckpointError, message, str(path.with_suffix(""))):
        read(path)


def test_demonstrations_shapes__names_a_missing_array(tmp_path: Path) -> None:
    path = maniskill(tmp_path / "trajectory.h5")
    replace("traj_0/actions", None)(path)
    with Demonstrations(path) as file, pytest.raises(CheckpointError, match="traj_0 lacks 'actions'"):
        _ = file.action_dim


def test_demonstrations__detects_changes_to_own_files(tmp_path: Path) -> None:
    demo = a_demo(base_actions=np.ones((3, 2), np.float32))
    path = write(tmp_path / "x.h5", [demo])
    replace("traj_0/rewards", np.zeros(3, np.float32))(path)
    with pytest.raises(
        CheckpointError, match=r"traj_0: rewards differs from the written data \(by its CRC-32\)"
    ):
        read(path)
    write(path, [demo], overwrite=True)
    replace("traj_0/base_actions", None)(path)  # optional, but listed in this file
    with pytest.raises(CheckpointError, match="traj_0 lacks 'base_actions'"):
        read(path)
    write(path, [demo, demo], overwrite=True)
    replace("traj_1", None)(path)
    with pytest.raises(CheckpointError, match="should have 2 trajectories but has 1"):
        read(path)
    write(path, [demo], {**INFO, "format_version": 2}, overwrite=True)
    with pytest.raises(
        CheckpointError, match="has format version 2; this release reads up to 1: update residual_rl"
    ):
        read(path)


@pytest.mark.slow
def test_demonstrations__detects_flipped_bits_and_truncation(tmp_path: Path) -> None:
    """Every flip and cut gives either the same episodes or an error that names the file; never other
    episodes, never a crash."""
    path = write(tmp_path / "x.h5", [a_demo(seed) for seed in range(3)])
    data, whole = path.read_bytes(), read(path)
    rng = np.random.default_rng(0)
    messages: list[str] = []
    for i in range(300):
        spoiled = bytearray(data)
        if i % 3:
            spoiled[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        else:
            del spoiled[rng.integers(len(data)) :]
        path.write_bytes(spoiled)
        try:
            assert all(same(a, b) for a, b in zip(whole, read(path), strict=True))
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 150
    assert all(line.startswith(f"{path}") and "\n" not in line for line in messages)


# --- writing ------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"actions": np.full((3, 2), np.nan, np.float32)},
            "seed 5 cannot be stored in .*: actions is NaN or infinite at step 0",
        ),
        ({"rewards": np.zeros(4, np.float32)}, r"rewards has the shape \[4\]; expected \[3\]"),
        (
            {"obs": {"state": np.zeros((4, 6))}},
            r"a step has the shapes .*'obs/state': \(6,\).* but in the previous episodes",
        ),
    ],
)
def test_demo_writer_add__refuses_an_invalid_episode_and_keeps_the_others(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with DemoWriter(tmp_path / "x.h5", INFO) as writer:
        writer.add(a_demo(0))
        with pytest.raises(ConfigError, match=message):
            writer.add(a_demo(5, **fields))
        writer.add(a_demo(1))
    assert [demo.seed for demo in read(tmp_path / "x.h5")] == [0, 1]


def test_demo_writer__replaces_an_existing_file_only_with_overwrite(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [a_demo(0)])
    with pytest.raises(
        ConfigError, match=r"x\.h5 already exists; choose another --output, or replace it with --overwrite"
    ):
        DemoWriter(path, INFO)
    path.unlink()
    with pytest.raises(ConfigError, match=r"x\.json already exists"):  # it may describe another file
        DemoWriter(path, INFO)
    with pytest.raises(ConfigError, match=r"must end in \.h5 or \.hdf5"):
        DemoWriter(tmp_path / "x.zip", INFO)
    (tmp_path / "y.h5").mkdir()
    with pytest.raises(ConfigError, match=r"y\.h5 is a folder"):
        DemoWriter(tmp_path / "y.h5", INFO, overwrite=True)
    with pytest.raises(WriteError, match="a part of the path is a file"):
        DemoWriter(tmp_path / "x.json" / "x.h5", INFO)


def test_demo_writer__keeps_the_old_file_until_there_is_an_episode(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [a_demo(3)])
    with DemoWriter(path, INFO, overwrite=True):
        pass
    assert [demo.seed for demo in read(path)] == [3]
    assert names(tmp_path) == ["x.h5", "x.json"]


def test_demo_writer__publishes_complete_episodes_on_an_exception(tmp_path: Path) -> None:
    def fail() -> None:
        with DemoWriter(tmp_path / "x.h5", INFO) as writer:
            for seed in range(4):
                writer.add(a_demo(seed))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [demo.seed for demo in read(tmp_path / "x.h5")] == [0, 1, 2, 3]
    assert names(tmp_path) == ["x.h5", "x.json"]


def test_demo_writer_add__removes_a_partly_written_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calls = demo_writer._store, itertools.count()

    def interrupted(*arguments: Any) -> None:
        if next(calls) == 15:
            raise KeyboardInterrupt
        store(*arguments)

    with DemoWriter(tmp_path / "x.h5", INFO) as writer:
        writer.add(a_demo(0))
        monkeypatch.setattr(demo_writer, "_store", interrupted)
        writer.add(a_demo(1))
        with pytest.raises(KeyboardInterrupt):
            writer.add(a_demo(2))
        monkeypatch.setattr(demo_writer, "_store", store)
        writer.add(a_demo(9))
    assert [demo.seed for demo in read(tmp_path / "x.h5")] == [0, 1, 9]


def test_demo_writer__publishes_snapshots_within_a_share_of_the_time(tmp_path: Path) -> None:
    """The clock advances by a second per reading. A snapshot reads it twice, so it takes one second."""
    ticks = itertools.count()
    published = []
    with DemoWriter(tmp_path / "x.h5", INFO, clock=lambda: float(next(ticks))) as writer:
        for seed in range(40):
            writer.add(a_demo(seed))
            published.append(writer.published)
            with Demonstrations(tmp_path / "x.h5") as there:
                assert len(there) == writer.published
            assert len(json.loads((tmp_path / "x.json").read_text())["episodes"]) == writer.published
    assert published[0] == 1  # the first episode at once
    assert published[1:10] == [1] * 9
    steps = sorted(set(published))
    assert 3 <= len(steps) <= 6  # about one second of publishing in ten
    assert steps[-1] < 40  # the rest is published at the end
    assert len(read(tmp_path / "x.h5")) == 40


def test_demo_writer__removes_temporary_files_of_dead_processes_only(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    (tmp_path / ".x.h5.0badf00d.tmp").write_bytes(b"half")
    (tmp_path / ".x.json.0badf00d.tmp").write_bytes(b"half")
    (tmp_path / ".other.h5.0badf00d.tmp").write_bytes(b"somebody else's")
    (tmp_path / ".other.json.0badf00d.tmp").write_bytes(b"somebody else's")
    with DemoWriter(path, INFO) as writer:
        assert not {".x.h5.0badf00d.tmp", ".x.json.0badf00d.tmp"} & set(names(tmp_path))
        with pytest.raises(ConfigError, match=r"x\.h5 is being written by another process; wait"):
            DemoWriter(path, INFO, overwrite=True)
        writer.add(a_demo())
    assert names(tmp_path) == [".other.h5.0badf00d.tmp", ".other.json.0badf00d.tmp", "x.h5", "x.json"]


def test_demo_writer__keeps_complete_episodes_on_a_full_disk(tmp_path: Path) -> None:
    """Simulates a disk that fills up: no file may grow beyond 1 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    stored = 0

    def fill() -> None:
        nonlocal stored
        with DemoWriter(tmp_path / "x.h5", INFO) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
            for seed in range(1000):
                writer.add(a_demo(seed, steps=500))
                stored += 1

    try:
        with pytest.raises(
            WriteError, match=r"cannot write .*x\.h5: File too large; raise the file size limit"
        ):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stored > 0
    assert [demo.seed for demo in read(tmp_path / "x.h5")] == list(range(stored))
    assert names(tmp_path) == ["x.h5", "x.json"]


WRITING = """
import sys, itertools, time
sys.path.insert(0, {tests!r})
from residual_rl.demos.writer import DemoWriter
import demo_files as t
with DemoWriter({path!r}, t.INFO) as writer:
    for seed in itertools.count():
        writer.add(t.a_demo(seed, steps=50))
        time.sleep(0.005)
"""


@pytest.mark.slow
def test_demo_writer__leaves_a_valid_file_when_killed(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    code = WRITING.format(tests=str(HELPERS), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (path.exists() and len(read(path)) > 20):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    episodes = read(path)
    assert [demo.seed for demo in episodes] == list(range(len(episodes)))
    assert same(episodes[-1], a_demo(len(episodes) - 1, steps=50))
    assert any(name.endswith(".tmp") for name in names(tmp_path))
    write(path, [a_demo()], overwrite=True)
    assert names(tmp_path) == ["x.h5", "x.json"]


def test_demonstrations__do_not_wait_for_the_other_end_of_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "x.h5"
    os.mkfifo(pipe)
    other_end = os.open(pipe, os.O_RDWR)  # so that the test does not wait either
    try:
        with pytest.raises(CheckpointError, match=r"x\.h5 is not a regular file; expected demonstrations"):
            Demonstrations(pipe)
    finally:
        os.close(other_end)
