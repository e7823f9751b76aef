"""What off-policy learners learn from: a ring of transitions, on the learner's device."""

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
"""Time rows of a segment."""


class ReplayBuffer:
    """The last steps of all worlds: each row is one step of B worlds, so that a world's next step lies in the next row.

    Rows are grouped into segments of one length, at most `SEGMENT_ROWS`: segment i holds the rows that were written i-th of all, and once
    it is full it never changes; only whole segments' room is reused. In a state the full ones are `types.Segment`, which are written to
    disk once.

    Args:
        capacity: transitions to keep; rounded up to whole segments, by less than a row for each.
        num_envs: B.
        obs_dim: size of the observation vector.
        action_dim: A.
        device: where the transitions are, and are sampled.
        name: of its segments, `<name>_000003`.

    Raises `ConfigError` where they do not fit in memory.
    """

    def __init__(self, capacity: int, num_envs: int, obs_dim: int, action_dim: int, device: torch.device, name: str = "segment"):
        self.num_envs, self.device, self.name = num_envs, device, name
        rows = capacity // num_envs
        if rows < 1:
            raise ConfigError(f"buffer_size must be at least num_envs ({num_envs}), not {capacity}")
        segments = -(-rows // SEGMENT_ROWS)
        self.segment_rows = -(-rows // segments)
        self.num_rows = segments * self.segment_rows
        self.num_written = 0
        """Rows written so far, those included that gave way."""
        self.closed = False
        """No more rows come: the last segment will not change either."""
        acted = ("base_action", "next_base_action", "residual_action", "action", "scale", "next_scale")
        vectors = {"obs": obs_dim, "next_obs": obs_dim} | dict.fromkeys(acted, action_dim)
        _check_memory(self.num_rows * num_envs * (4 * sum(vectors.values()) + 6), capacity, device)
        self._columns = {name: torch.zeros(self.num_rows, num_envs, size, device=device) for name, size in vectors.items()}
        self._columns["reward"] = torch.zeros(self.num_rows, num_envs, device=device)
        for name in ("terminated", "truncated"):
            self._columns[name] = torch.zeros(self.num_rows, num_envs, dtype=torch.bool, device=device)
        self._flat = {name: column.flatten(0, 1) for name, column in self._columns.items()}
        self._told: WeakValueDictionary[int, Segment] = WeakValueDictionary()
        """Segments of states that somebody still holds, by number: they have to outlast their rows here."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one step of all worlds."""
        return sum(column[0].nbytes for column in self._columns.values())

    @property
    def filled_rows(self) -> int:
        """Rows that can be sampled."""
        return min(self.num_written, self.num_rows)

    def __len__(self) -> int:
        """Transitions that can be sampled."""
        return self.filled_rows * self.num_envs

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each column in one world's step."""
        return {name: tuple(column.shape[2:]) for name, column in self._columns.items()}

    def add(self, row: Mapping[str, Tensor]) -> None:
        """Write one step of all worlds: each column's name with its values [B, …]."""
        at = self.num_written % self.num_rows
        overwritten = self._told.pop((self.num_written - self.num_rows) // self.segment_rows, None)
        if overwritten is not None:
            overwritten.keep()
        for name, column in self._columns.items():
            column[at].copy_(row[name])
        self.num_written += 1

    @classmethod
    def of_episodes(cls, episodes: Sequence[Mapping[str, Tensor]], like: ReplayBuffer, name: str) -> ReplayBuffer:
        """A closed buffer of one world that holds whole episodes, one after the other, each as columns [T, …]; with the columns and on the
        device of `like`. Raises `ConfigError` where the columns differ."""
        shapes = like.row_shapes()
        for episode in episodes:
            for column, value in episode.items():
                if tuple(value.shape[1:]) != shapes[column]:
                    want = list(shapes[column])
                    raise ConfigError(f"the demonstrations' {column} has shape {list(value.shape[1:])}; this task and learner need {want}")
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
        """A buffer of `rows` rows of one world, with the same columns."""
        shapes = self.row_shapes()
        return ReplayBuffer(rows, 1, shapes["obs"][0], shapes["action"][0], self.device, name)

    def newest(self, name: str, rows: int) -> Tensor:
        """The last `rows` rows of a column, oldest first: [rows, B, …]."""
        at = torch.arange(self.num_written - rows, self.num_written, device=self.device) % self.num_rows
        return self._columns[name][at]

    def sample(self, count: int, n_step: int, gamma: float, bootstrap_at_done: str, generator: torch.Generator) -> Sample:
        """`count` transitions, drawn uniformly with replacement.

        A window of n steps ends early where the episode does, and at the newest row: what has not been collected yet is bootstrapped.
        """
        start = torch.randint(len(self), (count,), generator=generator, device=self.device)
        return self.gather(start, n_step, gamma, bootstrap_at_done)

    def gather(self, start: Tensor, n_step: int, gamma: float, bootstrap_at_done: str) -> Sample:
        """The transitions `start` [S], each `row · B + world` in the ring."""
        row, world = start // self.num_envs, start % self.num_envs
        available = (self.num_written - 1 - row) % self.num_rows + 1
        ahead = torch.arange(n_step, device=self.device)[:, None]
        window = (row + ahead) % self.num_rows * self.num_envs + world  # [n, S]
        flat = self._flat
        reward, terminated, truncated = (flat[name][window] for name in ("reward", "terminated", "truncated"))
        total, discount, last = n_step_returns(reward, terminated, truncated, available, gamma, bootstrap_at_done)
        end = window.gather(0, last[None])[0]
        now = {name: flat[name][start] for name in ("obs", "base_action", "residual_action", "action", "scale")}
        then = {name: flat[name][end] for name in ("next_obs", "next_base_action", "next_scale")}
        return Sample(**now, total=total, discount=discount, **then)

    # State

    def segments(self) -> range:
        """Numbers of the segments that have rows in the ring, oldest first; all but the last are complete."""
        oldest = self.num_written - self.filled_rows
        return range(oldest // self.segment_rows, -(-self.num_written // self.segment_rows))

    def segment(self, number: int) -> State:
        """Copies of the rows of a segment that are still in the ring, and the number of the first of them."""
        begin = max(number * self.segment_rows, self.num_written - self.filled_rows)
        end = min((number + 1) * self.segment_rows, self.num_written)
        place = slice(begin % self.num_rows, begin % self.num_rows + end - begin)  # a segment never wraps around the ring's end
        return {"first_row": begin, "columns": {name: column[place].clone() for name, column in self._columns.items()}}

    def state_dict(self) -> State:
        """What can be sampled, by segment. Full ones cost nothing: they are copied when they are written, or are to be overwritten."""
        segments: State = {}
        for i in self.segments():
            full = self.closed or (i + 1) * self.segment_rows <= self.num_written
            segments[f"{i:06d}"] = self._shared(i) if full else self.segment(i)
        return {"num_rows": self.num_rows, "num_written": self.num_written, "segments": segments}

    def _shared(self, number: int) -> Segment:
        segment = self._told.get(number)
        if segment is None:
            segment = self._told[number] = Segment(f"{self.name}_{number:06d}", functools.partial(self.segment, number))
        return segment

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave; segments may hold rows that have given way since.

        Raises `CheckpointError` where it does not fit.
        """
        if state["num_rows"] != self.num_rows:
            raise CheckpointError(f"the replay buffer has {state['num_rows']} rows, buffer_size and num_envs make it {self.num_rows}")
        for held in list(self._told.values()):
            held.keep()
        self._told.clear()
        for key in sorted(state["segments"]):
            segment = state["segments"][key]
            if isinstance(segment, Segment):
                segment = segment.contents()
            columns, begin = segment["columns"], segment["first_row"]
            if columns.keys() != self._columns.keys():
                raise CheckpointError(f"the replay buffer's columns differ: {sorted(columns.keys() ^ self._columns.keys())}")
            for name, column in self._columns.items():
                rows = columns[name]
                place = slice(begin % self.num_rows, begin % self.num_rows + len(rows))
                if rows.shape[1:] != column.shape[1:]:
                    shapes = f"{list(rows.shape[1:])}, the settings make it {list(column.shape[1:])}"
                    raise CheckpointError(f"the replay buffer's {name} has rows of shape {shapes}")
                column[place].copy_(rows)
        self.num_written = state["num_written"]


def _check_memory(needed: int, capacity: int, device: torch.device) -> None:
    """Raise `ConfigError` where `needed` bytes are not there."""
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if available is not None and needed > available:
        gib = 2**30
        raise ConfigError(
            f"buffer_size {capacity:,} needs {needed / gib:.1f} GiB, {device} has {available / gib:.1f} GiB left: "
            f"choose {int(0.8 * capacity * available / needed):,} or less"
        )
