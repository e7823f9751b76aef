"""Promise 3: truncation bootstraps from the true final observation; termination does not."""

from __future__ import annotations

import fakes
import torch

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.learners.common.returns import gae, n_step_returns
from residual_rl.residual_env import ResidualEnv

# Two envs of three steps [T, B]. Both episodes end in step 1: by truncation in the first env, by termination
# in the second. The value of the true final observation is 100.
REWARD = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
VALUE = torch.tensor([[10.0, 10.0], [20.0, 20.0], [40.0, 40.0]])
NEXT_VALUE = torch.tensor([[20.0, 20.0], [100.0, 100.0], [60.0, 60.0]])
TERMINATED = torch.tensor([[False, False], [False, True], [False, False]])
TRUNCATED = torch.tensor([[False, False], [True, False], [False, False]])


def test_gae__bootstraps_truncation_and_not_termination() -> None:
    ended = TERMINATED | TRUNCATED
    advantage, target = gae(REWARD, VALUE, NEXT_VALUE, ~TERMINATED, ended, gamma=0.5, gae_lambda=0.5)
    # Errors: 1 + 10 - 10 = 1; truncated 2 + 50 - 20 = 32, terminated 2 - 20 = -18; 4 + 30 - 40 = -6.
    # The trace decays by 0.25.
    assert advantage.T.tolist() == [[9.0, 32.0, -6.0], [-3.5, -18.0, -6.0]]
    assert target.T.tolist() == [[19.0, 52.0, 34.0], [6.5, 2.0, 34.0]]


def test_n_step_returns__bootstrap_truncation_and_not_termination() -> None:
    available = torch.tensor([3, 3])
    total, discount, last = n_step_returns(REWARD, TERMINATED, TRUNCATED, available, 0.5)
    assert total.tolist() == [2.0, 2.0]
    assert discount.tolist() == [0.25, 0.0]
    assert last.tolist() == [1, 1]


def test_residual_env__next_obs_is_the_true_final_observation() -> None:
    def stepped(max_episode_steps: int) -> tuple[ResidualEnv, torch.Tensor]:
        vec_env = fakes.PointEnv(fakes.PointCfg(max_episode_steps=max_episode_steps), 2)
        env = ResidualEnv(vec_env, BasePolicyExecutor(fakes.Homing(0.1), vec_env), 0.5, 0.0)
        env.reset(seed=7)
        for _ in range(3):
            transition, _ = env.step(torch.zeros(2, 2))
        return env, transition.next_obs["position"]

    truncated_env, final = stepped(max_episode_steps=3)
    longer_env, same = stepped(max_episode_steps=9)
    assert torch.equal(final, same)
    assert torch.equal(longer_env.obs["position"], same)
    assert not torch.equal(truncated_env.obs["position"], final)
