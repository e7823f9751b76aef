"""Proximal policy optimisation."""

from residual_rl.registry import LearnerSpec, register_learner

register_learner(
    LearnerSpec(
        id="ppo",
        summary="proximal policy optimisation with a Gaussian residual",
        config="residual_rl.learners.ppo.config:PPOCfg",
        make="residual_rl.learners.ppo.ppo:PPO",
        make_policy="residual_rl.learners.ppo.ppo:make_policy",
        quick_overrides={"num_steps": 32, "minibatch_size": 64},
    )
)
