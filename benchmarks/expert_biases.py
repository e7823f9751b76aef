"""Success of scripted experts that are biased, to choose the base policies of `other_environments.json`.

    python benchmarks/expert_biases.py metaworld --env-id push-v3 --biases "0 0.1 0 0" "0 0.2 0 0"
    python benchmarks/expert_biases.py fetch --env-id FetchPush-v4 --gain 0.7 --biases "0 0.1 0 0"

The episodes are those of seeds that neither training nor an evaluation uses.
"""

from __future__ import annotations

import argparse

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.expert import ExpertCfg
from residual_rl.evaluation.evaluate import evaluate, no_residual
from residual_rl.factory import make_vec_env
from residual_rl.residual_env import ResidualEnv

FIRST_SEED = 30_000_000
"""Between the seeds of evaluations during training and those of demonstrations."""


def main() -> None:
    """Evaluate each bias and print its success rate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task")
    parser.add_argument("--env-id", required=True)
    parser.add_argument(
        "--biases", nargs="+", default=["0"], help="the values of a bias, separated by spaces"
    )
    parser.add_argument("--gain", type=float, default=1.0)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--n-episodes", type=int, default=50)
    options = parser.parse_args()
    env = make_vec_env(options.task, min(16, options.n_episodes), env_id=options.env_id, render=False)
    seeds = range(FIRST_SEED, FIRST_SEED + options.n_episodes)
    for bias in options.biases:
        cfg = ExpertCfg(options.gain, tuple(float(value) for value in bias.split()), options.noise)
        residual_env = ResidualEnv(env, make_base_policy("expert", cfg, env), 0.0)
        episodes = evaluate(residual_env, no_residual(residual_env), seeds)
        success, length = (float(episodes[name].mean()) for name in ("success_once", "episode_length"))
        print(f"{options.env_id}, bias {bias}: {100 * success:.0f} % in {length:.0f} steps", flush=True)
    env.close()


if __name__ == "__main__":
    main()
