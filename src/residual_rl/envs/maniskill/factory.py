"""Creates ManiSkill envs, with clear errors for unknown names and missing packages or files."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from residual_rl.envs.maniskill import headless
from residual_rl.envs.maniskill.spec import WITHOUT_VULKAN, ManiSkillEnvCfg
from residual_rl.errors import ConfigError, MissingDependencyError, ResidualRLError, UnknownNameError
from residual_rl.utils.text import one_line

DOWNLOAD = "python -m mani_skill.utils.download_asset"


class _NotDownloadedError(Exception):
    """Raised in place of ManiSkill's terminal prompt that offers to download missing files."""


def require_maniskill() -> None:
    """Raise `MissingDependencyError` if ManiSkill is not installed."""
    if importlib.util.find_spec("mani_skill") is None:
        raise MissingDependencyError("ManiSkill", "install it with `pip install residual-rl[maniskill]`")


def make_env(cfg: ManiSkillEnvCfg, num_envs: int, render_mode: str | None = None, **more: Any) -> Any:
    """Create the unwrapped ManiSkill env of `cfg`, without a time limit.

    Observations are nested dicts with the privileged state and, if `cfg` has images, the images. Nothing is
    downloaded.

    Args:
        cfg: the env's settings.
        num_envs: B.
        render_mode: `rgb_array` for an env that can be rendered.
        more: further arguments of `gymnasium.make`.

    Raises:
        ConfigError: the env cannot be created with these settings on this machine.
        UnknownNameError: the task, the robot or the control mode does not exist.
    """
    require_maniskill()
    # rendering needs Vulkan
    draws = cfg.has_images or render_mode is not None or cfg.render_backend != "none"
    if draws and not headless.vulkan_works():
        setting = f"obs_mode {cfg.obs_mode} with render_backend {cfg.render_backend}"
        raise ConfigError(f"{'rendering an image' if render_mode else setting} {WITHOUT_VULKAN}")
    _import(cfg.modules)
    headless.build_push_t_unrendered()
    if not headless.vulkan_works():
        # Scenes create render materials even if nothing is rendered.
        headless.replace_materials()
    _check_names(cfg)
    # leave out unset arguments whose default is not None
    arguments = {
        "num_envs": num_envs,
        "obs_mode": "rgb+state_dict" if cfg.has_images else "state_dict",
        "reward_mode": cfg.reward_mode,
        "control_mode": cfg.control_mode,
        "sim_backend": cfg.sim_backend,
        "render_backend": cfg.render_backend,
        "render_mode": render_mode,
        "reconfiguration_freq": cfg.reconfiguration_freq,
        **more,
    }
    if cfg.robot_uids is not None:
        arguments["robot_uids"] = cfg.robot_uids
    if cfg.image_size is not None:
        arguments["sensor_configs"] = {"height": cfg.image_size[0], "width": cfg.image_size[1]}
    return _make(cfg, arguments)


def _import(modules: tuple[str, ...]) -> None:
    import mani_skill.envs  # noqa: F401 (registers its tasks and robots)

    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"cannot import {module!r} of --task-modules, which registers ManiSkill tasks: {error}"
            ) from error


def _check_names(cfg: ManiSkillEnvCfg) -> None:
    from mani_skill import format_path
    from mani_skill.agents.registration import REGISTERED_AGENTS
    from mani_skill.utils.registration import REGISTERED_ENVS

    if cfg.env_id not in REGISTERED_ENVS:
        raise UnknownNameError("ManiSkill env", cfg.env_id, REGISTERED_ENVS)
    # the task's class lists its reward modes; control modes are known only once the robot is built
    task = REGISTERED_ENVS[cfg.env_id].cls
    if cfg.reward_mode is not None and cfg.reward_mode not in task.SUPPORTED_REWARD_MODES:
        modes = ", ".join(task.SUPPORTED_REWARD_MODES)
        raise ConfigError(f"{cfg.env_id} has no reward mode {cfg.reward_mode!r}; it has {modes}")
    if cfg.robot_uids is None:
        return
    if cfg.robot_uids not in REGISTERED_AGENTS:
        raise UnknownNameError("ManiSkill robot", cfg.robot_uids, REGISTERED_AGENTS)
    agent = REGISTERED_AGENTS[cfg.robot_uids].agent_cls
    # the robot's model may be a file that must be downloaded first
    path = agent.urdf_path or agent.mjcf_path
    if path is not None and not Path(format_path(str(path))).exists():
        raise ConfigError(
            f"the model of robot {cfg.robot_uids!r} is not on this machine; download it with: {DOWNLOAD}"
            f" {cfg.robot_uids}"
        )


def _make(cfg: ManiSkillEnvCfg, arguments: dict[str, Any]) -> Any:
    """Call `gymnasium.make` and convert any exception to a one-line `ConfigError`."""
    import gymnasium
    from mani_skill import ASSET_DIR
    from mani_skill.utils import download_asset

    def refuse(message: str) -> bool:
        raise _NotDownloadedError(message)

    # replace the download prompt by an exception while the env is created
    prompt = download_asset.prompt_yes_no
    download_asset.prompt_yes_no = refuse
    name = cfg.env_id if cfg.robot_uids is None else f"{cfg.env_id} with robot {cfg.robot_uids}"
    try:
        return gymnasium.make(cfg.env_id, disable_env_checker=True, **arguments).unwrapped
    except ResidualRLError:
        raise
    except _NotDownloadedError as error:
        # "Environment ID requires …" or "Robot ID has …": the files of some tasks are those of their robot
        what = str(error).split()[1]
        raise ConfigError(
            f"{name} needs files that are not on this machine; download them with: {DOWNLOAD} {what}"
        ) from error
    except AssertionError as error:
        if "not in supported modes" not in str(error):
            raise ConfigError(f"ManiSkill cannot create {name}: {_describe(error)}") from error
        modes = _control_modes(cfg.env_id, arguments)
        raise UnknownNameError(f"control mode of {name}:", str(cfg.control_mode), modes) from None
    except (Exception, SystemExit) as error:  # unsupported robots and missing files raise many types
        if str(ASSET_DIR) in str(error):
            raise ConfigError(
                f"{name} needs files that are not on this machine ({error}); list the downloads with:"
                f" {DOWNLOAD} --help"
            ) from error
        wants_renderer = isinstance(error, AttributeError) and cfg.render_backend == "none"
        hint = "; it may need a renderer: try --render-backend cpu or gpu" if wants_renderer else ""
        raise ConfigError(f"ManiSkill cannot create {name}: {_describe(error)}{hint}") from error
    finally:
        download_asset.prompt_yes_no = prompt


def _control_modes(env_id: str, arguments: dict[str, Any]) -> list[str]:
    import gymnasium

    # an env in the robot's default control mode lists the others
    env = gymnasium.make(env_id, disable_env_checker=True, **{**arguments, "control_mode": None})
    agent = env.unwrapped.agent  # type: ignore[attr-defined]
    modes = getattr(agent, "agents", [agent])[0].supported_control_modes
    env.close()
    return list(modes)


def _describe(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")
