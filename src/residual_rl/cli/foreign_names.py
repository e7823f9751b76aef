"""Names that users know from other programs, and the names that this program has for them.

Sources: ManiSkill's PPO scripts (`ppo.py`, `ppo_rgb.py`), the Expert+Residual scripts for ManiSkill, Policy
Decorator, the SO-101 residual RL scripts, Stable-Baselines3, and LeRobot. `docs/coming_from.md` translates
whole commands.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from residual_rl.errors import UnknownNameError

PAGE = "docs/coming_from.md"

FLAGS: dict[str, tuple[str, ...]] = {
    # amounts
    "--n-steps": ("--num-steps",),
    "--horizon": ("--num-steps",),
    "--num-eval-steps": ("--max-episode-steps",),
    "--n-timesteps": ("--total-timesteps",),
    "--timesteps": ("--total-timesteps", "--total-steps"),
    "--total-iters": ("--total-steps",),
    "--steps": ("--total-steps", "--total-timesteps"),
    "--n-epochs": ("--num-epochs",),
    "--update-epochs": ("--num-epochs",),
    "--batch-size": ("--minibatch-size",),
    "--num-minibatches": ("--minibatch-size",),
    "--nb-envs": ("--num-envs",),
    "--episodes": ("--n-episodes", "--eval-episodes"),
    "--num-episodes": ("--n-episodes", "--eval-episodes"),
    "--n-eval-episodes": ("--eval-episodes", "--n-episodes"),
    "--num-eval-episodes": ("--eval-episodes", "--n-episodes"),
    "--n-final-eval": ("--n-episodes", "--eval-episodes"),
    "--num-eval-envs": ("--eval-envs", "--eval-episodes"),
    # PPO
    "--lr": ("--learning-rate", "--actor-learning-rate"),
    "--ent-coef": ("--entropy-coef", "--temperature"),
    "--vf-coef": ("--value-coef",),
    "--clip-coef": ("--clip-range",),
    "--clip-param": ("--clip-range",),
    "--lam": ("--gae-lambda",),
    "--anneal-lr": ("--learning-rate-schedule linear",),
    "--desired-kl": ("--target-kl",),
    "--hidden-size": ("--hidden-sizes",),
    "--n-layers": ("--hidden-sizes",),
    "--net-arch": ("--hidden-sizes",),
    "--activation-fn": ("--activation",),
    "--log-std-init": ("--init-std",),
    "--log-std-min": ("--log-std-range",),
    "--log-std-max": ("--log-std-range",),
    # off-policy learners
    "--policy-lr": ("--actor-learning-rate",),
    "--q-lr": ("--critic-learning-rate",),
    "--policy-frequency": ("--actor-every",),
    "--policy-delay": ("--actor-every",),
    "--sac-alpha": ("--temperature",),
    "--autotune": ("--tune-temperature",),
    "--training-freq": ("--num-steps",),
    "--train-freq": ("--num-steps",),
    "--gradient-steps": ("--utd",),
    # the residual and its base policy
    "--act-scale": ("--action-scale",),
    "--res-scale": ("--residual-scale",),
    "--residual-alpha": ("--residual-scale",),
    "--base-policy-ckpt": ("--base.checkpoint", "--il-checkpoint"),
    "--base-policy-path": ("--base.checkpoint",),
    "--policy-path": ("--base.checkpoint",),
    "--policy.path": ("--base.checkpoint",),
    "--pretrained-path": ("--base.checkpoint",),
    "--groot-model": ("--base-policy gr00t",),
    "--ik-gain": ("--base.gain",),
    "--jacobian-kp-xyz": ("--base.drag-gain",),
    "--jacobian-kp-ori": ("--base-policy jacobian-yaw",),
    "--expert": ("--base-policy", "--policy"),
    "--base-cameras": ("--obs-mode rgb+state",),
    "--ddim-steps": ("--base.sampling-steps", "--sampling-steps"),
    "--act-horizon": ("--base.num-action-steps", "--num-action-steps"),
    "--n-action-steps": ("--num-action-steps", "--base.num-action-steps"),
    "--pred-horizon": ("--chunk-size",),
    "--obs-horizon": ("--num-obs-steps",),
    "--n-obs-steps": ("--num-obs-steps",),
    # the task
    "--env": ("--env-id",),
    "--task-id": ("--env-id",),
    "--robot": ("--robot-uids", "--robot-xml"),
    "--xml-path": ("--robot-xml",),
    "--robot-uid": ("--robot-uids",),
    "--randomize": ("--randomization on",),
    "--eval-randomize": ("--randomization on",),
    "--include-state": ("--obs-mode rgb+state",),
    "--no-partial-reset": ("--ignore-terminations",),
    "--horizon-steps": ("--max-episode-steps",),
    # output and trackers
    "--logdir": ("--output-dir",),
    "--log-dir": ("--output-dir",),
    "--exp-name": ("--output-dir runs/NAME",),
    "--run-name": ("--output-dir runs/NAME",),
    "--track": ("--wandb-project PROJECT",),
    "--wandb": ("--wandb-project PROJECT",),
    "--wandb-project-name": ("--wandb-project",),
    "--capture-video": ("--save-video",),
    "--video-dir": ("--save-video",),
    "--render": ("--save-video",),
    "--checkpoint": ("--model", "--base.checkpoint"),
    "--load": ("--model",),
    "--model-checkpoint": ("--model",),
    "--cuda": ("--device cuda",),
    "--demo-path": ("DEMOS, the first argument",),
    "--dataset": ("DEMOS, the first argument",),
    "--algorithm": ("--learner", "--algo"),
    "--algo": ("--learner",),
    "--policy-type": ("--algo", "--learner"),
}
"""Flags of other programs, and what there is instead: the first entry that the command has."""

NO_FLAGS: dict[str, str] = {
    "--norm-adv": "advantages are always normalised",
    "--clip-vloss": "the value loss is not clipped",
    "--clip-range-vf": "the value loss is not clipped",
    "--finite-horizon-gae": "there is one kind of GAE",
    "--torch-deterministic": "runs are deterministic on the CPU",
    "--deterministic": "evaluation is always deterministic",
    "--save-model": "models are always saved",
    "--partial-reset": "success ends an episode by default",
    "--eval-partial-reset": "an evaluation runs every episode to its end",
    "--target-network-frequency": "the targets follow at every gradient step, at the rate --tau",
    "--vec-env-type": "all envs are stepped together in threads",
    "--sync-venv": "all envs are stepped together",
    "--env-vectorization": "choose the simulation with --sim-device",
    "--wandb-entity": "set it in WANDB_ENTITY",
    "--wandb-group": "set it in WANDB_RUN_GROUP",
    "--verbose": "progress is always shown",
    "--expert-action-noise": "the base policy is used as it is",
    "--clip-final-action": "the executed action is always clipped",
    "--evaluate": "use the command residual-rl eval",
}
"""Flags of other programs without a counterpart, and the reason."""

NAMES: dict[str, str] = {
    # tasks and robots
    "franka": "ManiSkill's Franka arm is the robot panda: train maniskill --robot-uids panda",
    "franka_panda": "ManiSkill's Franka arm is the robot panda: --robot-uids panda",
    "panda": "the robot is a setting of the task maniskill: train maniskill --robot-uids panda",
    "a1": "the Galaxea A1 is the robot a1_galaxea: --robot-uids a1_galaxea",
    "galaxea": "the Galaxea A1 is the robot a1_galaxea: --robot-uids a1_galaxea",
    "so101": "the SO-101 has the task so101-paper",
    "so100": "the SO-101 has the task so101-paper",
    "paper-in-square": "the task is so101-paper",
    "SO101Paper-v0": "the task is so101-paper",
    "PegInsertionSide-v2": "ManiSkill 3 has PegInsertionSide-v1",
    "StackCube-v0": "ManiSkill 3 has StackCube-v1",
    "TurnFaucet-v2": "ManiSkill 3 has TurnFaucet-v1",
    # base policies and learners
    "groot": "GR00T is the base policy gr00t",
    "gr00t-n1.5": "GR00T is the base policy gr00t",
    "pi0": "π0 behind a server is the base policy openpi",
    "ppo_rgb": "a model of ManiSkill's PPO is the base policy model",
    "diffusion": "a diffusion policy is the base policy il (its algorithm is read from the checkpoint)",
    "sb3": "a model of Stable-Baselines3 is the base policy model",
    "none": "no base policy is the base policy zero",
    "policy_decorator": "the learner is policy-decorator",
    "pi-dec": "the learner is policy-decorator",
}
"""Names of other programs for tasks, robots, base policies and learners, and what there is instead."""


def describe_foreign_flags(words: Sequence[str], known: Collection[str]) -> str | None:
    """What to use in place of the flags of other programs among `words`; None if there are none.

    Args:
        words: arguments of a command.
        known: the flags that the command has, with dashes in front.
    """
    found = []
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if not word.startswith("--") or flag in known:
            continue
        if flag in NO_FLAGS:
            found.append(f"{flag} has no counterpart ({NO_FLAGS[flag]})")
        ours = [text for text in FLAGS.get(flag, ()) if _is_usable(text, known)]
        if ours:
            found.append(f"{flag} is {ours[0]} here")
        elif flag in FLAGS:
            found.append(f"{flag} is {FLAGS[flag][0]}, which does not apply here")
    return f"{'; '.join(found)} ({PAGE} translates whole commands)" if found else None


def _is_usable(text: str, known: Collection[str]) -> bool:
    """Whether the flags in `text` are among `known`."""
    return all(word in known for word in text.split() if word.startswith("--"))


def hint(error: BaseException) -> str:
    """An explanation to append to the message of `error`, if an unknown name is one of another program's."""
    names = [cause.name for cause in _causes(error) if isinstance(cause, UnknownNameError)]
    found = [NAMES[name] for name in names if name in NAMES]
    envs = [name for name in names if re.search(r"-v\d+$", name) and name not in NAMES]
    found += [
        f"an env is a setting: gymnasium --env-id {name}, or maniskill --env-id {name}" for name in envs
    ]
    return f"; {found[0]}" if found else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it, also if it was raised `from None`."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
