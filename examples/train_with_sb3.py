"""Train a residual with PPO from Stable-Baselines3, using the Gymnasium env with a base policy.

    python examples/train_with_sb3.py --total-timesteps 250000 --num-envs 8

The action is the residual and the observation includes the base action, as in this package's own training.
"""

from __future__ import annotations

import argparse

import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor

import residual_rl  # noqa: F401 (registers the Gymnasium ids)


def make_env() -> gymnasium.Env:
    """One env, in its own process."""
    return gymnasium.make("residual_rl/SO101Paper-v0", base_policy="jacobian", residual_scale=0.6)


def main() -> None:
    """Train, then evaluate without exploration noise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--total-timesteps", type=int, default=250_000)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=256, help="steps per env between two updates")
    parser.add_argument("--n-eval-episodes", type=int, default=20)
    args = parser.parse_args()

    vec_env = VecMonitor(SubprocVecEnv([make_env] * args.num_envs))
    network = {"net_arch": [128, 128], "log_std_init": -0.7}
    model = PPO(
        "MlpPolicy",
        vec_env,
        n_steps=args.num_steps,
        batch_size=256,
        n_epochs=8,
        policy_kwargs=network,
        device="cpu",
        verbose=1,
    )
    model.learn(args.total_timesteps)

    vec_env.seed(10_000_000)
    successes: list[bool] = []
    evaluate_policy(
        model,
        vec_env,
        args.n_eval_episodes,
        callback=lambda here, _: here["done"] and successes.append(here["info"]["is_success"]),
    )
    print(f"success in {sum(successes)} of {len(successes)} episodes")
    vec_env.close()


if __name__ == "__main__":
    main()
