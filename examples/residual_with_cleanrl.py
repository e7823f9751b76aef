"""Train a residual on a controller for any Gymnasium vector env, with PPO in one file as in CleanRL.

    python examples/residual_with_cleanrl.py --total-timesteps 50000

The changes to a CleanRL script are marked with "residual": the wrapper, a mean that starts at zero, and
bootstrapping from the true final observations.
"""

from __future__ import annotations

import argparse

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import nn
from torch.distributions import Normal

from residual_rl import ResidualVectorWrapper


def swing_up(obs: np.ndarray) -> np.ndarray:
    """Torques [N·m] that swing pendulums up with too little energy, and hold them with an offset."""
    cos, sin, velocity = obs[..., 0], obs[..., 1], obs[..., 2]
    energy = 0.5 * velocity**2 + 15.0 * (cos - 1.0)  # 0 at rest at the top
    pump = -0.3 * velocity * (energy + 2.0)
    hold = -10.0 * sin - 2.0 * velocity + 1.0
    return np.where(cos > 0.8, hold, pump)[..., None].clip(-2.0, 2.0)


def make_envs(num_envs: int) -> ResidualVectorWrapper:
    """Envs whose actions are residuals; base actions are the last numbers of their observations."""
    settings = {"autoreset_mode": AutoresetMode.SAME_STEP}
    envs = gymnasium.make_vec("Pendulum-v1", num_envs, vectorization_mode="sync", vector_kwargs=settings)
    return ResidualVectorWrapper(envs, swing_up, residual_scale=0.5)  # residual


class Agent(nn.Module):
    """Actor and critic."""

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.actor = self.network(obs_dim, action_dim)
        self.critic = self.network(obs_dim, 1)
        self.log_std = nn.Parameter(torch.full((action_dim,), -0.5))
        nn.init.zeros_(self.actor[-1].weight)  # residual: training starts at the base policy
        nn.init.zeros_(self.actor[-1].bias)

    @staticmethod
    def network(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
        )

    def policy(self, obs: torch.Tensor) -> Normal:
        return Normal(self.actor(obs), self.log_std.exp())

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        return self.critic(obs).squeeze(-1)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


def mean_return(envs: ResidualVectorWrapper, agent: Agent | None) -> float:
    """Mean return of an episode in each env; without an agent, of the base policy alone."""
    obs, _ = envs.reset(seed=10_000)
    total = 0.0
    for _ in range(200):
        residual = np.zeros(envs.action_space.shape)
        if agent is not None:
            with torch.no_grad():
                residual = agent.actor(tensor(obs)).numpy()
        obs, reward, *_ = envs.step(residual)
        total += reward.mean()
    return total


def main() -> None:
    """Train, then compare base and residual in the same episodes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--total-timesteps", type=int, default=50_000)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    gamma, gae_lambda, clip_coef, reward_scale = 0.97, 0.95, 0.2, 0.1

    torch.manual_seed(args.seed)
    envs = make_envs(args.num_envs)
    agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.shape[0])
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    obs = tensor(envs.reset(seed=args.seed)[0])
    for _ in range(args.total_timesteps // (args.num_envs * args.num_steps)):
        # Collect
        rows = []
        for _ in range(args.num_steps):
            with torch.no_grad():
                policy = agent.policy(obs)
                action = policy.sample()
                log_prob = policy.log_prob(action).sum(-1)
            new_obs, reward, terminated, truncated, info = envs.step(action.numpy())
            new_obs, next_obs = tensor(new_obs), tensor(new_obs)
            ended = terminated | truncated
            if ended.any():  # residual: with the base action for the final observation
                next_obs[ended] = tensor(np.stack(info["final_obs"][ended]))
            outcome = tensor(reward_scale * reward), tensor(terminated), tensor(ended)
            rows.append((obs, action, log_prob, next_obs, *outcome))
            obs = new_obs
        stacked = map(torch.stack, zip(*rows, strict=True))  # [T, B, …]
        b_obs, b_action, b_log_prob, b_next_obs, b_reward, b_terminated, b_ended = stacked

        # Generalised advantage estimation
        with torch.no_grad():
            value, next_value = agent.value(b_obs), agent.value(b_next_obs)
        delta = b_reward + gamma * (1.0 - b_terminated) * next_value - value
        advantage = torch.zeros_like(delta)
        last = torch.zeros(args.num_envs)
        for t in reversed(range(args.num_steps)):
            last = delta[t] + gamma * gae_lambda * (1.0 - b_ended[t]) * last
            advantage[t] = last

        # Update
        batch = [x.flatten(0, 1) for x in (b_obs, b_action, b_log_prob, advantage, advantage + value)]
        for _ in range(10):
            for ids in torch.randperm(len(batch[0])).split(400):
                mb_obs, mb_action, mb_log_prob, mb_advantage, mb_return = (x[ids] for x in batch)
                ratio = (agent.policy(mb_obs).log_prob(mb_action).sum(-1) - mb_log_prob).exp()
                mb_advantage = (mb_advantage - mb_advantage.mean()) / (mb_advantage.std() + 1e-8)
                clipped = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
                policy_loss = -torch.minimum(ratio * mb_advantage, clipped * mb_advantage).mean()
                value_loss = (agent.value(mb_obs) - mb_return).square().mean()
                optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()

    base, residual = (mean_return(make_envs(20), policy) for policy in (None, agent))
    print(f"mean return: base {base:.0f}, with residual {residual:.0f}")


if __name__ == "__main__":
    main()
