"""Every base policy passes the contract tests, in the envs of so101-paper."""

from __future__ import annotations

import base_policy_contract

globals().update(
    {name: value for name, value in vars(base_policy_contract).items() if not name.startswith("__")}
)
