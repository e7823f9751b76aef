"""The vec_env contract on all registered tasks except ManiSkill."""

from __future__ import annotations

import env_contract

globals().update({name: value for name, value in vars(env_contract).items() if not name.startswith("__")})
