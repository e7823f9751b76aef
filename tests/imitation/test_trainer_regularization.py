"""Optional parts of imitation training: noise on observations, weight decay, raw actions and padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import il_case
import pytest
import torch
from paths import DATA

from residual_rl.errors import ConfigError
from residual_rl.imitation.config import ImitateCfg
from residual_rl.imitation.model import MODEL_FILE, ImitationModel
from residual_rl.imitation.trainer import Trainer, train
from residual_rl.runs import checkpoint
from residual_rl.runs.run_folder import RunFolder

GOLDEN = DATA / "golden_imitation_model_v1.safetensors"
TINY: dict[str, Any] = {
    "channels": (8, 16),
    "kernel_size": 3,
    "time_dim": 8,
    "hidden_sizes": (16,),
    "chunk_size": 8,
    "num_action_steps": 4,
    "total_steps": 6,
    "batch_size": 8,
    "warmup_steps": 0,
    "learning_rate": 3e-3,
    "eval_freq": 0,
    "save_freq": 2,
    "val_share": 0.25,
    "torch_threads": 1,
}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return il_case.write_demos(tmp_path_factory.mktemp("demos") / "demos.h5", max_episode_steps=20)


def trainer(demos: Path, folder: Path, algo: str = "flow", **values: Any) -> Trainer:
    return Trainer(ImitateCfg(algo=algo, preset="cpu", **{**TINY, **values}), demos, RunFolder(folder))


def losses(made: Trainer) -> tuple[float, float]:
    """The loss of the first training step, and the validation loss before it."""
    assert made.val_windows is not None
    validation = made._validate(made.val_windows)
    made._step()
    return float(made._loss_sum), validation


# --- noise on the observations ------------------------------------------------------------------------------


def test_obs_noise__affects_training_but_not_validation(demos: Path, tmp_path: Path) -> None:
    calm, noisy, none = (losses(trainer(demos, tmp_path, "bc", obs_noise=std)) for std in (0.0, 1.0, 0.0))
    assert calm == none
    assert calm[0] != noisy[0]
    assert calm[1] == noisy[1]


def test_obs_noise__has_the_configured_deviation(demos: Path, tmp_path: Path) -> None:
    made = trainer(demos, tmp_path, "bc", obs_noise=0.25, batch_size=4096)
    seen: list[torch.Tensor] = []
    made.algorithm.loss = lambda network, obs, *_: seen.append(obs) or torch.zeros(())  # type: ignore[method-assign,func-returns-value]
    chosen = torch.zeros(4096, dtype=torch.int64)
    made._loss(None, made.windows, chosen, made.generator)
    made._loss(None, made.windows, chosen, made.generator, obs_noise=0.25)
    noise = (seen[1] - seen[0]).reshape(4096, 2, 25)
    varies = made.statistics.obs_std > 0.0
    assert 0 < varies.sum() < 25
    assert noise[..., varies].std().item() == pytest.approx(0.25, rel=0.02)
    assert noise[..., varies].mean().abs() < 0.01
    # The noise of the two steps of a window is independent, and ignored observations stay without noise.
    difference = noise[:, 0, varies] - noise[:, 1, varies]
    assert difference.std().item() == pytest.approx(0.25 * 2**0.5, rel=0.02)
    assert (noise[..., ~varies] == 0.0).all()


def test_obs_noise__leaves_padded_values_unchanged(demos: Path, tmp_path: Path) -> None:
    made = trainer(demos, tmp_path, "bc", pad_obs_to=32)
    assert made.windows.obs.shape[1] == 32
    assert made._varies[18:25].tolist() == [0.0] * 7


# --- weight decay -------------------------------------------------------------------------------------------


def test_weight_decay__shrinks_weights_before_each_step(demos: Path, tmp_path: Path) -> None:
    """The decay is decoupled: Adam's step is the same with and without it."""
    plain, decayed = (trainer(demos, tmp_path, "bc", weight_decay=decay) for decay in (0.0, 0.1))
    before = {name: p.detach().clone() for name, p in plain.network.named_parameters()}
    plain._step()
    decayed._step()
    for (name, p), q in zip(plain.network.named_parameters(), decayed.network.parameters(), strict=True):
        torch.testing.assert_close(q, p - 3e-3 * 0.1 * before[name], rtol=1e-5, atol=1e-7)
    assert any(
        not torch.equal(p, q)
        for p, q in zip(plain.network.parameters(), decayed.network.parameters(), strict=True)
    )


def test_imitate_cfg__noise_and_weight_decay_default_to_zero() -> None:
    assert (ImitateCfg().weight_decay, ImitateCfg().obs_noise) == (0.0, 0.0)
    for name in ("weight_decay", "obs_noise"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 0, not -0.1"):
            ImitateCfg(**{name: -0.1})


@pytest.mark.slow
def test_train__resuming_with_noise_and_weight_decay_is_bit_exact(demos: Path, tmp_path: Path) -> None:
    settings = ImitateCfg(algo="diffusion", preset="cpu", **TINY, weight_decay=0.01, obs_noise=0.2)
    train(settings, demos, tmp_path / "once")
    train(settings, demos, tmp_path / "twice")
    (tmp_path / "twice" / "checkpoints" / "step_000000006.safetensors").unlink()
    train(settings, demos, tmp_path / "twice", resume=True)
    for name in ("checkpoints/step_000000006.safetensors", MODEL_FILE):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


# --- raw actions --------------------------------------------------------------------------------------------


def test_normalize_actions__false_leaves_actions_unchanged(demos: Path, tmp_path: Path) -> None:
    made = trainer(demos, tmp_path, "bc", normalize_actions=False)
    stretched = trainer(demos, tmp_path, "bc")
    statistics = made.statistics
    assert (statistics.action_low.tolist(), statistics.action_high.tolist()) == ([-1.0] * 6, [1.0] * 6)
    assert torch.equal(statistics.obs_mean, stretched.statistics.obs_mean)
    raw = stretched.statistics.restore_actions(stretched.windows.actions)
    torch.testing.assert_close(made.windows.actions, raw, rtol=1e-5, atol=1e-6)
    assert statistics.restore_actions(torch.tensor([[-3.0, -1.0, -0.3, 0.0, 0.7, 2.0]])).tolist() == [
        pytest.approx([-1.0, -1.0, -0.3, 0.0, 0.7, 1.0])
    ]
    made.model().save(tmp_path / MODEL_FILE)
    assert ImitationModel.load(tmp_path).statistics.raw_actions
    assert not stretched.statistics.raw_actions


# --- padding, and the golden file ---------------------------------------------------------------------------


def test_pad_obs_to__trained_model_accepts_unpadded_observations(demos: Path, tmp_path: Path) -> None:
    train(ImitateCfg(algo="bc", preset="cpu", **TINY, pad_obs_to=32), demos, tmp_path / "il")
    model = ImitationModel.load(tmp_path / "il")
    assert (model.settings.obs_shapes, model.settings.obs_size) == ({"state": (25,)}, 32)
    assert model.sample(torch.randn(3, 2, 25), torch.zeros(3, 8, 6)).shape == (3, 8, 6)
    assert json.loads((tmp_path / "il" / "config.json").read_text())["pad_obs_to"] == 32
    with pytest.raises(ConfigError, match="pad_obs_to is 50, but the observations have size 25"):
        trainer(demos, tmp_path, pad_obs_to=50)


def test_imitation_model_load__reads_the_golden_file() -> None:
    """Written with `il_case.model("flow").save(GOLDEN)`."""
    assert checkpoint.load(GOLDEN, "model")["model_version"] == 1
    model, again = ImitationModel.load(GOLDEN), il_case.model("flow")
    assert model.settings == again.settings
    obs, noise = 3.0 * torch.randn(5, 2, 25), torch.randn(5, 8, 6)
    # The initial weights may differ in their last bit between processors.
    torch.testing.assert_close(model.sample(obs, noise), again.sample(obs, noise), rtol=1e-4, atol=1e-5)
    assert model.statistics.obs_clip.item() == 10.0
