"""Datasets of Minari that `demos to-minari` writes: their layout by hand, and the way back.

Minari 0.5.4 itself reads them: put one into the folder a/b-v0, and run, with MINARI_DATASETS_PATH,
python -c 'import minari; print(minari.load_dataset("a/b-v0")[0])'
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from demo_files import INFO, a_demo, maniskill, write
from foreign_demos import NORMALISED, RAW_ACTIONS

from residual_rl.cli.main import main
from residual_rl.demos.minari_writer import MinariCfg, write_minari
from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import ConfigError, UnknownNameError

UNITS = {"action_unit": [256.0, 1.0], "action_centre": [256.0, 0.0]}


def written(tmp_path: Path, info: dict[str, Any] = INFO, **cfg: Any) -> Path:
    demos = [a_demo(seed, actions=NORMALISED) for seed in (0, 7)]
    file, folder = write(tmp_path / "x.h5", demos, info), tmp_path / "set"
    with Demonstrations.open(file) as stored:
        assert write_minari(stored, folder, MinariCfg(**{"dataset_id": "a/b-v0", **cfg})) == 6
    return folder


def test_write_minari__layout(tmp_path: Path) -> None:
    folder = written(tmp_path, author="me")
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    assert metadata["total_episodes"] == 2
    assert metadata["total_steps"] == 6
    assert metadata["dataset_id"] == "a/b-v0"
    assert (metadata["data_format"], metadata["jpeg_encoding"], metadata["author"]) == ("hdf5", False, ["me"])
    action_space = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -1.0], "high": [1.0, 1.0]}
    assert json.loads(metadata["action_space"]) == action_space
    assert json.loads(metadata["observation_space"])["low"] == [-np.inf] * 5
    demo = a_demo(7, actions=NORMALISED)
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        assert list(file) == ["episode_0", "episode_1"]
        episode = file["episode_1"]
        assert dict(episode.attrs) == {"id": 1, "seed": 7, "total_steps": 3}
        assert sorted(episode) == [
            "actions",
            "infos",
            "observations",
            "rewards",
            "terminations",
            "truncations",
        ]
        np.testing.assert_array_equal(episode["observations"], demo.obs["state"])
        np.testing.assert_array_equal(episode["actions"], NORMALISED)
        np.testing.assert_array_equal(episode["rewards"], demo.rewards)
        assert episode["infos/success"][()].tolist() == [False, False, False, True]


def test_write_minari__actions_are_in_the_units_of_the_env(tmp_path: Path) -> None:
    folder = written(tmp_path, {**INFO, **UNITS})
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        np.testing.assert_array_equal(file["episode_0/actions"], RAW_ACTIONS)
    space = json.loads(json.loads((folder / "data" / "metadata.json").read_text())["action_space"])
    assert (space["low"], space["high"]) == ([0.0, -1.0], [512.0, 1.0])


@pytest.mark.parametrize("info", [INFO, {**INFO, **UNITS}])
def test_write_minari__the_way_back(info: dict[str, Any], tmp_path: Path) -> None:
    with Demonstrations.open(written(tmp_path, info, obs_keys=("state", "arm/top"))) as demos:
        for seed, demo in zip((0, 7), demos, strict=True):
            mine = a_demo(seed, actions=NORMALISED)
            assert demo.seed == seed
            np.testing.assert_array_equal(demo.obs["state"], mine.obs["state"])
            np.testing.assert_array_equal(demo.obs["arm_top"], mine.obs["arm/top"])
            for name in ("actions", "rewards", "terminated", "truncated", "success"):
                np.testing.assert_array_equal(getattr(demo, name), getattr(mine, name))


def test_write_minari__errors_leave_nothing_behind(tmp_path: Path) -> None:
    file = write(tmp_path / "x.h5", [a_demo(), a_demo(1, rewards=None)])
    with Demonstrations.open(file) as stored:
        with pytest.raises(UnknownNameError, match="'nothing'"):
            write_minari(stored, tmp_path / "set", MinariCfg("a-v0", ("nothing",)))
        with pytest.raises(ConfigError, match=r"x\.h5 has no rewards, which a dataset of Minari needs"):
            write_minari(stored, tmp_path / "set", MinariCfg("a-v0"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.h5", "x.json"]


@pytest.mark.parametrize("dataset_id", ["a", "a-v", "../a-v0", "/a-v0", "a/-v0/", "a b-v0", "a-v0\n"])
def test_minari_cfg_dataset_id__must_have_a_version(dataset_id: str) -> None:
    with pytest.raises(ConfigError, match="dataset_id must be of the form NAMESPACE/NAME-v0"):
        MinariCfg(dataset_id)


def test_to_minari__writes_where_minari_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    file = maniskill(tmp_path / "trajectory.h5")
    with h5py.File(file, "r+") as stored:
        for trajectory in stored.values():
            trajectory["rewards"] = np.zeros(3)
    assert main(["demos", "to-minari", str(file), "--dataset-id", "my/push-v0"]) == 0
    folder = tmp_path / "datasets" / "my" / "push-v0"
    assert f"{folder} contains 2 episodes, 6 steps" in capsys.readouterr().out.replace("\n", "")
    with Demonstrations.open(folder) as demos:
        assert (len(demos), demos.shapes) == (2, {"actions": (8,), "obs/state": (35,)})
