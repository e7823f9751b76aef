"""Flags and names of other programs: the error has this program's names for them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from tiny_runs import Fails

from residual_rl.cli import foreign_names
from residual_rl.cli.foreign_names import FLAGS, NAMES, NO_FLAGS, describe_foreign_flags, hint
from residual_rl.cli.main import main
from residual_rl.errors import ConfigError, UnknownNameError

KNOWN = {"--num-steps", "--entropy-coef", "--batch-size", "--wandb-project", "--num-envs"}


def test_describe_foreign_flags__names_ours() -> None:
    for words, expected in (
        (["--n-steps", "4"], "--n-steps is --num-steps here"),
        (["--n_steps=4"], "--n-steps is --num-steps here"),
        (["--ent-coef", "0.1", "--track"], "--ent-coef is --entropy-coef here; --track is --wandb-project"),
        (["--vf-coef", "1"], "--vf-coef is --value-coef, which does not apply here"),
        (["--norm-adv"], "--norm-adv has no counterpart (advantages are always normalised)"),
    ):
        described = describe_foreign_flags(words, KNOWN)
        assert described is not None
        assert described.startswith(expected)
        assert described.endswith("(docs/coming_from.md translates whole commands)")


def test_describe_foreign_flags__our_own_flags_are_none() -> None:
    # --batch-size is PPO's in Stable-Baselines3, and SAC's own here
    assert describe_foreign_flags(["--batch-size", "4", "--num-envs", "2", "--nonsense"], KNOWN) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train so101-paper --n-steps 4", "--n-steps is --num-steps here"),
        ("train so101-paper --batch-size 64", "--batch-size is --minibatch-size here"),
        ("train so101-paper --ent-coef 0.01", "--ent-coef is --entropy-coef here"),
        ("train so101-paper --learner sac --ent-coef 0.01", "--ent-coef is --temperature here"),
        ("train so101-paper --vf-coef 0.5", "--vf-coef is --value-coef here"),
        ("train so101-paper --act-scale 0.02", "--act-scale is --action-scale here"),
        (
            "train so101-paper --lr 3e-4 --clip-coef 0.1",
            "--lr is --learning-rate here; --clip-coef is",
        ),
        ("train so101-paper --learner policy-decorator --q-lr 1e-4", "--q-lr is --critic-learning-rate here"),
        ("train so101-paper --res-scale 0.1", "--res-scale is --residual-scale here"),
        ("train so101-paper --jacobian-kp-xyz 0.5", "--jacobian-kp-xyz is --base.drag-gain here"),
        ("train so101-paper --xml-path a.xml", "--xml-path is --robot-xml here"),
        ("eval so101-paper --episodes 3", "--episodes is --n-episodes here"),
        ("eval so101-paper --deterministic", "--deterministic has no counterpart"),
        ("demos collect so101-paper --episodes 3", "--episodes is --n-episodes here"),
        ("imitate demos.h5 --lr 1e-4 --demo-path x", "--lr is --learning-rate here; --demo-path is DEMOS"),
        ("sweep so101-paper --grid gamma=0.9,0.99 --n-steps 4", "--n-steps is --num-steps here"),
        # names
        ("train franka", "ManiSkill's Franka arm is the robot panda: train maniskill --robot-uids panda"),
        ("eval franka", "ManiSkill's Franka arm is the robot panda: train maniskill --robot-uids panda"),
        ("train PickCube-v1", "gymnasium --env-id PickCube-v1, or maniskill --env-id PickCube-v1"),
        ("train push-v3", "; an env is a setting: gymnasium --env-id push-v3"),
        ("train so101-paper --base-policy groot", "; GR00T is the base policy gr00t"),
        ("train so101-paper --learner pi-dec", "; the learner is policy-decorator"),
    ],
)
def test_cli__suggests_our_names_for_foreign_ones(
    arguments: str, message: str, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(*arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_hint__finds_the_unknown_name_behind_another_error() -> None:
    robot = UnknownNameError("ManiSkill robot", "franka", ["panda"])
    assert hint(robot) == f"; {NAMES['franka']}"
    other = ConfigError("no such thing")
    other.__context__ = robot  # as `raise … from None` leaves it
    assert hint(other) == f"; {NAMES['franka']}"
    assert hint(ConfigError("bad")) == ""


@pytest.fixture(scope="module")
def all_flags() -> set[str]:
    """The flags of the commands that the table refers to."""
    found: set[str] = set()
    for line in (
        *("train so101-paper --base-policy il", "train so101-paper --learner sac --base-policy model"),
        *("train maniskill --base-policy ik", "train so101-paper --base-policy gr00t", "imitate demos.h5"),
        *("eval so101-paper", "demos collect so101-paper", "train so101-paper"),
    ):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*line.split(), "--help"])
        found |= set(re.findall(r"--[a-z][\w.-]*", out.getvalue()))
    return found


def test_flags__ours_exist_and_theirs_are_not_ours_everywhere(
    all_flags: set[str],
) -> None:
    for theirs, candidates in FLAGS.items():
        for ours in candidates:
            missing = {w for w in ours.split() if w.startswith("--")} - all_flags
            assert not missing, (theirs, missing)
            assert theirs != ours
    assert not NO_FLAGS.keys() & all_flags
    assert not NO_FLAGS.keys() & FLAGS.keys()


def test_flags__page_of_the_error_lists_them_all() -> None:
    lines = (Path(__file__).parents[2] / foreign_names.PAGE).read_text(encoding="utf-8").splitlines()
    for theirs, ours in {**FLAGS, **dict.fromkeys((*NO_FLAGS, *NAMES), ())}.items():
        (line,) = [line for line in lines if line.startswith(f"| `{theirs}` |")]
        assert all(text in line for text in ours), theirs
