"""Our servers with our clients: a served policy equals the local one, in each protocol."""

from __future__ import annotations

import gc
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import il_case
import numpy as np
import pytest
import torch
from remote_case import BackgroundServer, Counting, Waving, connect, open_one, port_of, served_policy, serving

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.model import ModelCfg
from residual_rl.cli import serve
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError, UnknownNameError
from residual_rl.factory import make_vec_env
from residual_rl.remote.server import open_server
from residual_rl.types import Obs
from residual_rl.utils.network import is_loopback

T = TypeVar("T")
NUM_ENVS = 4
PROTOCOLS = ("gr00t", "gr00t-n15", "openpi")
protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
POLICIES: dict[str, Any] = {
    "no memory": Waving,
    "history and chunks": lambda: Waving(num_obs_steps=3, chunk_size=5, num_action_steps=3),
    "memory": lambda: "jacobian-yaw",
}


@pytest.fixture(scope="module")
def env() -> VecEnv:
    return make_vec_env("so101-paper", NUM_ENVS, num_threads=1)


def mask_of(*env_ids: int) -> torch.Tensor:
    return torch.tensor([env_id in env_ids for env_id in range(NUM_ENVS)])


# --- served and local policies are equal --------------------------------------------------------------------


@pytest.mark.slow
@protocols
@pytest.mark.parametrize("policy", POLICIES)
def test_open_server__remote_policy_equals_the_local_one(protocol: str, policy: str, env: VecEnv) -> None:
    """The actions are equal bit for bit."""
    with serving(POLICIES[policy](), protocol) as port:
        remote, local = connect(protocol, port, env), served_policy(POLICIES[policy](), env)
        obs, _ = env.reset(seed=5)
        for step in range(45):
            if step in (0, 14, 15, 31):
                ended = mask_of(0, 1, 2, 3) if step == 0 else mask_of(1, 3) if step < 20 else mask_of(2)
                remote.reset(ended)
                local.reset(ended)
            queried = None if step % 4 else mask_of(0, 2, 3)
            expected = local.act(obs, queried)
            assert torch.equal(remote.act(obs, queried), expected)
            obs, *_ = env.step(expected)


@protocols
def test_open_server__flow_policy_draws_the_same_noise(protocol: str, env: VecEnv, tmp_path: Path) -> None:
    """The noise depends on every bit of the observations, so they must arrive unchanged."""
    cfg = il_case.make_case(tmp_path)
    with serving(("il", cfg), protocol) as port:
        remote, local = connect(protocol, port, env), make_base_policy("il", cfg, env)
        obs, _ = env.reset(seed=5)
        for _ in range(14):
            expected = local.act(obs)
            assert torch.equal(remote.act(obs), expected)
            obs, *_ = env.step(expected)


@protocols
def test_uncertainty__is_sent_with_the_actions(protocol: str, env: VecEnv) -> None:
    obs, _ = env.reset(seed=5)
    with serving(Waving(unsure=True), protocol) as port:
        remote, local = connect(protocol, port, env), served_policy(Waving(unsure=True), env)
        for _ in range(3):
            remote.act(obs)
            local.act(obs)
            assert local.uncertainty.std() > 0.001
            assert torch.equal(remote.uncertainty, local.uncertainty)


@protocols
def test_control_mode__remote_absolute_targets_equal_local_ones(protocol: str) -> None:
    """In the control mode `joint_target`, actions are the targets, so no further observation is needed."""
    env = make_vec_env("so101-paper", NUM_ENVS, num_threads=1, control_mode="joint_target")
    obs, _ = env.reset(seed=5)
    with serving(Waving(), protocol, control_mode="joint_target") as port:
        assert torch.equal(connect(protocol, port, env).act(obs), served_policy(Waving(), env).act(obs))
    with serving("zero", protocol, control_mode="joint_target") as port:
        assert connect(protocol, port, env).policy.inputs == {}
        assert not connect(protocol, port, env).act(obs).any()


@pytest.mark.parametrize("protocol", ["gr00t", "gr00t-n15"])
def test_control_mode__joint_positions_are_the_same_in_both_modes(protocol: str, env: VecEnv) -> None:
    """Joint positions connect a policy with relative actions to an env with absolute ones.

    They are equal up to rounding in degrees.
    """
    absolute = make_vec_env("so101-paper", NUM_ENVS, num_threads=1, control_mode="joint_target")
    obs, _ = env.reset(seed=5)
    with serving(Waving(), protocol) as port:
        remote, local = connect(protocol, port, absolute), served_policy(Waving(), env)
        for _ in range(12):
            expected = local.act(obs)
            targets = absolute.actions_to_targets(remote.act(obs)[:, None], obs)
            now = env.actions_to_targets(expected[:, None], obs)
            np.testing.assert_allclose(targets, now, atol=2e-7)
            obs, *_ = env.step(expected)


def test_action_units__hardware_units_over_openpi_give_the_same_actions(env: VecEnv) -> None:
    obs, _ = env.reset(seed=5)
    with serving(Waving(), "openpi", units="hardware") as port:
        np.testing.assert_allclose(
            connect("openpi", port, env).act(obs), served_policy(Waving(), env).act(obs), atol=1e-5
        )
        with pytest.raises(ConfigError, match="gives hardware actions, not normalized ones"):
            connect("openpi", port, env, action_units="normalized")


@protocols
def test_open_server__sends_images_unchanged(protocol: str) -> None:
    env = make_vec_env("so101-paper", 2, num_threads=1, obs_mode="rgb+state", image_size=(12, 16))

    class Looking(Waving):
        inputs = {"top": (12, 16, 3), "wrist": (12, 16, 3), "joint_target": (6,)}  # noqa: RUF012

        def predict_action_chunk(self, obs: Any, env_ids: Any) -> Any:
            assert obs["top"].dtype == torch.uint8
            return (obs["top"][:, 2:8, 3, 1].float() / 255 - obs["wrist"][:, 11, 1:7, 2].float() / 255)[
                :, None
            ]

    obs = {name: torch.randint(0, 256, (2, 12, 16, 3), dtype=torch.uint8) for name in ("top", "wrist")}
    obs["joint_target"] = torch.zeros(2, 6)
    policy = Looking(chunk_size=1, num_action_steps=1)
    with serving(
        policy, protocol, obs_mode="rgb+state", image_size=(12, 16), keys={"top": "images/front"}
    ) as port:
        expected = served_policy(policy, env).act(obs)
        assert torch.equal(connect(protocol, port, env).act(obs), expected)


@pytest.mark.parametrize("protocol", ["gr00t", "openpi"])
def test_make_service__run_is_served_with_its_base(protocol: str, run: Path, env: VecEnv) -> None:
    cfg = serve._settings(str(run / "final_model"), None)
    flags = serve.ServeFlags(protocol=protocol, max_sessions=8)  # type: ignore[arg-type]
    server = open_server(serve._make_service(flags, cfg), "127.0.0.1", 0, None, 60.0)
    local = make_base_policy("model", ModelCfg(checkpoint=str(run / "final_model")), env)
    base = make_base_policy("jacobian", None, env)
    obs, _ = env.reset(seed=5)
    with BackgroundServer(server):
        remote = connect(protocol, port_of(server.address), env)
        assert {"state", "joint_target", "sheet_pose", "goal"} <= remote.policy.inputs.keys()
        for _ in range(20):
            action, expected, of_base = remote.act(obs), local.act(obs), base.act(obs)
            assert not torch.equal(expected, of_base)
            assert torch.equal(action, expected)
            obs, *_ = env.step(expected)


# --- sessions -----------------------------------------------------------------------------------------------


def counts(action: torch.Tensor) -> list[float]:
    """The counts of `Counting` in each env."""
    return [round(x, 3) for x in (100 * action[:, 0]).tolist()]


@protocols
def test_sessions__clients_have_separate_envs(protocol: str, env: VecEnv) -> None:
    obs, _ = env.reset(seed=5)
    with serving(Counting(), protocol, sessions=3 * NUM_ENVS) as port:
        first, second = connect(protocol, port, env), connect(protocol, port, env)
        assert counts(first.act(obs)) == [1, 1, 1, 1]
        assert counts(first.act(obs, mask_of(0, 2))) == [2, 0, 2, 0]
        assert counts(second.act(obs)) == [1, 1, 1, 1]
        first.reset(mask_of(2, 3))
        assert counts(first.act(obs)) == [3, 2, 1, 1]
        assert counts(second.act(obs)) == [2, 2, 2, 2]


def retried(attempt: Callable[[], T]) -> T:
    """Retry until envs are free: the server frees those of a closed client after a moment."""
    end = time.monotonic() + 10.0
    while True:
        try:
            return attempt()
        except BasePolicyError as error:
            if "requested" not in str(error) or time.monotonic() > end:
                raise
        gc.collect()
        time.sleep(0.05)


def client_and_action(
    protocol: str, port: int, env: VecEnv, obs: Obs
) -> tuple[BasePolicyExecutor, torch.Tensor]:
    client = connect(protocol, port, env, reconnect=5.0)
    return client, client.act(obs)


@protocols
def test_sessions__envs_of_a_closed_client_are_reused(protocol: str, env: VecEnv) -> None:
    obs, _ = env.reset(seed=5)
    # With a time-out, because the message of a closing client may be lost on a busy machine.
    with serving(Counting(), protocol, sessions=NUM_ENVS + 1, idle=5.0) as port:
        for _ in range(3):
            client, first = retried(lambda: client_and_action(protocol, port, env, obs))
            assert [counts(first), counts(client.act(obs))] == [[1] * 4, [2] * 4]
            late = connect(protocol, port, env)
            with pytest.raises(
                BasePolicyError,
                match=r"requested, [01] of 5 free: close other clients, or raise --max-sessions",
            ):
                late.act(obs)
            assert counts(client.act(obs)) == [3] * 4  # not affected
            del client, late


@protocols
def test_sessions__idle_envs_are_freed(protocol: str, env: VecEnv, caplog: pytest.LogCaptureFixture) -> None:
    obs, _ = env.reset(seed=5)
    with serving(Counting(), protocol, sessions=NUM_ENVS, idle=0.4) as port:
        client, first = client_and_action(protocol, port, env, obs)
        other, second = retried(lambda: client_and_action(protocol, port, env, obs))
        assert [counts(first), counts(second)] == [[1] * 4, [1] * 4]
        del other
        assert counts(retried(lambda: client.act(obs))) == [1] * 4  # in new envs
    assert "idle for" in caplog.text


# --- mismatches are named when connecting -------------------------------------------------------------------


@protocols
def test_handshake__missing_observation_raises(protocol: str) -> None:
    images = {"obs_mode": "rgb", "obs_cameras": ("top",), "image_size": (12, 16)}

    class Looking(Waving):
        inputs = {"top": (12, 16, 3), "goal": (3,)}  # noqa: RUF012

    with serving(Looking(), protocol, **images) as port:
        env = make_vec_env("so101-paper", 1, num_threads=1)
        with pytest.raises(
            ConfigError,
            match=(
                r"serves 'it' of task 'so101-paper', which needs top \[12, 16, 3\] uint8; the env has .*goal"
                r" \[3\] float32"
            ),
        ):
            connect(protocol, port, env)
        other_size = make_vec_env(
            "so101-paper", 1, num_threads=1, obs_mode="rgb", obs_cameras=("top",), image_size=(24, 16)
        )
        with pytest.raises(
            ConfigError, match=r"needs top \[12, 16, 3\] uint8; the env has .*top \[24, 16, 3\] uint8"
        ):
            connect(protocol, port, other_size)


def test_handshake__other_action_scaling_raises() -> None:
    env = make_vec_env("so101-paper", 1, num_threads=1, control_mode="joint_target")
    with (
        serving(Waving(), "openpi") as port,
        pytest.raises(ConfigError, match=r"an action of 1 means \[0\.0199.* use the same task settings"),
    ):
        connect("openpi", port, env)


def test_handshake__other_protocol_raises(env: VecEnv) -> None:
    with (
        serving(Waving(), "gr00t-n15") as port,
        pytest.raises(ConfigError, match="speaks the protocol 'gr00t-n15', not 'gr00t'"),
    ):
        connect("gr00t", port, env)


@pytest.mark.parametrize(
    "setting",
    [{"units": "rad"}, {"action_mode": "relative"}, {"invert_gripper": True}, {"arm_key": "arm"}],
    ids=str,
)
def test_handshake__settings_it_contains_are_refused(setting: dict[str, Any], env: VecEnv) -> None:
    with (
        serving(Waving(), "gr00t") as port,
        pytest.raises(ConfigError, match=f"{next(iter(setting))} is defined by the GR00T server"),
    ):
        connect("gr00t", port, env, **setting)


@protocols
def test_token__wrong_or_missing_one_raises(
    protocol: str, env: VecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    obs, _ = env.reset(seed=5)
    with serving(Waving(), protocol, token="sesame") as port:
        for wrong in (None, "open", "sesame2"):
            with pytest.raises(ConfigError, match="token"):
                connect(protocol, port, env, api_token=wrong)
        connect(protocol, port, env, api_token="sesame").act(obs)
        monkeypatch.setenv("RESIDUAL_RL_TOKEN", "sesame")
        connect(protocol, port, env).act(obs)


def test_keys__unneeded_observation_raises() -> None:
    with pytest.raises(
        UnknownNameError, match=r"observation that the policy needs 'gaol'; did you mean 'goal'"
    ):
        open_one(Waving(), "openpi", keys={"gaol": "x"})


# --- the command --------------------------------------------------------------------------------------------


def test_serve__other_machines_need_a_token(fails: Any) -> None:
    message = fails("serve", "jacobian", "--task", "so101-paper", "--host", "0.0.0.0", "--port", "0")
    assert (
        message == "0.0.0.0 can be reached from other machines: set a token with --token or RESIDUAL_RL_TOKEN"
    )
    assert [
        host
        for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8", "0.0.0.0", "::", "10.0.0.1", "*", "robot")
        if is_loopback(host)
    ] == [
        "127.0.0.1",
        "::1",
        "localhost",
        "127.8.8.8",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jacobian"], "a base policy needs a task: residual-rl serve jacobian --task TASK; tasks: "),
        (
            ["jacobin", "--task", "so101-paper"],
            (
                "jacobin is neither a run folder nor a base policy: unknown base policy 'jacobin'; did you"
                " mean 'jacobian'"
            ),
        ),
        (["jacobian", "--task", "so101"], "unknown task 'so101'"),
        (["jacobian", "--task", "so101-paper", "--port", "70000"], "port must be from 0 to 65535"),
        (
            ["jacobian", "--task", "so101-paper", "--action-units", "normalized"],
            "action_units normalized needs --protocol openpi",
        ),
        (
            ["jacobian", "--task", "so101-paper", "--keys", "top=front"],
            "unknown observation that the policy needs 'top'",
        ),
        (
            ["jacobian", "--task", "so101-paper", "--host", "192.0.2.1", "--token", "x", "--port", "0"],
            "cannot listen on 192.0.2.1, port 0",
        ),
        ([], "serve needs"),
    ],
    ids=lambda value: None,
)
def test_serve__wrong_arguments_fail_in_one_line(arguments: list[str], message: str, fails: Any) -> None:
    assert fails("serve", *arguments).startswith(message)


@pytest.mark.parametrize("protocol", ["gr00t", "openpi"])
def test_serve__port_in_use_is_named(protocol: str, fails: Any) -> None:
    with serving("zero", protocol, control_mode="joint_target") as port:
        message = fails("serve", "zero", "--task", "so101-paper", "--protocol", protocol, "--port", str(port))
        assert f"port {port}" in message
        assert "in use" in message
        assert "choose another" in message


def test_serve__other_task_than_that_of_the_run_fails(run: Path, fails: Any) -> None:
    message = fails("serve", run / "final_model", "--task", "so101-paper-precise")
    assert "was trained on task 'so101-paper', not 'so101-paper-precise': leave out --task" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "number", "code"), [("gr00t", signal.SIGINT, 130), ("openpi", signal.SIGTERM, 143)]
)
def test_serve__prints_the_inputs_and_ends_on_a_signal(
    protocol: str, number: int, code: int, env: VecEnv
) -> None:
    command = [
        str(Path(sys.executable).parent / "residual-rl"),
        "serve",
        "jacobian",
        "--task",
        "so101-paper",
        "--protocol",
        protocol,
    ]
    command += ["--port", "0", "--base.drag-gain", "0.4", "--max-sessions", "8"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert process.stdout is not None
    message = ""
    while "should be executed" not in message:
        line = process.stdout.readline()
        assert line, process.communicate()
        message += line
    address = re.search(r"at (\S+), protocol", message)
    assert address is not None
    for word in (
        "Serving jacobian of task so101-paper",
        "joint_target",
        "sheet_pose",
        "goal",
        "[7]",
        "float32",
    ):
        assert word in message
    port = port_of(address[1])
    obs, _ = env.reset(seed=5)
    local = make_base_policy("jacobian", None, env)
    assert torch.equal(connect(protocol, port, env).act(obs), local.act(obs))
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error.strip()) == (code, "Stopped.")


def test_openpi_server__health_page_needs_no_token() -> None:
    with serving(Waving(), "openpi", token="sesame") as port:
        for path, status in (("/healthz", 200), ("/", 401)):
            page = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            page.request("GET", path)
            assert page.getresponse().status == status
            page.close()
