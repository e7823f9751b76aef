"""Fine-tuning: kept and reinitialised weights, settings of the model, and models that do not fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import il_case
import numpy as np
import pytest
import tiny_runs
import torch
import unet_case

from residual_rl.cli.main import main
from residual_rl.demos.episode import Demo
from residual_rl.demos.writer import DemoWriter, describe
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.imitation.config import ImitateCfg
from residual_rl.imitation.convert import read_public_unet
from residual_rl.imitation.convert_cfg import ConvertCfg
from residual_rl.imitation.fine_tuning import defaults_from
from residual_rl.imitation.model import LAST_FILE, MODEL_FILE, ImitationModel
from residual_rl.imitation.networks.unet import ChunkMLP
from residual_rl.imitation.normalization import Statistics
from residual_rl.imitation.obs_padding import ROBOT_BASE_POSE
from residual_rl.imitation.trainer import Trainer, train
from residual_rl.runs.run_folder import RunFolder

QUICK: dict[str, Any] = {
    "total_steps": 6,
    "batch_size": 8,
    "warmup_steps": 2,
    "log_freq": 2,
    "val_freq": 3,
    "eval_freq": 0,
    "save_freq": 2,
    "val_share": 0.25,
    "torch_threads": 1,
}
FLAGS = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def write_demos(path: Path, obs_dim: int, action_dim: int = 6, scale: float = 0.9) -> Path:
    """Four episodes of 7 steps; observations around 5, actions between ±`scale`."""
    draw, ends = np.random.default_rng(0), np.arange(7) == 6
    info = describe(
        "somewhere", {}, max_episode_steps=7, control_hz=10.0, source_type="controller", source_desc="a test"
    )
    with DemoWriter(path, info) as writer:
        for _ in range(4):
            obs = {"state": (5.0 + 2.0 * draw.normal(size=(8, obs_dim))).astype(np.float32)}
            actions = draw.uniform(-scale, scale, (7, action_dim)).astype(np.float32)
            writer.add(Demo(actions=actions, obs=obs, terminated=ends, truncated=ends))
    return path


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations whose observations have the size that the tiny models of il_case read."""
    return write_demos(tmp_path_factory.mktemp("demos") / "demos.h5", 25)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demos(tmp_path_factory.mktemp("demos") / "others.h5", 31)


def saved(folder: Path, model: ImitationModel) -> str:
    (folder / "init").mkdir(parents=True)
    model.save(folder / "init" / MODEL_FILE)
    return str(folder / "init")


def cfg(init_from: str, adapt_obs: bool = False, **values: Any) -> ImitateCfg:
    return dataclasses.replace(defaults_from(init_from, adapt_obs, "cpu", "cpu"), **{**QUICK, **values})


def trainer(init_from: str, demos: Path, folder: Path, adapt_obs: bool = False, **values: Any) -> Trainer:
    return Trainer(cfg(init_from, adapt_obs, **values), demos, RunFolder(folder / "run"))


# --- with the same observations -----------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["bc", "flow", "diffusion"])
def test_init_from__training_starts_with_the_initial_model(algo: str, demos: Path, tmp_path: Path) -> None:
    model = il_case.model(algo)
    made = trainer(saved(tmp_path, model), demos, tmp_path)
    begins = made.model()
    obs, noise = torch.randn(3, 2, 25), torch.randn(3, 8, 6)
    assert torch.equal(begins.sample(obs, noise), model.sample(obs, noise))
    before = begins.network.state_dict()
    made._step()
    # All weights are trained.
    assert all(not torch.equal(p.detach(), before[name]) for name, p in made.network.named_parameters())


def test_defaults_from__takes_the_settings_of_the_model(demos: Path, tmp_path: Path) -> None:
    init = saved(tmp_path, il_case.model("diffusion", num_past_actions=0, sampling_steps=5))
    made = defaults_from(init, False, "cpu", "cpu")
    assert (made.algo, made.channels, made.kernel_size, made.time_dim, made.diffusion_steps) == (
        "diffusion",
        (8, 16),
        3,
        8,
        20,
    )
    assert (made.num_obs_steps, made.chunk_size, made.num_action_steps, made.sampling_steps) == (2, 8, 4, 5)
    assert (made.obs_keys, made.pad_obs_to, made.normalize_actions, made.layout) == (
        ("state",),
        None,
        True,
        "own",
    )
    assert made.batch_size == ImitateCfg.default("diffusion", "cpu").batch_size
    assert trainer(init, demos, tmp_path).model().settings.network == il_case.NETWORKS["diffusion"] | {
        "channels": (8, 16)
    }


def test_check_observations__other_observations_need_adapt_obs(others: Path, tmp_path: Path) -> None:
    init = saved(tmp_path, il_case.model())
    with pytest.raises(
        ConfigError,
        match="has observations of 25 numbers, but the demonstrations have 31 numbers: use --adapt-obs",
    ):
        trainer(init, others, tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algo": "bc"}, "algo is bc, but .*, the initial model, has flow: do not set algo"),
        ({"num_obs_steps": 1}, "num_obs_steps is 1, but .* has 2"),
        ({"chunk_size": 16}, "chunk_size is 16, but .* has 8"),
        ({"channels": (8, 24)}, r"channels is \[8, 24\], but .* has \[8, 16\]"),
        ({"layout": "public"}, "layout is public, but .* has own"),
        ({"normalize_actions": False}, "normalize_actions is False, but .* has True"),
        (
            {"pad_obs_to": 32},
            (
                r"has observations of 25 numbers, but the demonstrations have 25 numbers \(32 with the"
                r" robot's base"
            ),
        ),
    ],
)
def test_check_initial__names_settings_that_differ_from_the_model(
    values: dict[str, Any], message: str, demos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(saved(tmp_path, il_case.model()), demos, tmp_path, **values)


def test_check_initial__refuses_other_actions_and_other_observation_names(tmp_path: Path) -> None:
    init = saved(tmp_path, il_case.model())
    seven = write_demos(tmp_path / "seven.h5", 25, action_dim=7)
    with pytest.raises(ConfigError, match="has actions of size 6, but the demonstrations have 7"):
        trainer(init, seven, tmp_path)
    same_size = saved(tmp_path / "x", il_case.model(obs_keys=("pose",), obs_shapes={"pose": (25,)}))
    demos = write_demos(tmp_path / "six.h5", 25)
    with pytest.raises(
        ConfigError, match=r"has the observations pose, not state, although of equal size: use --adapt-obs"
    ):
        trainer(same_size, demos, tmp_path, obs_keys=("state",))
    with pytest.raises(ConfigError, match="adapt_obs needs a model to fine-tune: set it with --init-from"):
        ImitateCfg(adapt_obs=True)


def test_warn_out_of_range__reports_the_share_of_clipped_actions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = write_demos(tmp_path / "wide.h5", 25, scale=3.0)  # the model's range is -0.8 … 0.9
    made = trainer(saved(tmp_path, il_case.model()), wide, tmp_path)
    assert made.statistics.action_high.tolist() == pytest.approx([0.9] * 6)
    (message,) = [record.getMessage() for record in caplog.records]
    share = float(message.split(" %")[0])
    assert share == pytest.approx(100 * (1 - 1.7 / 6), abs=8)  # uniform in ±3
    assert "are outside of the policy's range" in message


# --- with other observations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "reading"),
    [("bc", {"layers.0.weight"}), ("flow", {"obs_layers.0.weight"}), ("diffusion", {"obs_layers.0.weight"})],
)
def test_adapt_obs__reinitialises_only_weights_that_read_observations(
    algo: str, reading: set[str], others: Path, tmp_path: Path
) -> None:
    model = il_case.model(algo)
    made = trainer(saved(tmp_path, model), others, tmp_path, adapt_obs=True)
    before, now = model.network.state_dict(), made.model().network.state_dict()
    assert {
        name
        for name in now
        if now[name].shape != before[name].shape or not torch.equal(now[name], before[name])
    } == reading
    assert all(now[name].shape[1] == 2 * 31 for name in reading)
    # Observations are normalised by the new demonstrations, actions by the statistics of the model.
    assert made.windows.obs.mean(0).abs().max() < 1e-4
    assert made.statistics.action_low.tolist() == pytest.approx([-0.8] * 6)


def test_adapt_obs__also_applies_to_observations_of_equal_size(demos: Path, tmp_path: Path) -> None:
    model = il_case.model()
    made = trainer(saved(tmp_path, model), demos, tmp_path, adapt_obs=True)
    before, now = model.network.state_dict(), made.model().network.state_dict()
    assert [name for name in now if not torch.equal(now[name], before[name])] == ["obs_layers.0.weight"]


@pytest.mark.slow
def test_adapt_obs__public_model_keeps_the_columns_that_read_the_time(others: Path, tmp_path: Path) -> None:
    two = write_demos(tmp_path / "two.h5", 5, action_dim=2)
    public = read_public_unet(unet_case.write(tmp_path / "x.pt"), ConvertCfg(), trusted=True)
    init = saved(tmp_path, public)
    with pytest.raises(
        ConfigError,
        match="has observations of 3 numbers, but the demonstrations have 5 numbers: use --adapt-obs",
    ):
        trainer(init, two, tmp_path)
    made = trainer(init, two, tmp_path, adapt_obs=True)
    before, now = public.network.state_dict(), made.model().network.state_dict()
    for name in now:
        if name.endswith("cond_encoder.1.weight"):
            assert now[name].shape[1] == 8 + 2 * 5
            assert torch.equal(now[name][:, :8], before[name][:, :8])
            assert now[name][:, 8:].unique().numel() > 10  # random, not zeros
        else:
            assert torch.equal(now[name], before[name])
    assert made.statistics.raw_actions
    assert made.statistics.obs_mean.tolist() == pytest.approx([5.0] * 5, abs=1.5)
    summary = train(cfg(init, adapt_obs=True), two, tmp_path / "il")
    trained = ImitationModel.load(tmp_path / "il")
    assert summary["finished"]
    assert (
        trained.settings.network["layout"],
        trained.settings.num_past_actions,
        trained.settings.chunk_size,
    ) == ("public", 1, 15)
    assert trained.sample(torch.randn(2, 2, 5), torch.randn(2, 16, 2)).shape == (2, 15, 2)


def test_adapt_obs__refuses_a_network_that_declares_no_observing_weights(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChunkMLP, "observing", ())
    with pytest.raises(CheckpointError, match="its network does not declare which weights read observations"):
        trainer(saved(tmp_path, il_case.model("bc")), demos, tmp_path, adapt_obs=True)


def test_init_from__model_with_padding_keeps_padding(tmp_path: Path) -> None:
    settings = il_case.settings(obs_padding=ROBOT_BASE_POSE)
    init = saved(tmp_path, ImitationModel(settings, Statistics.identity(32, 6)))
    demos = write_demos(tmp_path / "demos.h5", 25)
    made = trainer(init, demos, tmp_path)
    assert made.cfg.pad_obs_to == 32
    torch.testing.assert_close(
        made.windows.obs[:, 18:25], torch.tensor(ROBOT_BASE_POSE.values).expand(len(made.windows), 7)
    )
    assert made.windows.obs[:, :18].mean() > 3.0  # raw, around 5
    assert made.model().settings.obs_padding == ROBOT_BASE_POSE
    other = write_demos(tmp_path / "other.h5", 24)
    with pytest.raises(
        ConfigError,
        match=r"has observations of 32 numbers, .* have 24 numbers \(31 with .*\): use --adapt-obs",
    ):
        trainer(init, other, tmp_path)
    adapted = trainer(init, demos, tmp_path, adapt_obs=True)
    assert (adapted.settings.obs_padding, adapted.settings.obs_size) == (None, 25)


def test_pad_obs_to__adds_padding_to_a_fine_tuned_model(tmp_path: Path) -> None:
    """The model was trained on observations with the base pose; the demonstrations lack it."""
    model = il_case.model(obs_shapes={"state": (32,)})
    init, demos = saved(tmp_path, model), write_demos(tmp_path / "demos.h5", 25)
    with pytest.raises(
        ConfigError,
        match="have 25 numbers: use --pad-obs-to 32 to insert the robot's base pose, or use --adapt-obs",
    ):
        trainer(init, demos, tmp_path)
    made = trainer(init, demos, tmp_path, pad_obs_to=32)
    obs, noise = torch.randn(3, 2, 25), torch.randn(3, 8, 6)
    assert torch.equal(made.model().sample(obs, noise), model.sample(ROBOT_BASE_POSE(obs), noise))


# --- the command --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_imitate__fine_tunes_from_the_command_line(
    demos: Path, others: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    init, out = saved(tmp_path, il_case.model("diffusion")), tmp_path / "il"
    assert main(["imitate", str(demos), "--init-from", init, "--out", str(out), *FLAGS]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["algo"], config["channels"], config["init_from"]) == ("diffusion", [8, 16], init)
    assert "31 numbers: use --adapt-obs" in fails(
        "imitate", str(others), "--init-from", init, "--out", str(tmp_path / "no"), *FLAGS
    )
    assert (
        main(
            [
                "imitate",
                str(others),
                "--init-from",
                init,
                "--adapt-obs",
                "--out",
                str(tmp_path / "new"),
                *FLAGS,
            ]
        )
        == 0
    )
    assert ImitationModel.load(tmp_path / "new").settings.obs_shapes == {"state": (31,)}
    assert "no.safetensors does not exist" in fails(
        "imitate", str(demos), "--init-from", str(tmp_path / "no.safetensors")
    )


@pytest.mark.slow
def test_train__resuming_fine_tuning_is_bit_exact(demos: Path, tmp_path: Path) -> None:
    settings = cfg(saved(tmp_path, il_case.model()), obs_noise=0.1, weight_decay=0.01)
    train(settings, demos, tmp_path / "once")
    train(dataclasses.replace(settings, total_steps=6), demos, tmp_path / "twice")
    for name in ("checkpoints/step_000000006.safetensors", LAST_FILE):
        (tmp_path / "twice" / name).unlink()
    assert train(settings, demos, tmp_path / "twice", resume=True)["finished"]  # from step 4
    for name in ("checkpoints/step_000000006.safetensors", LAST_FILE):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "once" / name).read_bytes(), name
