"""How MetaWorld's envs are created, seeded and solved. The file is read by the workers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MetaWorldAdapter:
    """Makes MetaWorld's envs reproducible and their goals observable.

    The envs ignore `reset(seed)`, draw from NumPy's global generator, hide the goal unless told otherwise,
    never terminate, and raise an exception after 500 steps.
    """

    def make(self, env_id: str, kwargs: dict[str, Any]) -> Any:
        """The env, whose first 500 steps and later ones are alike."""
        import metaworld
        from gymnasium.error import NameNotFound
        from metaworld.policies import ENV_POLICY_MAP

        kwargs = {name: value for name, value in kwargs.items() if name != "max_episode_steps"}
        known = metaworld.env_dict.ENV_CLS_MAP
        if env_id not in known:
            raise NameNotFound(f"MetaWorld has no env {env_id!r}; it has {', '.join(sorted(known))}")
        kwargs = {"camera_name": "corner2", **kwargs}
        env = known[env_id](**kwargs)
        if kwargs["camera_name"].startswith("corner"):  # these cameras are mounted upside down
            render = env.render
            env.render = lambda: np.rot90(render(), 2)
        # as MetaWorld's own goal-observable envs, but with a new goal in each episode
        env._partially_observable = False
        env._set_task_called = True
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        del env.sawyer_observation_space
        env.observation_space = env.sawyer_observation_space
        env.max_path_length = np.iinfo(np.int64).max
        self._policy = ENV_POLICY_MAP[env_id]()
        return env

    def seed(self, env: Any, seed: int) -> None:
        """Seed the generator that the next reset draws from."""
        env.seed(seed)

    def expert(self, env: Any, obs: NDArray[Any]) -> NDArray[Any]:  # noqa: ARG002
        """The action of MetaWorld's scripted policy for the task."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high"
            return np.asarray(self._policy.get_action(obs))
