"""`residual-rl serve`: serve a base policy or a trained run to robots and other programs."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from rich.table import Table

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.cli.flags import parse_flags, parse_head, require_target
from residual_rl.config import TrainCfg
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.exported_policy import find_policy
from residual_rl.registry import BASE_POLICIES, TASKS, load
from residual_rl.remote.server import BackgroundServer, Server, open_server
from residual_rl.remote.service import ActionUnits, PolicyService, Protocol
from residual_rl.utils.console import Console
from residual_rl.utils.network import secret
from residual_rl.utils.text import parse_pairs, shell_command
from residual_rl.utils.validation import CheckedCfg, PositiveFloat, PositiveInt

TRAINED = "model"
"""Id of the base policy that executes a trained run."""
PORTS = {"gr00t": 5555, "gr00t-n15": 5555, "openpi": 8000}


@dataclasses.dataclass(frozen=True)
class ServeFlags(CheckedCfg):
    """Flags of `serve` that are not settings."""

    protocol: Literal["gr00t", "gr00t-n15", "openpi"] = "gr00t"
    """gr00t (N1.6 and N1.7, nested), gr00t-n15 (flat keys), or openpi."""
    port: Annotated[int, Interval(ge=0, le=65535)] | None = None
    """Port to listen on; 0 takes a free one. None: 5555, for openpi 8000."""
    host: str = "127.0.0.1"
    """Address to listen on; addresses other than loopback need a token."""
    token: str | None = None
    """Token that clients must send. None: that of the environment variable RESIDUAL_RL_TOKEN, which does not
    appear in process lists."""
    task: str | None = None
    """Task of a base policy; a run has its own."""
    max_sessions: PositiveInt = 256
    """Largest number of sessions: a robot uses one, a training run one for each env. A task with --eval-envs
    has at most that many."""
    idle_minutes: PositiveFloat = 30.0
    """Time without a request after which the sessions of a client are closed [min]."""
    action_units: ActionUnits | None = None
    """openpi: normalized (the task's actions) or hardware (absolute joint positions in the robot's units).
    None: normalized. Clients of gr00t always get joint positions."""
    keys: tuple[str, ...] = ()
    """Keys of observations in clients' requests, as ENV_NAME=KEY, where they differ from the name (openpi:
    observation/NAME)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action_units == "normalized" and self.protocol != "openpi":
            raise ConfigError(
                "action_units normalized needs --protocol openpi: GR00T's protocol sends joint positions"
            )


def main(argv: Sequence[str]) -> int:
    """Parse, and serve until a signal arrives."""
    target, rest = require_target(argv, "serve", "POLICY|RUN", "Serve a policy")
    flags, cfg = _parse(
        target, rest, _settings(target, parse_head(ServeFlags(), rest, f"serve {target}").task)
    )
    torch.set_num_threads(cfg.run.torch_threads)
    service = _make_service(flags, cfg)
    port = PORTS[flags.protocol] if flags.port is None else flags.port
    server = open_server(service, flags.host, port, secret(flags.token), 60.0 * flags.idle_minutes)
    return _run(server, service)


def _settings(target: str, task: str | None) -> TrainCfg:
    """Settings of the served policy: the trained run at the path `target`, or the base policy of that id in
    `task`."""
    # a run or a model: its own settings, and a base policy that executes it
    path = Path(target)
    if path.exists():
        exported = find_policy(path).exported
        trained = exported.cfg
        if task is not None and task != trained.task_id:
            raise ConfigError(
                f"{target} was trained on task {trained.task_id!r}, not {task!r}: leave out --task"
            )
        base = dataclasses.replace(BASE_POLICIES.get(TRAINED).default_config(), checkpoint=target)
        return dataclasses.replace(trained, base_policy_id=TRAINED, base=base)
    try:
        BASE_POLICIES.get(target)
    except UnknownNameError as error:
        raise ConfigError(f"{target} is neither a run folder nor a base policy: {error}") from None
    if task is None:
        raise ConfigError(
            f"a base policy needs a task: {shell_command('serve', target, '--task', 'TASK')}; tasks: "
            f"{', '.join(spec.id for spec in TASKS.all())}"
        )
    return TrainCfg.default(task, target)


def _parse(target: str, argv: Sequence[str], cfg: TrainCfg) -> tuple[ServeFlags, TrainCfg]:
    groups = {"own": ServeFlags(), "settings": cfg.task, "base": cfg.base}
    about = "Serve a policy to robots and to other programs, over GR00T's or openpi's protocol."
    parsed = parse_flags(groups, argv, f"serve {target}", about)
    return parsed["own"], dataclasses.replace(cfg, task=parsed["settings"], base=parsed["base"])


def _make_service(flags: ServeFlags, cfg: TrainCfg) -> PolicyService:
    # an env for each session; where envs are costly, no more than evaluations may have
    spec = TASKS.get(cfg.task_id)
    num_envs = spec.eval_envs(flags.max_sessions, cfg.task)
    env = load(spec.make)(cfg.task, num_envs, cfg.run.num_threads, cfg.run.sim_device)
    protocol: Protocol = flags.protocol
    units: ActionUnits = flags.action_units or ("normalized" if protocol == "openpi" else "hardware")
    # name -> key: the inverse of the pairs
    keys = {name: key for key, name in parse_pairs(flags.keys, "keys").items()}
    policy = make_base_policy(cfg.base_policy_id, cfg.base, env)
    return PolicyService(policy, env, cfg.task_id, _name_of(cfg), protocol, units, keys)


def _name_of(cfg: TrainCfg) -> str:
    return f"{TRAINED} {cfg.base.checkpoint}" if cfg.base_policy_id == TRAINED else cfg.base_policy_id


def _describe(service: PolicyService, address: str) -> None:
    """Print the policy, the address and the observations that clients must send."""
    handshake = service.handshake
    units = (
        service.env.hardware.units
        if service.joints is not None and service.env.hardware is not None
        else None
    )
    console = Console()
    console.say(
        f"Serving {handshake.policy} of task {handshake.task} at {address}, protocol {handshake.protocol}. "
        "Press Ctrl-C to stop.",
    )
    table = Table("observation", "key", "shape", "dtype", title="Required observations", title_justify="left")
    for name, served in handshake.inputs.items():
        table.add_row(name, served.key, str(list(served.shape)), served.dtype)
    console.print(table)
    # one line about the actions that clients receive
    actions = "normalised actions" if units is None else f"joint positions [{', '.join(units)}]"
    steps = f"{handshake.num_obs_steps} observation{'s' * (handshake.num_obs_steps > 1)}"
    console.say(
        f"From {steps} it predicts {handshake.chunk_size} x {actions}, of which {handshake.num_action_steps} "
        "should be executed.",
    )
    console.file.flush()


def _run(server: Server, service: PolicyService) -> int:
    """Serve until SIGINT or SIGTERM. A second signal does not wait for requests in progress."""
    ended = threading.Event()
    received: list[int] = []

    def on_signal(number: int, frame: object) -> None:  # noqa: ARG001
        if received:
            raise KeyboardInterrupt
        received.append(number)
        ended.set()

    # the handlers are set before the address is printed, and restored at the end
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        background = BackgroundServer(server)
        _describe(service, server.address)
        while background.running and not ended.wait(0.2):
            pass
        background.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if background.error is not None:
        raise background.error
    Console(stderr=True).print("Stopped.")
    return 128 + received[0]
