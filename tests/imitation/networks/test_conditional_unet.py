"""The U-Net of public checkpoints: names, shapes and outputs against a reference written with torch's
functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import unet_case

from residual_rl.errors import ConfigError
from residual_rl.imitation.networks.conditional_unet import ConditionalUNet, Doubling, unet_of
from residual_rl.imitation.networks.unet import UNet


def network(**values: Any) -> ConditionalUNet:
    sizes: dict[str, Any] = {"chunk_size": 16, "action_dim": 2, "obs_dim": 6, **unet_case.TINY}
    return ConditionalUNet(**{**sizes, **values})


def test_conditional_unet__tensors_have_the_published_names_and_shapes() -> None:
    assert {name: tuple(tensor.shape) for name, tensor in network().state_dict().items()} == unet_case.SHAPES


def test_conditional_unet__has_the_published_number_of_parameters() -> None:
    """By hand: the sum over blocks of n·m·k + m + 2m, m·m·k + m + 2m, (D + 1)·2m, and n·m + m where n ≠ m."""

    def blocks(n: int, m: int, condition: int) -> int:
        way = (n + 1) * m if n != m else 0
        return (n * m * 5 + 3 * m) + (m * m * 5 + 3 * m) + (condition + 1) * 2 * m + way

    condition = 64 + 2 * 50  # peg insertion in ManiSkill 2
    pairs = [(7, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 256)]
    pairs += [(512, 128), (128, 128), (256, 64), (64, 64)]
    time = (64 + 1) * 256 + (256 + 1) * 64
    resize = (64 * 64 * 3 + 64) + (128 * 128 * 3 + 128) + (128 * 128 * 4 + 128) + (64 * 64 * 4 + 64)
    last = (64 * 64 * 5 + 3 * 64) + (64 + 1) * 7
    expected = sum(blocks(n, m, condition) for n, m in pairs) + time + resize + last
    made = network(action_dim=7, obs_dim=100, channels=(64, 128, 256), kernel_size=5, time_dim=64)
    assert sum(p.numel() for p in made.parameters()) == expected
    assert expected == pytest.approx(4.5e6, rel=0.05)  # the published size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [2, 8, 16])
def test_conditional_unet__matches_a_forward_pass_written_with_torch(steps: int, dtype: torch.dtype) -> None:
    weights = unet_case.tensors()
    made = network(chunk_size=steps).to(dtype)
    made.load_state_dict(weights)
    x, time, obs = (
        torch.randn(3, steps, 2, dtype=dtype),
        torch.tensor([0, 7, 99]),
        torch.randn(3, 6, dtype=dtype),
    )
    expected = unet_case.forward(weights, x, time, obs)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(made(x, time, obs), expected, **close)
    assert expected.abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_doubling__matches_torch_conv_transpose1d(steps: int, dtype: torch.dtype) -> None:
    layer, x = Doubling(6).to(dtype), torch.randn(3, steps, 6, dtype=dtype)
    expected = F.conv_transpose1d(x.mT, layer.conv.weight, layer.conv.bias, stride=2, padding=1).mT
    assert expected.shape == (3, 2 * steps, 6)
    torch.testing.assert_close(layer(x), expected)


def test_conditional_unet__uses_every_weight_and_keeps_rows_independent() -> None:
    made, x = network().double(), torch.randn(2, 16, 2, dtype=torch.float64, requires_grad=True)
    obs = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    made(x, torch.tensor([3, 50]), obs)[0].sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    assert x.grad is not None
    assert obs.grad is not None
    assert (obs.grad[0] != 0).all()
    assert (obs.grad[1] == 0).all()
    assert (x.grad[1] == 0).all()


def test_conditional_unet_observing__names_the_weights_that_read_observations() -> None:
    made, obs = network(), torch.randn(2, 6)
    assert len(made.observing) == 8
    with torch.no_grad():
        for name in made.observing:
            made.get_parameter(name)[:, -6:] = 0.0
    x, time = torch.randn(2, 16, 2), torch.tensor([1, 2])
    assert torch.equal(made(x, time, obs), made(x, time, obs + 1.0))
    assert not torch.equal(made(x, time, obs), made(x, time + 1, obs))


def test_unet_of__finds_a_layout_by_name() -> None:
    assert unet_of("own") is UNet
    assert unet_of("public") is ConditionalUNet
    with pytest.raises(ConfigError, match="layout must be one of own, public, not 'mine'"):
        unet_of("mine")
    with pytest.raises(ConfigError, match="channels must be multiples of 8"):
        network(channels=(12,))
