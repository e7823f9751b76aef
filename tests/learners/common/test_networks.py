"""Networks and the residual policy."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from residual_rl.composition import compose
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.learners.common.networks import ACTIVATIONS, MLP, ObsVector, ResidualPolicy
from residual_rl.learners.ppo.ppo import PPOCfg, make_policy
from residual_rl.utils.module_state import load_module_state, module_state

SPACE = {"state": (5,), "base_action": (3,), "goal": (2, 2)}


def policy(seed: int = 0, **settings: object) -> ResidualPolicy:
    return make_policy(PPOCfg(**settings), SPACE, action_dim=3, seed=seed)  # type: ignore[arg-type]


def observation(batch: int = 7) -> dict[str, torch.Tensor]:
    return {name: 100.0 * torch.randn(batch, *shape) for name, shape in SPACE.items()}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normalize_obs", [True, False])
def test_residual_policy__untrained_leaves_the_base_action_unchanged_bit_for_bit(
    activation: str, normalize_obs: bool
) -> None:
    fresh = policy(activation=activation, normalize_obs=normalize_obs)
    if fresh.normalizer is not None:
        fresh.normalizer.update(torch.randn(50, 8) * 1e-3 + 5.0)
    obs = observation()
    residual = fresh.act(obs)
    assert torch.equal(residual, torch.zeros(7, 3))
    base = torch.empty(7, 3).uniform_(-1.0, 1.0)
    assert torch.equal(compose(base, residual, 0.6), base)


def test_residual_policy_act__squashes_actions_with_tanh() -> None:
    extreme = policy()
    with torch.no_grad():
        extreme.actor.layers[-1].bias.copy_(torch.tensor([3.0, -0.25, -7.0]))
    expected = torch.tensor([[0.99505475, -0.24491866, -0.99999834]] * 2)  # tanh of 3, -0.25 and -7
    torch.testing.assert_close(extreme.act(observation(2)), expected)


def test_mlp__hidden_weights_are_orthogonal_and_the_last_layer_is_zero() -> None:
    net = MLP((8, 6, 6, 2), "tanh", torch.Generator().manual_seed(0))
    first, second, last = (layer.weight for layer in net.layers)
    torch.testing.assert_close(first @ first.T, 2.0 * torch.eye(6))
    torch.testing.assert_close(second @ second.T, 2.0 * torch.eye(6))
    assert not last.any()
    assert not any(layer.bias.any() for layer in net.layers)


def test_make_policy__weights_depend_only_on_the_seed() -> None:
    state = torch.get_rng_state()
    first, same, other = policy(seed=1), policy(seed=1), policy(seed=2)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is unchanged
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.actor.layers[0].weight, other.actor.layers[0].weight)


def test_activations__tanh_and_its_gradient_equal_those_of_torch() -> None:
    x = torch.cat([torch.linspace(-12.0, 12.0, 4001), torch.tensor([-1e30, 1e30, 1e-7])]).requires_grad_()
    expected = torch.tanh(x)
    actual = ACTIVATIONS["tanh"](x * 1.0)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=2e-7)
    gradients = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=0.0, atol=5e-7)


def test_mlp__equals_the_reference_made_of_torch_layers() -> None:
    net = MLP((4, 16, 16, 3), "elu", torch.Generator().manual_seed(0))
    torch.nn.init.normal_(net.layers[-1].weight)
    a, b, c = net.layers
    reference = torch.nn.Sequential(a, torch.nn.ELU(), b, torch.nn.ELU(), c)
    x = torch.randn(9, 4)
    torch.testing.assert_close(net(x), reference(x))


def test_obs_vector__concatenates_observations_in_the_order_of_the_keys() -> None:
    vector = ObsVector(("goal", "state"), SPACE)
    obs = {
        "state": torch.arange(5.0).repeat(2, 1),
        "goal": torch.tensor([[[10, 11], [12, 13]]] * 2),  # integers are cast, further dimensions flattened
        "unused": torch.zeros(2, 1),
    }
    expected = [[10.0, 11.0, 12.0, 13.0, 0.0, 1.0, 2.0, 3.0, 4.0]] * 2
    out = torch.empty(2, 9)
    assert vector.size == 9
    assert vector(obs, torch.device("cpu")).tolist() == expected
    vector(obs, torch.device("cpu"), out=out)
    assert out.tolist() == expected


def test_obs_vector__accepts_a_gymnasium_space() -> None:
    space = gymnasium.spaces.Dict(
        {"state": gymnasium.spaces.Box(-1, 1, (5,)), "top": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)}
    )
    assert ObsVector(("state",), space).size == 5
    with pytest.raises(
        ConfigError, match=r"'top' \(8, 8, 3\) is an image, but this learner supports vectors only"
    ):
        ObsVector(("state", "top"), space)


def test_obs_vector__unknown_observation_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown observation 'stat'.*did you mean 'state'.*base_action, goal, state"
    ):
        policy(obs_keys=("stat",))
    with pytest.raises(UnknownNameError, match="unknown observation 'base_action'"):
        policy().act({"state": torch.zeros(1, 5)})


def test_load_module_state__round_trips_a_policy_and_refuses_other_shapes() -> None:
    trained = policy(seed=1)
    assert trained.normalizer is not None
    trained.normalizer.update(torch.randn(50, 8))
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.1 * torch.randn_like(p))
    state, copy, obs = module_state(trained), policy(seed=2), observation()
    load_module_state(copy, state, "the policy")
    assert torch.equal(trained.act(obs), copy.act(obs))

    narrow = policy(hidden_sizes=(16, 16))
    before = module_state(narrow)
    with pytest.raises(
        CheckpointError,
        match=r"the policy: actor.layers.0.weight has shape \[128, 8\], the settings make it \[16, 8\]",
    ):
        load_module_state(narrow, state, "the policy")
    assert all(torch.equal(before[name], tensor) for name, tensor in module_state(narrow).items())
    with pytest.raises(CheckpointError, match=r"unknown .*normalizer\.mean"):
        load_module_state(policy(normalize_obs=False), state, "the policy")
