"""Networks of imitation policies against torch's layers and counts by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from residual_rl.errors import ConfigError
from residual_rl.imitation.config import ImitateCfg
from residual_rl.imitation.networks.unet import ChunkMLP, Conv, ConvBlock, FilmBlock, UNet, embedding


def unet_of(preset: str) -> UNet:
    """The network of `flow` and `diffusion` for so101-paper: two observations of 25 numbers, 6 actions."""
    cfg = ImitateCfg.default("flow", preset)
    return UNet(cfg.chunk_size, 6, 25 * cfg.num_obs_steps, cfg.channels, cfg.kernel_size, cfg.time_dim)


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("preset", "millions"), [("full", 4.5), ("small", 1.0), ("tiny", 0.25), ("cpu", 0.25)]
)
def test_presets__networks_have_the_documented_number_of_parameters(preset: str, millions: float) -> None:
    assert count(unet_of(preset)) == pytest.approx(millions * 1e6, rel=0.1)


def test_film_block__parameter_count_matches_a_count_by_hand() -> None:
    assert count(ChunkMLP(4, 3, 2, [5])) == (4 * 5 + 5) + 2 * 5 + (5 * 6 + 6)
    assert count(FilmBlock(8, 16, 10, 3)) == (8 * 3 * 16 + 16 + 32) + (16 * 3 * 16 + 16 + 32) + (
        10 * 32 + 32
    ) + (8 * 16 + 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (5, 1), (3, 2), (1, 1)])
def test_conv__matches_torch_conv1d(dtype: torch.dtype, kernel_size: int, stride: int) -> None:
    conv = Conv(6, 9, kernel_size, stride).to(dtype)
    x = torch.randn(2, 8, 6, dtype=dtype)
    weight = conv.weight.reshape(9, 6, kernel_size)
    expected = F.conv1d(x.mT, weight, conv.bias, stride=stride, padding=kernel_size // 2).mT
    torch.testing.assert_close(conv(x), expected)


def test_conv_block__matches_torch_layers() -> None:
    block = ConvBlock(6, 16, 3)
    torch.nn.init.normal_(block.norm.weight)
    x = torch.randn(2, 8, 6)
    conv = F.conv1d(x.mT, block.conv.weight.reshape(16, 6, 3), block.conv.bias, padding=1)
    expected = F.silu(F.group_norm(conv, 8, block.norm.weight, block.norm.bias)).mT
    torch.testing.assert_close(block(x), expected)


def test_film_block__scales_and_shifts_each_channel() -> None:
    block, x = FilmBlock(8, 8, 3, 3), torch.randn(1, 4, 8)
    torch.nn.init.zeros_(block.film.weight)
    with torch.no_grad():
        block.film.bias.copy_(torch.cat([torch.arange(8.0), -torch.arange(8.0)]))
    scaled = block.first(x) * (1.0 + torch.arange(8.0)) - torch.arange(8.0)
    torch.testing.assert_close(block(x, torch.randn(1, 3)), block.second(scaled) + x)


def test_embedding__matches_values_worked_out_by_hand() -> None:
    made = embedding(torch.tensor([2.0, 0.0]), 6)  # frequencies 1, 1/100, 1/10000
    expected = [math.sin(2), math.sin(0.02), math.sin(0.0002), math.cos(2), math.cos(0.02), math.cos(0.0002)]
    assert made[0].tolist() == pytest.approx(expected)
    assert made[1].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("chunk_size", "channels"), [(16, (8, 16, 24)), (8, (8, 16)), (3, (8,))])
def test_unet__output_depends_on_every_input_of_its_own_row(
    chunk_size: int, channels: tuple[int, ...]
) -> None:
    network = UNet(chunk_size, 2, 5, channels, 3, 8).double()
    x, time, obs = (
        torch.randn(2, chunk_size, 2).double(),
        torch.tensor([3.0, 50.0]),
        torch.randn(2, 5).double(),
    )
    x.requires_grad_(True)
    obs.requires_grad_(True)
    out = network(x, time, obs)
    assert out.shape == x.shape
    out[0].sum().backward()
    assert x.grad is not None
    assert obs.grad is not None
    assert (x.grad[0] != 0).all()
    assert (obs.grad[0] != 0).all()
    assert (x.grad[1] == 0).all()  # an output depends on its own row only
    assert (obs.grad[1] == 0).all()
    assert not torch.allclose(network(x, time.flip(0), obs), out)
    assert all(p.grad is not None for p in network.parameters())  # every layer is used


def test_unet__float32_and_float64_agree() -> None:
    network = UNet(8, 2, 5, (8, 16), 3, 8)
    x, time, obs = torch.randn(3, 8, 2), torch.rand(3), torch.randn(3, 5)
    single = network(x, time, obs)
    torch.testing.assert_close(
        network.double()(x.double(), time, obs.double()).float(), single, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"chunk_size": 10},
            "chunk_size, with num_past_actions, must be a multiple of 4 with 3 levels of channels, not 10",
        ),
        ({"channels": (12, 16, 24)}, "channels must be multiples of 8"),
        ({"channels": ()}, "channels must be multiples of 8"),
        ({"kernel_size": 4}, "kernel_size must be odd, not 4"),
        ({"time_dim": 7}, "time_dim must be even"),
    ],
)
def test_check_unet__refuses_invalid_sizes(values: dict[str, object], message: str) -> None:
    defaults = {
        "chunk_size": 16,
        "action_dim": 2,
        "obs_dim": 3,
        "channels": (8, 16, 24),
        "kernel_size": 3,
        "time_dim": 8,
    }
    with pytest.raises(ConfigError, match=message):
        UNet(**{**defaults, **values})  # type: ignore[arg-type]
