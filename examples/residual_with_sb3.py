"""Train a residual on a controller for any Gymnasium env, with SAC from Stable-Baselines3.

    python examples/residual_with_sb3.py --total-timesteps 5000

Replace the env and the controller with yours: `policy(obs) -> action`, in the env's own units.
"""

from __future__ import annotations

import argparse

import gymnasium
import numpy as np
from stable_baselines3 import SAC

from residual_rl import ResidualWrapper


def swing_up(obs: np.ndarray) -> np.ndarray:
    """Torque [N·m] that swings the pendulum up with too little energy, and holds it with an offset."""
    cos, sin, velocity = obs[..., 0], obs[..., 1], obs[..., 2]
    energy = 0.5 * velocity**2 + 15.0 * (cos - 1.0)  # 0 at rest at the top
    pump = -0.3 * velocity * (energy + 2.0)
    hold = -10.0 * sin - 2.0 * velocity + 1.0
    return np.where(cos > 0.8, hold, pump)[..., None].clip(-2.0, 2.0)


def make_env(residual_scale: float = 0.5) -> gymnasium.Env:
    """The env whose action is the residual; the base action is the last number of its observation."""
    return ResidualWrapper(gymnasium.make("Pendulum-v1"), swing_up, residual_scale)


def mean_return(env: gymnasium.Env, model: SAC | None, num_episodes: int) -> float:
    """Mean return over fixed episodes; without a model, of the base policy alone."""
    total = 0.0
    for seed in range(num_episodes):
        obs, _ = env.reset(seed=10_000 + seed)
        ended = False
        while not ended:
            residual = np.zeros(env.action_space.shape)
            if model is not None:
                residual, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(residual)
            ended = terminated or truncated
            total += float(reward)
    return total / num_episodes


def main() -> None:
    """Train, then compare base and residual in the same episodes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--total-timesteps", type=int, default=5_000)
    parser.add_argument("--n-eval-episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    env = make_env()
    settings = {"gamma": 0.98, "learning_rate": 1e-3, "learning_starts": 500}
    model = SAC("MlpPolicy", env, **settings, seed=args.seed, device="cpu")
    model.learn(args.total_timesteps, log_interval=None)

    base, residual = (mean_return(env, policy, args.n_eval_episodes) for policy in (None, model))
    print(f"mean return: base {base:.0f}, with residual {residual:.0f}")


if __name__ == "__main__":
    main()
