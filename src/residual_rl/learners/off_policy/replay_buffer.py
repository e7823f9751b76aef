"""The replay buffer of the off-policy learners: a ring of transitions on the learner's device."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.learners.common.returns import n_step_returns
from residual_rl.learners.off_policy.batch import Sample
from residual_rl.types import Segment, State
from residual_rl.utils.memory import free_memory

SEGMENT_ROWS = 1024
"""Maximum number of rows per segment."""


class ReplayBuffer:
    """The most recent steps of all envs. A row is one step of B envs; an env's next step is in the next row.

    Rows are grouped into segments of equal length, at most `SEGMENT_ROWS`. A full segment does not change
    until the ring overwrites it. In a state, full segments are `types.Segment` objects, which are written to
    disk once.

    Args:
        capacity: transitions to keep. Rounded up to whole segments, by less than one row per segment.
        num_envs: B.
        obs_dim: size of the observation vector.
        action_dim: A.
        device: device of the transitions.
        name: prefix of the names of its segments, `<name>_000003`.

    Raises:
        ConfigError: the transitions do not fit in memory.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_dim: int,
        action_dim: int,
        device: torch.device,
        name: str = "segment",
    ):
        self.num_envs = num_envs
        self.device = device
        self.name = name
        # Size
        rows = capacity // num_envs
        if rows < 1:
            raise ConfigError(f"buffer_size must be at least num_envs ({num_envs}), not {capacity}")
        segments = -(-rows // SEGMENT_ROWS)
        self.segment_rows = -(-rows // segments)
        self.num_rows = segments * self.segment_rows
        self.num_written = 0
        """Rows written so far, including overwritten ones."""
        self.closed = False
        """Whether the buffer is complete, so that its last segment does not change either."""
        # Columns [rows, B, …], and views [rows · B, …] for sampling
        acted = ("base_action", "next_base_action", "residual_action", "action", "scale", "next_scale")
        vectors = {"obs": obs_dim, "next_obs": obs_dim} | dict.fromkeys(acted, action_dim)
        _check_memory(self.num_rows * num_envs * (4 * sum(vectors.values()) + 6), capacity, device)
        self._columns = {
            name: torch.zeros(self.num_rows, num_envs, size, device=device) for name, size in vectors.items()
        }
        self._columns["reward"] = torch.zeros(self.num_rows, num_envs, device=device)
        for name in ("terminated", "truncated"):
            self._columns[name] = torch.zeros(self.num_rows, num_envs, dtype=torch.bool, device=device)
        self._flat = {name: column.flatten(0, 1) for name, column in self._columns.items()}
        self._shared: WeakValueDictionary[int, Segment] = WeakValueDictionary()
        """Segments in states that are still referenced, by number. They must keep their rows when these are
        overwritten."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one step of all envs."""
        return sum(column[0].nbytes for column in self._columns.values())

    @property
    def filled_rows(self) -> int:
        """Number of rows that can be sampled."""
        return min(self.num_written, self.num_rows)

    def __len__(self) -> int:
        """Number of transitions that can be sampled."""
        return self.filled_rows * self.num_envs

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each column for a single step of a single env."""
        return {name: tuple(column.shape[2:]) for name, column in self._columns.items()}

    def add(self, row: Mapping[str, Tensor]) -> None:
        """Write one step of all envs: values [B, …] by column name."""
        at = self.num_written % self.num_rows
        overwritten = self._shared.pop((self.num_written - self.num_rows) // self.segment_rows, None)
        if overwritten is not None:
            overwritten.keep()
        for name, column in self._columns.items():
            column[at].copy_(row[name])
        self.num_written += 1

    @classmethod
    def of_episodes(
        cls, episodes: Sequence[Mapping[str, Tensor]], like: ReplayBuffer, name: str
    ) -> ReplayBuffer:
        """Construct a closed buffer with B = 1 from complete episodes.

        Args:
            episodes: values [T, …] of each episode by column name.
            like: a buffer with the same columns and device.
            name: see `ReplayBuffer`.

        Raises:
            ConfigError: the shapes of the columns differ.
        """
        shapes = like.row_shapes()
        for episode in episodes:
            for column, value in episode.items():
                if tuple(value.shape[1:]) != shapes[column]:
                    given, needed = list(value.shape[1:]), list(shapes[column])
                    raise ConfigError(
                        f"the demonstrations' {column} has shape {given}, but this task "
                        f"and learner need {needed}"
                    )
        rows = sum(len(episode["reward"]) for episode in episodes)
        if rows > SEGMENT_ROWS:
            rows = -(-rows // SEGMENT_ROWS) * SEGMENT_ROWS
        buffer = like.empty_like(rows, name)
        for episode in episodes:
            place = slice(buffer.num_written, buffer.num_written + len(episode["reward"]))
            for column, target in buffer._columns.items():
                target[place, 0].copy_(episode[column])
            buffer.num_written = place.stop
        buffer.closed = True
        return buffer

    def empty_like(self, rows: int, name: str) -> ReplayBuffer:
        """An empty buffer with `rows` rows, B = 1 and the same columns."""
        shapes = self.row_shapes()
        return ReplayBuffer(rows, 1, shapes["obs"][0], shapes["action"][0], self.device, name)

    def extended(self, rows: int) -> ReplayBuffer:
        """An open copy of a buffer with B = 1 that has room for `rows` more rows."""
        copy = self.empty_like(self.num_written + rows, self.name)
        for name, column in copy._columns.items():
            column[: self.num_written].copy_(self._columns[name][: self.num_written])
        copy.num_written = self.num_written
        return copy

    def end_windows(self) -> None:
        """Truncate at the newest row, so that no n-step window goes on with the next one."""
        at = (self.num_written - 1) % self.num_rows
        self._columns["truncated"][at] |= ~self._columns["terminated"][at]

    def newest(self, name: str, rows: int) -> Tensor:
        """The last `rows` rows of a column, oldest first: [rows, B, …]."""
        at = torch.arange(self.num_written - rows, self.num_written, device=self.device) % self.num_rows
        return self._columns[name][at]

    def sample(
        self, count: int, n_step: int, gamma: float, bootstrap_at_done: str, generator: torch.Generator
    ) -> Sample:
        """Sample `count` transitions uniformly with replacement.

        An n-step window ends early at the end of the episode and at the newest row, from whose next
        observation it bootstraps.
        """
        start = torch.randint(len(self), (count,), generator=generator, device=self.device)
        return self.gather(start, n_step, gamma, bootstrap_at_done)

    def gather(self, start: Tensor, n_step: int, gamma: float, bootstrap_at_done: str) -> Sample:
        """The transitions at the indices `start` [S] of the ring (`row · B + env_id`)."""
        row, env_id = start // self.num_envs, start % self.num_envs
        available = (self.num_written - 1 - row) % self.num_rows + 1
        ahead = torch.arange(n_step, device=self.device)[:, None]
        window = (row + ahead) % self.num_rows * self.num_envs + env_id  # [n, S]
        flat = self._flat
        reward, terminated, truncated = (flat[name][window] for name in ("reward", "terminated", "truncated"))
        n_step_return, discount, last = n_step_returns(
            reward, terminated, truncated, available, gamma, bootstrap_at_done
        )
        end = window.gather(0, last[None])[0]
        now = {
            name: flat[name][start] for name in ("obs", "base_action", "residual_action", "action", "scale")
        }
        then = {name: flat[name][end] for name in ("next_obs", "next_base_action", "next_scale")}
        return Sample(**now, n_step_return=n_step_return, discount=discount, **then)

    # --- state ----------------------------------------------------------------------------------------

    def segments(self) -> range:
        """Numbers of the segments with rows in the ring, oldest first. All but the last are full."""
        oldest = self.num_written - self.filled_rows
        return range(oldest // self.segment_rows, -(-self.num_written // self.segment_rows))

    def segment(self, number: int) -> State:
        """Copies of a segment's rows that are still in the ring, and the number of the first one."""
        begin = max(number * self.segment_rows, self.num_written - self.filled_rows)
        end = min((number + 1) * self.segment_rows, self.num_written)
        first = begin % self.num_rows
        place = slice(first, first + end - begin)  # a segment never wraps around the end of the ring
        return {
            "first_row": begin,
            "columns": {name: column[place].clone() for name, column in self._columns.items()},
        }

    def state_dict(self) -> State:
        """The transitions by segment. Full segments are copied only when they are written to disk or
        overwritten."""
        segments: State = {}
        for i in self.segments():
            full = self.closed or (i + 1) * self.segment_rows <= self.num_written
            segments[f"{i:06d}"] = self._shared_segment(i) if full else self.segment(i)
        return {"num_rows": self.num_rows, "num_written": self.num_written, "segments": segments}

    def _shared_segment(self, number: int) -> Segment:
        segment = self._shared.get(number)
        if segment is None:
            segment = Segment(f"{self.name}_{number:06d}", functools.partial(self.segment, number))
            self._shared[number] = segment
        return segment

    def load_state_dict(self, state: State) -> None:
        """Restore a state returned by `state_dict`. Its segments may contain rows that had been overwritten.

        Raises `CheckpointError` if the sizes or columns differ.
        """
        if state["num_rows"] != self.num_rows:
            raise CheckpointError(
                f"the replay buffer has {state['num_rows']} rows, but buffer_size and "
                f"num_envs require {self.num_rows}"
            )
        for held in list(self._shared.values()):
            held.keep()
        self._shared.clear()
        for key in sorted(state["segments"]):
            segment = state["segments"][key]
            if isinstance(segment, Segment):
                segment = segment.contents()
            columns, begin = segment["columns"], segment["first_row"]
            if columns.keys() != self._columns.keys():
                different = sorted(columns.keys() ^ self._columns.keys())
                raise CheckpointError(f"the replay buffer's columns differ: {different}")
            for name, column in self._columns.items():
                rows = columns[name]
                place = slice(begin % self.num_rows, begin % self.num_rows + len(rows))
                if rows.shape[1:] != column.shape[1:]:
                    shapes = f"{list(rows.shape[1:])}, but the settings require {list(column.shape[1:])}"
                    raise CheckpointError(f"the replay buffer's {name} has rows of shape {shapes}")
                column[place].copy_(rows)
        self.num_written = state["num_written"]


def _check_memory(needed: int, capacity: int, device: torch.device) -> None:
    """Raise `ConfigError` if less than `needed` bytes are available on `device`."""
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if available is not None and needed > available:
        gib = 2**30
        raise ConfigError(
            f"buffer_size {capacity:,} needs {needed / gib:.1f} GiB, but {device} has "
            f"{available / gib:.1f} GiB left: "
            f"choose {int(0.8 * capacity * available / needed):,} or less"
        )
