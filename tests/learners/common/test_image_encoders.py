"""Image encoders and the random shift."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Dict
from torch import nn

from residual_rl.envs.spaces import is_image
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.learners.common.augmentation import random_shift, shift
from residual_rl.learners.common.image_encoders import ConvEncoder, ImageEncoder
from residual_rl.learners.common.networks import ObsVector, Perception, default_obs_keys


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=generator(seed), dtype=torch.uint8)


def camera(height: int, width: int, channels: int = 3) -> Box:
    return Box(0, 255, (height, width, channels), np.uint8)


def vector(size: int) -> Box:
    return Box(-1.0, 1.0, (size,), np.float32)


# --- the shift ----------------------------------------------------------------------------------------------


def test_shift__matches_images_worked_out_by_hand() -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8)[None, :, :, None]
    shifts = torch.tensor([[0, 0], [1, 0], [0, -1], [-2, 1]])
    expected = [
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        [[4, 5, 6], [7, 8, 9], [7, 8, 9]],  # one row further down; the last is repeated
        [[1, 1, 2], [4, 4, 5], [7, 7, 8]],  # one column to the left; the first is repeated
        [[2, 3, 3], [2, 3, 3], [2, 3, 3]],
    ]
    shifted = shift(image.expand(4, 3, 3, 1), shifts)
    assert shifted.dtype == torch.uint8
    assert shifted[..., 0].tolist() == expected


@pytest.mark.parametrize("pad", [1, 4])
def test_random_shift__yields_every_crop_of_the_padded_image(pad: int) -> None:
    images = pictures(1, 9, 12, 3).expand(2000, 9, 12, 3)
    shifted = random_shift(images, pad, generator())
    padded = (
        F.pad(images[:1].permute(0, 3, 1, 2).float(), (pad,) * 4, mode="replicate")[0].permute(1, 2, 0).byte()
    )
    crops = [padded[y : y + 9, x : x + 12] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    which = torch.stack([(shifted == crop).flatten(1).all(1) for crop in crops], 1)
    assert (which.sum(1) == 1).all()  # each image equals exactly one crop
    share = which.float().mean(0)
    assert share.min() > 0.3 / len(crops)
    assert share.max() < 2.0 / len(crops)


def test_random_shift__is_seeded_and_draws_nothing_for_pad_zero() -> None:
    images, first = pictures(5, 8, 8, 2), generator(3)
    before = first.get_state()
    assert random_shift(images, 0, first) is images
    assert torch.equal(first.get_state(), before)
    shifted = random_shift(images, 2, first)
    assert torch.equal(shifted, random_shift(images, 2, generator(3)))
    assert not torch.equal(shifted, random_shift(images, 2, generator(4)))


# --- encoders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "inputs"),
    [
        (84, 84, 3136),
        (64, 64, 1024),
        (128, 128, 9216),
        (36, 48, 128),
        (35, 35, 5184),
        (16, 16, 1024),
        (1, 1, 64),
    ],
)
def test_conv_encoder__supports_images_of_many_sizes(height: int, width: int, inputs: int) -> None:
    """84 x 84 leaves 7 x 7 x 64 = 3136, as in the paper; 64 x 64 leaves 4 x 4, 128 x 128 leaves 12 x 12."""
    encoder = ConvEncoder(height, width, 3, 20, generator())
    assert encoder.projection.in_features == inputs
    features = encoder(pictures(2, height, width, 3))
    assert features.shape == (2, 20)
    assert features.abs().max() < 1.0


def test_conv_encoder__equals_the_reference_made_of_torch_layers() -> None:
    encoder, images = ConvEncoder(64, 84, 6, 32, generator()), pictures(3, 64, 84, 6)
    a, b, c = encoder.convs
    reference = nn.Sequential(
        a,
        nn.ReLU(),
        b,
        nn.ReLU(),
        c,
        nn.ReLU(),
        nn.Flatten(),
        encoder.projection,
        nn.LayerNorm(32),
        nn.Tanh(),
    )
    torch.testing.assert_close(
        encoder(images),
        reference(images.permute(0, 3, 1, 2).contiguous() / 255.0 - 0.5),
        rtol=1e-4,
        atol=1e-5,
    )
    assert [(conv.out_channels, conv.kernel_size, conv.stride) for conv in (a, b, c)] == [
        (32, (8, 8), (4, 4)),
        (64, (4, 4), (2, 2)),
        (64, (3, 3), (1, 1)),
    ]


def test_image_encoder__cameras_of_the_same_size_share_an_encoder() -> None:
    encoder = ImageEncoder({"top": (16, 16, 3), "wrist": (16, 24, 3), "side": (16, 16, 1)}, 10, generator())
    assert [next(iter(e.convs)).in_channels for e in encoder.encoders] == [4, 3]
    assert encoder.size == 20
    images = [pictures(2, 16, 16, 3), pictures(2, 16, 24, 3), pictures(2, 16, 16, 1)]
    features = encoder(images)
    assert torch.equal(features[:, :10], encoder.encoders[0](torch.cat([images[0], images[2]], -1)))
    assert torch.equal(features[:, 10:], encoder.encoders[1](images[1]))


def test_image_encoder__weights_are_seeded_and_every_camera_has_a_gradient() -> None:
    state = torch.get_rng_state()
    first, same, other = (
        ImageEncoder({"top": (40, 40, 3), "wrist": (40, 40, 3)}, 8, generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.encoders[0].projection.weight, other.encoders[0].projection.weight)
    (first([pictures(2, 40, 40, 3), pictures(2, 40, 40, 3, seed=1)]) ** 3).sum().backward()
    gradient = first.encoders[0].convs[0].weight.grad
    assert gradient is not None
    assert gradient[:, :3].any()
    assert gradient[:, 3:].any()


def test_image_encoder__refuses_images_that_are_too_large() -> None:
    with pytest.raises(
        ConfigError,
        match=r"image 'top' of 480 x 640 pixels is too large to learn from: choose a smaller --image-size",
    ):
        ImageEncoder({"top": (480, 640, 3)}, 8, generator())


# --- observations ------------------------------------------------------------------------------------------


def test_is_image__is_true_for_a_uint8_box_with_three_dimensions() -> None:
    assert is_image(camera(4, 4))
    assert not is_image(Box(0, 255, (4,), np.uint8))
    assert not is_image(Box(0.0, 1.0, (4, 4, 3), np.float32))
    assert not is_image((4, 4, 3))
    assert not is_image(None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("state position", "state base_action"),
        ("state position top wrist", "state base_action top wrist"),
        ("joint_position sheet_pose joint_target top", "joint_position joint_target base_action top"),
        ("joint_position proprioception obj_pose top", "proprioception base_action top"),
        ("obj_pose top", "base_action top"),
        ("obj_pose", "state base_action"),  # an error then, because it is missing
    ],
)
def test_default_obs_keys__depend_on_the_observations_of_the_env(names: str, expected: str) -> None:
    space = Dict(
        {
            name: camera(8, 8) if name in ("top", "wrist") else vector(3)
            for name in [*names.split(), "base_action"]
        }
    )
    assert default_obs_keys(space) == tuple(expected.split())


def test_perception__concatenates_the_vector_and_image_features() -> None:
    space = Dict({"top": camera(16, 16), "state": vector(5), "goal": vector(2)})
    perception = Perception(("goal", "top", "state"), space, True, 12, generator(), torch.device("cpu"))
    assert (perception.image_keys, perception.obs_vector.keys, perception.num_features) == (
        ("top",),
        ("goal", "state"),
        19,
    )
    assert perception.normalizer is not None
    assert perception.normalizer.mean.shape == (7,)  # only the vector is normalised
    assert perception.encoder is not None
    images, values = pictures(3, 16, 16, 3), torch.randn(3, 7)
    features = perception.features(values, {"top": images})
    assert torch.equal(features[:, :7], values)
    assert torch.equal(features[:, 7:], perception.encoder([images]))
    with pytest.raises(UnknownNameError, match="unknown observation 'top'"):
        perception.images({"state": values})


def test_obs_vector__refuses_images() -> None:
    space = Dict({"top": camera(8, 8), "position": vector(2)})
    with pytest.raises(
        ConfigError,
        match=(
            r"'top' \(8, 8, 3\) is an image, but this learner supports vectors only: .* choose --learner ppo"
        ),
    ):
        ObsVector(("position", "top"), space)
    with pytest.raises(
        ConfigError, match=r"the env has no `state`, but images \(top\): use --obs-mode rgb\+state"
    ):
        ObsVector(("state",), space)
