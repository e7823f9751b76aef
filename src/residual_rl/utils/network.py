"""Addresses and the token of policy servers."""

from __future__ import annotations

import ipaddress
import os

TOKEN_VARIABLE = "RESIDUAL_RL_TOKEN"


def secret(token: str | None) -> str | None:
    """The token to use: `token`, or that of `RESIDUAL_RL_TOKEN`, which is not stored with the settings."""
    return token or os.environ.get(TOKEN_VARIABLE) or None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
