"""Promise 12: another person's files never import a module, connect to an address or write to a path that
they name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import socket
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from eval_files import lerobots, ours, write
from foreign_demos import minari, robomimic
from tiny_runs import Fails, slow

from residual_rl.cli.main import main
from residual_rl.config import ResidualCfg, RunCfg, SafetyCfg, TrainCfg, sign_task_settings
from residual_rl.demos.episode import Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.writer import DemoWriter, describe
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.exported_policy import POLICY_FILE, find_policy, load_policy
from residual_rl.registry import BASE_POLICIES, LEARNERS, TASKS, load
from residual_rl.runs import checkpoint
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.run_folder import RunFolder
from residual_rl.sweeps.grid import SweepCfg, Trial, read_sweep
from residual_rl.sweeps.trial import next_command
from residual_rl.types import HasReplay, Transition
from residual_rl.utils.consent import ConsentError, consenting
from residual_rl.utils.files import plain
from residual_rl.utils.sensitive import sensitive_fields, sensitive_values
from residual_rl.utils.signature import SIGNATURE_FILE, write_signature
from residual_rl.utils.validation import check_fields

REPLACED = ("task_id", "task", "base_policy_id", "base")
HOSTILE_BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "switch": ("hybrid", {"policies": ["jacobian", "zero"], "mode": "switch", "switch": "gift:choose"}),
    "goals": ("ik", {"goals": "gift:Goals"}),
    "function": ("python", {"function": "gift:policy"}),
    "goals in a hybrid": ("hybrid", {"policies": ["ik", "zero"], "settings": ["0.goals=gift:Goals"]}),
    "address": ("gr00t", {"host": "127.0.0.1", "port": 0}),
    "address in a hybrid": ("hybrid", {"policies": ["openpi", "zero"], "settings": ["0.port=0"]}),
}
"""A base policy and its hostile settings; port 0 becomes that of a listener."""


@pytest.fixture
def gift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module on Python's path that leaves a file `ran` when it is imported."""
    module = tmp_path / "gift.py"
    ran = tmp_path / "ran"
    module.write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ran
    sys.modules.pop("gift", None)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server on loopback that nothing may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield server


def connected(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except TimeoutError:
        return False
    return True


def rewrite(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the settings in a run folder, as a sender could: checksums fit, signatures are gone."""
    for file in run.rglob("config.json"):
        config = json.loads(file.read_text("utf-8"))
        change(config)
        file.write_text(json.dumps(config), "utf-8")
    for file in run.rglob(POLICY_FILE):
        state = checkpoint.load(file, "policy")
        change(state["config"])
        checkpoint.save(file, state, "policy")
    for file in run.rglob(SIGNATURE_FILE):
        file.unlink()


def with_base(base_policy_id: str, changes: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    plain = TrainCfg.default("so101-paper", base_policy_id).to_dict()["base"]

    def change(config: dict[str, Any]) -> None:
        config.update(base_policy_id=base_policy_id, base={**plain, **changes})

    return change


def commands(run: Path, out: Path) -> dict[str, list[str | Path]]:
    """Every command that reads a run or an exported policy."""
    model = ["--base-policy", "model", "--model-path", run]
    return {
        "eval": ["eval", run, "--n-episodes", "2"],
        "eval of another model": ["eval", run, "--model", run / "final_model"],
        "serve": ["serve", run, "--port", "0"],
        "view": ["view", "so101-paper", "--policy", run, "--cameras", out],
        "train --resume": ["train", "--resume", run],
        "deploy": ["deploy", run, "--sim", "--output-dir", out],
        "export": ["export", run, "--output-dir", out],
        "distill": ["distill", run, "--output-dir", out],
        "demos collect": ["demos", "collect", "so101-paper", "--policy", run, "--output", out / "demos.h5"],
        "train over it": ["train", "so101-paper", *model, "--output-dir", out],
        "eval over it": ["eval", "so101-paper", *model, "--n-episodes", "2"],
        "sweep over it": ["sweep", "so101-paper", *model, "--output-dir", out, "--seeds", "1"],
        "doctor": ["doctor", "so101-paper", "--policy", run],
    }


COMMANDS = sorted(set(commands(Path(), Path())) - {"sweep over it", "doctor"})
"""`sweep` starts trials, which are `train`; `doctor` reads no run."""


def hostile_run(run: Path, case: str, port: int) -> Path:
    base_policy_id, changes = HOSTILE_BASES[case]
    text = json.dumps(changes).replace('"port": 0', f'"port": {port}').replace("0.port=0", f"0.port={port}")
    rewrite(run, with_base(base_policy_id, json.loads(text)))
    return run


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", HOSTILE_BASES)
def test_check_consent__no_command_uses_what_a_foreign_run_names(
    case: str, command: str, run: Path, tmp_path: Path, gift: Path, listener: socket.socket, fails: Fails
) -> None:
    hostile_run(run, case, listener.getsockname()[1])
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    message = fails(*commands(run, tmp_path / "out")[command])
    assert "is not known to be yours" in message
    assert "--confirm " in message
    assert not gift.exists()
    assert not connected(listener)
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in before} == before
    assert {p for p in run.rglob("*") if p.is_file()} - set(before) <= {run / ".lock"}


@pytest.mark.parametrize("case", HOSTILE_BASES)
def test_train_robot__a_foreign_run_cannot_name_code_or_addresses_either(
    case: str, run: Path, tmp_path: Path, gift: Path, listener: socket.socket, fails: Fails
) -> None:
    """The base policy's settings need consent; the session's, which name code too, are never read."""
    hostile_run(run, case, listener.getsockname()[1])
    session = {"sim": True, "operator": "gift:operator", "success_source": "gift:solved"}
    rewrite(run, lambda config: config.update(robot={**session, "pose_source": "gift:pose"}))
    resume = ["train-robot", "--resume", run, "--sim", "--no-real-time", "--operator", "none"]
    assert "is not known to be yours" in fails(*resume, "--reset", "automatic")
    assert not gift.exists()
    assert not connected(listener)


def test_check_consent__a_base_that_is_a_hostile_run_is_not_used_either(
    run: Path, tmp_path: Path, gift: Path, fails: Fails
) -> None:
    inner = shutil.copytree(run, tmp_path / "inner")
    hostile_run(inner, "switch", 0)
    rewrite(run, with_base("model", {"checkpoint": str(inner)}))
    message = fails("eval", run, "--n-episodes", "2")
    assert "--confirm base.switch=gift:choose" in message
    assert not gift.exists()


@pytest.mark.slow
def test_check_consent__the_printed_command_uses_the_code_that_it_confirms(
    run: Path, tmp_path: Path, gift: Path
) -> None:
    (tmp_path / "gift.py").write_text(
        (tmp_path / "gift.py").read_text()
        + "import torch\n\ndef choose(obs):\n    return torch.zeros(len(obs['state']), dtype=torch.int64)\n"
    )
    hostile_run(run, "switch", 0)
    with pytest.raises(ConsentError):
        load_policy(run / "best_model" / POLICY_FILE)
    command = ["eval", str(run), "--n-episodes", "2", "--max-episode-steps", "5"]
    assert main([*command, "--confirm", "base.switch=gift:choose"]) == 0
    assert gift.exists()
    # the field's own flag repeats it as well
    assert main([*command, "--base.switch", "gift:choose"]) == 0


def test_check_consent__a_flag_replaces_the_address_of_a_foreign_run(
    run: Path, listener: socket.socket, fails: Fails
) -> None:
    port = listener.getsockname()[1]
    hostile_run(run, "address", port)
    with socket.create_server(("127.0.0.1", 0)) as mine:
        mine.settimeout(5.0)
        mine_port = str(mine.getsockname()[1])
        own = ["--base.host", "127.0.0.1", "--base.port", mine_port]
        fails("eval", run, "--n-episodes", "2", *own, "--base.timeout", "0.1", "--base.reconnect", "0.1")
        assert connected(mine)
    assert not connected(listener)


@pytest.mark.slow
def test_write_signature__own_runs_need_no_repetition(tmp_path: Path, gift: Path) -> None:
    (tmp_path / "gift.py").write_text(
        "import torch\n\ndef choose(obs):\n    return torch.zeros(len(obs['state']), dtype=torch.int64)\n"
    )
    out = tmp_path / "mine"
    base = ["--base-policy", "hybrid", "--base.policies", "jacobian", "zero", "--base.mode", "switch"]
    size = ["--num-envs", "2", "--num-steps", "16", "--total-timesteps", "32", "--eval-freq", "0"]
    small = ["--eval-episodes", "2", "--minibatch-size", "32", "--max-episode-steps", "5"]
    switch = ["--base.switch", "gift:choose"]
    assert main(["train", "so101-paper", *base, *switch, *size, *small, "--output-dir", str(out)]) == 0
    assert main(["train", "--resume", str(out), "--total-timesteps", "64"]) == 0
    assert main(["eval", str(out), "--n-episodes", "1", "--max-episode-steps", "5"]) == 0
    # a changed setting makes the signature void
    rewritten = out / "best_model" / POLICY_FILE
    state = checkpoint.load(rewritten, "policy")
    state["config"]["base"]["switch"] = "other:choose"
    checkpoint.save(rewritten, state, "policy")
    with pytest.raises(ConsentError, match="other:choose"):
        load_policy(rewritten)


@pytest.mark.parametrize("replaced", ["expert.zip", "statistics.pkl"])
def test_write_signature__trust_is_void_when_a_trusted_file_changes(replaced: str, tmp_path: Path) -> None:
    base = {"checkpoint": str(tmp_path / "expert.zip"), "vec_normalize": str(tmp_path / "statistics.pkl")}
    for path in base.values():
        Path(path).write_bytes(b"mine")
    data = TrainCfg.default("so101-paper", "model").to_dict()
    data["base"].update(base, trust_checkpoint=True)
    TrainCfg.from_dict(data, None).write_signature(tmp_path)
    assert TrainCfg.from_dict(data, tmp_path / "config.json").base.trust_checkpoint
    (tmp_path / replaced).write_bytes(b"evil")
    assert not TrainCfg.from_dict(data, tmp_path / "config.json").base.trust_checkpoint


@pytest.mark.parametrize("case", ["task_modules", "env_id"])
def test_check_consent__settings_of_a_task_are_no_exception(case: str, run: Path, gift: Path) -> None:
    changes = {"task_modules": ["gift"]} if case == "task_modules" else {"env_id": "gift:Id"}
    plain = TrainCfg.default("maniskill").to_dict()["task"]
    rewrite(run, lambda config: config.update(task_id="maniskill", task={**plain, **changes}))
    with pytest.raises(ConsentError, match=rf"task\.{case}"):
        load_policy(run / "best_model" / POLICY_FILE)
    assert not gift.exists()


def test_check_consent__resuming_does_not_start_a_foreign_runs_tracker(run: Path, fails: Fails) -> None:
    rewrite(run, lambda config: config["run"].update(wandb_project="theirs"))
    assert "--confirm run.wandb_project=theirs" in fails("train", "--resume", run)


@pytest.mark.slow
def test_refuse_links__nothing_outside_a_run_folder_is_written(
    run: Path, tmp_path: Path, fails: Fails
) -> None:
    outside = tmp_path / "authorized_keys"
    outside.write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "photo.png").write_bytes(b"mine")
    links = {
        ".lock": outside,
        "metrics.jsonl": outside,
        "checkpoints": tmp_path / "folder",
        "eval_results": tmp_path / "folder",
        "eval_results/plot.png": outside,
        "distilled": tmp_path / "folder",
        "wandb": tmp_path / "folder",
    }
    for name, target in links.items():
        hostile = shutil.copytree(run, tmp_path / "hostile")
        place = hostile / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(target)
        for command in (
            ["train", "--resume", hostile],
            ["eval", hostile, "--n-episodes", "2", "--plot"],
            ["distill", hostile],
        ):
            assert f"hostile/{name} is a link" in fails(*command)
        shutil.rmtree(hostile)
    assert outside.read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["photo.png"]


@pytest.mark.slow
def test_read_sweep__a_foreign_sweep_is_not_resumed(tmp_path: Path, gift: Path, fails: Fails) -> None:
    """Its arguments could name code, grant trust or write files, also through the values of its grid."""
    folder = tmp_path / "sweep"
    target = tmp_path / "bashrc"
    target.write_text("mine")
    base = ["--base-policy", "hybrid", "--base.policies", "jacobian", "zero", "--base.mode", "switch"]
    model = ["--base-policy", "model", "--model-path", "gift.zip"]
    grids: list[tuple[list[str], dict[str, list[str]]]] = [
        ([*base, "--base.switch", "gift:choose"], {}),
        (["--tyro_write-completion", "bash", str(target)], {}),
        ([*model, "--trust-checkpoint"], {}),
        (model, {"trust_checkpoint": ["True"]}),
        (model, {"obs_keys": ["state base_action --base.trust-checkpoint"]}),
    ]
    for train, grid in grids:
        shutil.rmtree(folder, ignore_errors=True)
        RunFolder(folder).start(SweepCfg("so101-paper", tuple(train), grid, seeds=(1,))).close()
        assert "is not known to be yours" in fails("sweep", "--resume", folder)
    assert target.read_text() == "mine"
    assert not gift.exists()
    assert not (folder / "trials").exists()


def test_read_sweep__own_sweeps_keep_their_arguments(tmp_path: Path) -> None:
    sweep = SweepCfg("so101-paper", ("--base-policy", "model", "--trust-checkpoint"), cwd="/somewhere")
    with RunFolder(tmp_path / "sweep").start(sweep):
        write_signature(tmp_path / "sweep", plain(sweep))
    assert read_sweep(tmp_path / "sweep") == sweep


def test_next_command__trust_of_a_sweep_does_not_carry_over_to_a_changed_trial(tmp_path: Path) -> None:
    trial = Trial("t", "default", 1, 64, ("so101-paper", "--trust-checkpoint"), tmp_path, (0, 1))
    (trial.run.checkpoints).mkdir(parents=True)
    CheckpointFolder(trial.run.checkpoints, keep=1).save(32, {"x": 1})
    assert next_command(trial) == ["train", "--resume", str(trial.run.path)]


def test_find_policy__a_linked_policy_belongs_to_the_folder_of_the_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "gift").mkdir()
    (tmp_path / "gift" / POLICY_FILE).symlink_to(run / "final_model" / POLICY_FILE)
    assert find_policy(tmp_path / "gift").run is None


def test_typed__a_flag_of_the_command_is_no_consent_for_nested_settings(run: Path) -> None:
    hostile_run(run, "address in a hybrid", 8000)
    command = ["residual-rl", "serve", str(run), "--host", "127.0.0.1", "--port", "8000"]
    with consenting(command=command), pytest.raises(ConsentError, match=r"base\.settings\.0\.port"):
        load_policy(run / "best_model" / POLICY_FILE)


def write_demos(file: Path, settings: dict[str, Any]) -> None:
    info = describe(
        "maniskill", settings, max_episode_steps=2, control_hz=20.0, source_type="rl", source_desc="a test"
    )
    zeros = np.zeros((2, 8), np.float32)
    demo = Demo(
        actions=zeros,
        obs={"state": np.zeros((3, 4), np.float32)},
        terminated=np.zeros(2, bool),
        truncated=np.array([False, True]),
        seed=0,
    )
    with DemoWriter(file, info) as writer:
        writer.add(demo)
        writer.add(demo)


@pytest.mark.parametrize(
    "command",
    [
        ["demos", "info", "FILE"],
        ["imitate", "FILE", "--algo", "bc", "--total-steps", "2", "--output-dir", "OUT"],
        ["demos", "to-minari", "FILE", "--dataset-id", "a-v0", "--output-dir", "OUT"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
@pytest.mark.parametrize("program", ["minari", "robomimic"])
def test_demonstrations__another_programs_file_imports_nothing_that_it_names(
    program: str, command: list[str], tmp_path: Path, gift: Path
) -> None:
    file = tmp_path / "x.hdf5"
    if program == "minari":
        spec = {"id": "gift:Env-v0", "entry_point": "gift:Env", "kwargs": {"file": str(tmp_path / "gift.py")}}
        minari(file, env_spec=json.dumps(spec))
    else:
        robomimic(file)
        with h5py.File(file, "r+") as stored:
            stored["data"].attrs["env_args"] = json.dumps(
                {"env_name": "gift:Env", "env_kwargs": {"module": "gift"}}
            )
    assert main([{"FILE": str(file), "OUT": str(tmp_path / "out")}.get(word, word) for word in command]) == 0
    assert not gift.exists()


@pytest.mark.parametrize("command", ["demos replay", "imitate"])
def test_task_cfg__demonstrations_do_not_import_what_they_name(
    command: str, tmp_path: Path, gift: Path, fails: Fails
) -> None:
    file = tmp_path / "demos.h5"
    settings = TrainCfg.default("maniskill").to_dict()["task"] | {"task_modules": ["gift"]}
    write_demos(file, settings)
    message = fails(*command.split(), file)
    assert "--confirm task.task_modules=gift" in message
    assert not gift.exists()
    # the user's signature covers the task and its settings
    with Demonstrations.open(file) as demos:
        demos.info["signature"] = sign_task_settings("maniskill", settings)
        assert demos.task_cfg.task_modules == ("gift",)
        demos.info["env_info"]["env_kwargs"]["task_modules"] = ["other"]
        with pytest.raises(ConsentError, match="other"):
            _ = demos.task_cfg


def test_parse_value__settings_in_files_are_values_and_not_arguments(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "bashrc"
    target.write_text("mine")
    words = f"0.damping=--tyro-write-completion bash {target}"
    rewrite(run, with_base("hybrid", {"policies": ["jacobian", "zero"], "settings": [words]}))
    with pytest.raises(CheckpointError, match=r"settings: 0\.damping must be a float"):
        load_policy(run / "best_model" / POLICY_FILE)
    assert target.read_text() == "mine"


# --- every registered setting -------------------------------------------------------------------------------


def registered_configs() -> dict[str, tuple[str, type]]:
    """Part and class of the settings of every task, base policy and learner, by id."""
    specs = [("task", s) for s in TASKS.all()]
    specs += [("base", s) for s in BASE_POLICIES.all() if s.config]
    specs += [("learner", s) for s in LEARNERS.all()]
    return {f"{part} {spec.id}": (part, load(spec.config)) for part, spec in specs}


SENSITIVE = [
    (name, field)
    for name, (_, config) in registered_configs().items()
    for field, mark in sensitive_fields(config).items()
    if mark.kind != "trust"
]


@pytest.mark.parametrize(("name", "field"), SENSITIVE)
def test_sensitive_fields__are_refused_in_foreign_files_and_accepted_when_confirmed(
    name: str, field: str, run: Path
) -> None:
    part, config = registered_configs()[name]
    id = name.split()[1]
    hint = typing.get_type_hints(config)[field]
    value = 1234 if hint is int else ["gift=1"] if typing.get_origin(hint) is tuple else "ws://gift:1"
    more = {"policies": ["jacobian", "zero"], "mode": "switch"} if field == "switch" else {}

    def change(settings: dict[str, Any]) -> None:
        default = TrainCfg.default(id) if part == "task" else TrainCfg.default("so101-paper", id)
        settings.update({key: default.to_dict()[key] for key in REPLACED})
        settings[part].update(more, **{field: value})

    rewrite(run, change)
    file = run / "best_model" / POLICY_FILE
    with pytest.raises(ConsentError, match=rf"{part}\.{field}"):
        load_policy(file)
    state = checkpoint.load(file, "policy")
    cfg = TrainCfg.from_dict(state["config"], None)
    pairs = [f"{found.path}={v}" for found in sensitive_values(cfg) for v in found.values]
    with consenting(*pairs):
        assert load_policy(file).cfg == cfg


HARMLESS_TEXTS = {
    "base": "api_token arm_key cameras checkpoint device extra_state gripper_key input_keys language_key "
    "observation policies prompt revision settings switch_on task_description vec_normalize",
    "learner": "critic_obs_keys demos obs_keys",
    "run": "device sim_device",
    "task": "control_mode obs_cameras render_backend reward_mode robot_uids robot_xml success_keys",
}
"""Settings of type text, or list of texts, that neither name code nor an address nor a path to write to.
Paths here are read, with the readers' own checks; `settings` are those of a hybrid, which are walked."""


def test_sensitive_fields__every_setting_of_type_text_is_classified() -> None:
    """A new setting of type text must be declared sensitive, or added to the harmless ones here."""
    configs = [
        *registered_configs().values(),
        ("residual", ResidualCfg),
        ("run", RunCfg),
        ("safety", SafetyCfg),
    ]
    texts = {str, Path, tuple[str, ...]}
    found = {
        f"{part}.{field}"
        for part, config in configs
        for field, hint in typing.get_type_hints(config).items()
        if {hint, *typing.get_args(hint)} & texts and field not in sensitive_fields(config)
    }
    assert found == {f"{part}.{name}" for part, names in HARMLESS_TEXTS.items() for name in names.split()}


WRONG = ["x", "", 1e30, -1, 10**30, 10**400, None, True, {}, [], [1], [[]], ["a", "a"], [10**30]]


SIMILAR = ("learner gated-sac", "learner policy-decorator", "learner td3")
"""Learners with the settings of `sac` and a few more."""


@pytest.mark.parametrize("name", [*(n for n in registered_configs() if n not in SIMILAR), *slow(*SIMILAR)])
def test_from_dict__wrong_values_are_errors_of_one_line(name: str) -> None:
    """A value of every kind for every setting is accepted, or refused with its name."""
    part, config = registered_configs()[name]
    id = name.split()[1]
    default = TrainCfg.default(
        id if part == "task" else "so101-paper",
        id if part == "base" else "zero",
        id if part == "learner" else None,
    )
    plain_default = default.to_dict()
    for field in typing.get_type_hints(config):
        for value in WRONG:
            data = {**plain_default, part: dict(plain_default[part])}
            data[part][field] = value
            with contextlib.suppress(ConfigError, ConsentError, UnknownNameError):
                made = TrainCfg.from_dict(data, Path("gift/config.json"))
                check_fields(getattr(made, part))


def test_from_dict__a_policy_that_is_its_own_base_is_an_error(run: Path, fails: Fails) -> None:
    rewrite(run, with_base("model", {"checkpoint": str(run)}))
    assert "is its own base policy" in fails("eval", run, "--n-episodes", "2")


def whole_settings() -> list[tuple[str, str]]:
    """Each whole-numbered setting of each learner."""
    configs = ((spec.id, spec.default_config()) for spec in LEARNERS.all())
    return [
        (learner, field.name)
        for learner, cfg in configs
        for field in dataclasses.fields(cfg)
        if type(getattr(cfg, field.name)) is int and field.name not in ("num_epochs", "actor_every")
    ]


@pytest.mark.parametrize(("learner_id", "setting"), whole_settings())
def test_learner__no_setting_of_a_file_asks_for_terabytes(learner_id: str, setting: str) -> None:
    spec = LEARNERS.get(learner_id)
    default = spec.default_config()
    small = {
        "buffer_size": 64,
        "batch_size": 4,
        "hidden_sizes": (4,),
        "learning_starts": 0,
        "actor_starts": 0,
    }
    settings = {name: value for name, value in small.items() if hasattr(default, name)} | {setting: 10**13}
    space = {"state": (4,), "base_action": (2,), "elapsed_steps": (1,)}
    obs = {name: torch.zeros(4, *shape) for name, shape in space.items()}
    no = torch.zeros(4, dtype=torch.bool)
    with contextlib.suppress(ConfigError):  # a clear error, or it works
        cfg = dataclasses.replace(default, **settings)
        learner = load(spec.make)(cfg, space, 2, 4, torch.device("cpu"), 0)
        action = learner.act(obs)
        step = (obs, action, torch.zeros(4), no, no, obs, obs["base_action"], action, 1.0, 1.0, no)
        learner.observe(Transition(*step))
        if isinstance(learner, HasReplay):
            learner.update()


def test_compare__settings_of_foreign_evaluations_are_only_shown(
    tmp_path: Path, gift: Path, listener: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    hostile = {"adapter": "gift:choose", "url": address, "output": str(tmp_path / "out")}
    content = ours({"residual": [1, 0]}, settings={"task": hostile})
    mine = write(tmp_path / "mine.json", ours({"residual": [1, 0]}))
    assert main(["compare", str(mine), str(write(tmp_path / "theirs.json", content))]) == 0
    lerobots_file = lerobots({("gift:choose", 0): [1, 0]})
    lerobots_file["per_task"][0]["metrics"]["video_paths"] = [address, str(tmp_path / "out")]
    file = write(tmp_path / "eval_info.json", lerobots_file)
    assert main(["compare", str(file), str(mine), "--lerobot-seed", "1000"]) == 0
    assert "adapter missing in A, gift:choose in B" in capsys.readouterr().out
    assert not gift.exists()
    assert not connected(listener)
    assert not (tmp_path / "out").exists()
