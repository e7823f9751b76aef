"""A tiny batched env with an imperfect base policy, for tests of learners."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.composition import compose
from residual_rl.types import Learner, Obs, Transition

OBS_SPACE = {"state": (4,), "base_action": (2,)}
TIMED_OBS_SPACE = OBS_SPACE | {"elapsed_steps": (1,)}


class PointMass:
    """A point in the plane must come within 0.05 m of a goal. The base policy moves there with a bias, and
    stops 0.4 m before the goal.

    `state` is position and goal [m]; an action of 1 moves by 0.1 m. Success terminates an episode, 30 steps
    truncate it.
    """

    max_episode_steps = 30
    residual_scale = 0.5

    def __init__(self, num_envs: int, seed: int):
        self.num_envs = num_envs
        self.generator = torch.Generator().manual_seed(seed)
        self.state = self._draw()
        self.steps = torch.zeros(num_envs, dtype=torch.int64)

    def obs(self) -> Obs:
        return self._named(self.state, self.steps)

    def step(self, residual_action: Tensor) -> Transition:
        """Move, and start a new episode where one ended."""
        obs = self.obs()
        action = compose(obs["base_action"], residual_action, self.residual_scale)
        position, goal = self.state[:, :2] + 0.1 * action, self.state[:, 2:]
        distance = (goal - position).norm(dim=1)
        self.steps += 1
        terminated = distance < 0.05
        truncated = (self.steps >= self.max_episode_steps) & ~terminated
        ended = terminated | truncated
        next_obs = self._named(torch.cat([position, goal], 1), self.steps)
        self.state = torch.where(ended[:, None], self._draw(), next_obs["state"])
        self.steps = torch.where(ended, 0, self.steps)
        reward = terminated.float() - 0.1 * distance
        return Transition(
            obs=obs,
            residual_action=residual_action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            next_obs=next_obs,
            base_action=obs["base_action"],
            action=action,
            success=terminated,
        )

    def _draw(self) -> Tensor:
        return 2.0 * torch.rand(self.num_envs, 4, generator=self.generator) - 1.0

    @staticmethod
    def _named(state: Tensor, steps: Tensor) -> Obs:
        bias = torch.tensor([0.4, 0.0])
        base_action = (state[:, 2:] - state[:, :2] - bias).clamp(-1.0, 1.0)
        return {"state": state, "base_action": base_action, "elapsed_steps": steps[:, None].float()}


def collect(learner: Learner, env: PointMass) -> None:
    """One rollout."""
    for _ in range(learner.num_steps):
        learner.observe(env.step(learner.act(env.obs())))


def success_rate(learner: Learner, num_envs: int = 200, seed: int = 1000) -> float:
    """Share of envs whose first episode is solved by the deterministic policy."""
    env = PointMass(num_envs, seed)
    first, solved = torch.ones(num_envs, dtype=torch.bool), torch.zeros(num_envs, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        transition = env.step(learner.act(env.obs(), deterministic=True))
        solved |= first & transition.terminated
        first &= ~(transition.terminated | transition.truncated)
    return solved.float().mean().item()
