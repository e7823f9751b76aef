"""The sessions of a GR00T server: which envs of the service belong to which client, and for how long."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from residual_rl.remote.service import PolicyService
from residual_rl.utils.logs import LimitedLog


@dataclass
class Session:
    """The envs of one client."""

    env_ids: dict[int, int] = field(default_factory=dict)
    """Env index of the service by the client's own env index."""
    last_used: float = 0.0
    connection: int | None = None
    """File descriptor of the connection of its last request."""
    disconnected: bool = False
    """Whether that connection is closed. A client may come back: its envs are kept until others need them."""


class Sessions:
    """Assigns the envs of a service to sessions.

    Args:
        service: has the envs.
        idle: time without a request after which the envs of a session are freed [s].
        log: for warnings.
    """

    def __init__(self, service: PolicyService, idle: float, log: LimitedLog):
        self._service, self._idle, self._log = service, idle, log
        self._sessions: dict[str | bytes, Session] = {}

    def use(self, name: str | bytes, connection: int | None) -> Session:
        """The session of a request. A new one is stored only once it has an env."""
        session = self._sessions.get(name, Session())
        session.last_used, session.connection, session.disconnected = time.monotonic(), connection, False
        return session

    def env_ids(
        self, name: str | bytes, connection: int | None, rows: list[int], kept: Collection[int]
    ) -> list[int]:
        """The env indices of the service for a client's `rows`; those of new rows are reset.

        Where too few envs are free, sessions of clients that have disconnected are closed, the least recently
        used first, except those with an env in `kept`. Raises `RequestError` if that does not suffice.
        """
        session = self.use(name, connection)
        new = [row for row in rows if row not in session.env_ids]
        self._make_room(len(new), session, set(kept))
        session.env_ids.update(zip(new, self._service.take(len(new)), strict=True))
        self._sessions[name] = session
        return [session.env_ids[row] for row in rows]

    def close(self, name: str | bytes) -> None:
        """Free the envs of a session."""
        session = self._sessions.pop(name, None)
        if session is not None:
            self._service.give_back(list(session.env_ids.values()))

    def disconnect(self, connections: Collection[int]) -> None:
        """Note that these connections are closed."""
        if not connections:
            return
        for session in self._sessions.values():
            session.disconnected |= session.connection in connections

    def close_idle(self) -> None:
        """Close the sessions that were idle for too long."""
        now = time.monotonic()
        for name, session in list(self._sessions.items()):
            if now - session.last_used > self._idle:
                self._log.warning(
                    "a session was idle for %.0f s: its %d env(s) are free",
                    now - session.last_used,
                    len(session.env_ids),
                )
                self.close(name)

    def num_used_since(self, start: float) -> int:
        """Number of sessions with a request after `start`, in the time of `time.monotonic`."""
        return sum(session.last_used > start for session in self._sessions.values())

    def _make_room(self, number: int, own: Session, kept: set[int]) -> None:
        leavable = [
            (session.last_used, name)
            for name, session in self._sessions.items()
            if session.disconnected and session is not own and kept.isdisjoint(session.env_ids.values())
        ]
        for _, name in sorted(leavable, key=lambda entry: entry[0]):
            if self._service.num_free >= number:
                return
            self.close(name)
