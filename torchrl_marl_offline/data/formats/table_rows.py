"""The rows of a table's files as arrays of steps and agents: read, sorted, checked for duplicates and gaps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_marl_offline.data.formats.table_columns import (
    KEYS,
    OF_THE_TEAM,
    PADDED,
    SINGLE,
    Resolved,
    natural,
)
from torchrl_marl_offline.data.formats.table_files import Cells, LogTable
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.rounding import Rounding

_EXACT = ("actions", "next_actions")
"""Roles that are not made float32 at once: their type says whether they are indices."""
_MOST_PADDING = 16
_GAP = 1.5
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TIME = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FRACTION = re.compile(r"[.,]([0-9]+)")


@dataclass
class Rows:
    """All rows of a table, column by column, as they stand in its files.

    Attributes:
        resolved: which columns hold what.
        columns: name -> ``[R]`` or ``[R, k]``; numbers are NaN where nothing stands, labels are codes.
        names: the labels of text columns, by column; those of numbers are sorted out by their values.
        tables: the files, in order.
        first: the number of the first row of each file, and of the rows in all, ``[files + 1]``.
        whole: columns of integers or bools, whether or not some rows are empty.
    """

    resolved: Resolved
    columns: dict[str, np.ndarray]
    names: dict[str, list[Any]]
    tables: list[LogTable]
    first: np.ndarray
    whole: frozenset[str]

    def place(self, row: int) -> str:
        """Say where a row is: file and row, or line."""
        file = int(np.searchsorted(self.first, row, side="right")) - 1
        return self.tables[file].place(row - int(self.first[file]))

    def __len__(self) -> int:
        return int(self.first[-1])


class _Labels:
    """Numbers for the texts of a column, in the order in which they come."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def of(self, values: np.ndarray) -> np.ndarray:
        found, inverse = np.unique(values.astype(str), return_inverse=True)
        return np.array([self.codes.setdefault(str(name), len(self.codes)) for name in found], np.int64)[inverse]


def read_rows(resolved: Resolved, tables: list[LogTable], rounding: Rounding) -> Rows:
    """Read every column that the map names, of all files.

    Raises:
        DatasetError: a column is missing in a file, holds what it should not, or the files do not fit together.
    """
    labels = [resolved.shared[role][0] for role in KEYS if role in resolved.shared]
    time = resolved.shared.get("time", (None,))[0]
    exact = {name for role in _EXACT for name in _columns_of(resolved, role)} | set(labels)
    wanted = resolved.names()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    codes = {name: _Labels() for name in labels}
    counts, fractions = [0], set()
    for table in tables:
        missing = [name for name in wanted if name not in table.names]
        if missing:
            raise DatasetError(
                f"{table.path} has no column {missing[0]!r}, which {tables[0].path.name} has; give all files the same."
            )
        rows = 0
        for block in table.blocks(wanted, labels):
            for name, cells in block.items():
                if not (cells.whole or cells.values.dtype.kind in "iub"):
                    fractions.add(name)
                is_time = name == time
                values = _label(cells, name, table, rows, is_time=is_time) if name in labels else _number(cells)
                parts[name].append(values if name in exact else rounding.seen(values, name))
                if name not in exact and values.dtype != bool:
                    with np.errstate(over="ignore"):
                        parts[name][-1] = values.astype(np.float32)
            rows += len(next(iter(block.values())).values)
        counts.append(rows)
    first = np.cumsum(counts)
    if first[-1] == 0:
        raise DatasetError(f"{tables[0].path} holds no row; give a table with one row for each step.")
    columns, names = {}, {}
    for name in wanted:
        if name in labels and any(part.dtype == object for part in parts[name]):
            columns[name] = np.concatenate([codes[name].of(part) for part in parts[name]])
            names[name] = list(codes[name].codes)
            _check_is_no_number(name, resolved)
        else:
            columns[name] = _joined(parts[name], name, tables, counts)
            kinds = {part.dtype.kind for part in parts[name]}
            if name in labels and columns[name].dtype.kind == "f" and kinds & {"i", "u"}:
                _check_exact(columns[name], name, tables)
        parts[name] = []
    found = Rows(resolved, columns, names, tables, first, frozenset(wanted) - fractions)
    if time in names:
        codes_of, column = columns[time], str(time)
        instants = _instants(names.pop(column), lambda code: found.place(int(np.argmax(codes_of == code))), column)
        columns[column] = instants[codes_of]
    _check_single(found)
    return found


def _check_exact(values: np.ndarray, name: str, tables: list[LogTable]) -> None:
    """Refuse whole numbers that were made floats, of which two could have become one."""
    if (np.abs(values) >= 2**53).any():
        raise DatasetError(
            f"{tables[0].path}: {name!r} holds whole numbers of 16 digits and more, of different types in different "
            "rows; write all of them as one type."
        )


def _check_is_no_number(name: str, resolved: Resolved) -> None:
    """Refuse a text that is a label as one of the numbers that agents see."""
    for role in (*resolved.shared, *resolved.own):
        if role not in KEYS and name in _columns_of(resolved, role):
            raise DatasetError(
                f"{resolved.map.told_by} names {name!r} as {role!r}, and it is text; give numbers, or leave it out."
            )


def _check_single(rows: Rows) -> None:
    """Refuse lists in columns of which a row has one value."""
    for role in SINGLE:
        for name in _columns_of(rows.resolved, role):
            shape = rows.columns[name].shape
            if len(shape) > 1 and shape[1] != 1:
                raise DatasetError(
                    f"{rows.tables[0].path}: {name!r} holds lists of {shape[1]} numbers, and {role!r} is one number in "
                    "each row; give each agent a row or a column of its own."
                )


def _columns_of(resolved: Resolved, role: str) -> tuple[str, ...]:
    return resolved.shared.get(role, ()) + tuple(name for own in resolved.own.get(role, ()) for name in own)


def _label(cells: Cells, name: str, table: LogTable, start: int, *, is_time: bool) -> np.ndarray:
    values = cells.values
    if values.ndim > 1:
        raise DatasetError(f"{table.path}: {name!r} holds lists, and one value for each row is wanted there.")
    empty = cells.empty
    if values.dtype.kind == "f" and np.isnan(values).any():
        empty = np.isnan(values)
    if empty is not None and empty.any():
        row = start + int(np.argmax(empty))
        raise DatasetError(f"{table.place(row)}: {name!r} is empty; write it in every row, or drop that one.")
    if values.dtype != object:
        return values.astype(np.int64) if values.dtype.kind == "b" else values
    return _sorted_out(values, is_time=is_time)


def _sorted_out(texts: np.ndarray, *, is_time: bool) -> np.ndarray:
    """Return the numbers that texts are, as CSV has them, if each is one and two of them never the same.

    ``"1_2"`` and ``"007"`` are names, but a time may begin with zeros. Numbers with more digits than a float stay text.
    """
    number = _TIME if is_time else _NUMBER
    if not all(number.fullmatch(text) for text in texts):
        return texts
    try:
        return np.array([int(text) for text in texts], dtype=np.int64)
    except (ValueError, OverflowError):
        numbers = np.array([float(text) for text in texts])
    return numbers if is_time or (np.abs(numbers) < 2**53).all() else texts


def _instants(texts: list[str], place: Callable[[int], str], column: str) -> np.ndarray:
    """Return dates with times as nanoseconds, int64.

    Args:
        texts: as ISO 8601 has them, all with an offset from UTC, or none.
        place: says where the first row of a text is.
        column: for messages.

    Raises:
        DatasetError: one is something else.
    """
    found, kinds = np.empty(len(texts), np.int64), set()
    for number in sorted(range(len(texts)), key=lambda one: _TIME.fullmatch(texts[one]) is not None):
        text = texts[number]
        try:
            known = datetime.fromisoformat(text)
        except ValueError as error:
            raise DatasetError(
                f"{place(number)}: the time {column!r} is the text {text[:40]!r}; give numbers, such as the step "
                "within the episode, or dates and times as 2024-05-01T12:00:00.5."
            ) from error
        kinds.add(known.tzinfo is None)
        fraction = _FRACTION.search(text)  # of which datetime keeps six digits
        nanoseconds = int(fraction[1].ljust(9, "0")[:9]) if fraction else 0
        whole = known.replace(microsecond=0, tzinfo=known.tzinfo or UTC)
        found[number] = int(whole.timestamp()) * 10**9 + nanoseconds
    if len(kinds) > 1:
        raise DatasetError(
            f"{place(0)}: some of the times {column!r} have an offset from UTC and others none; give all of them one."
        )
    return found


def _number(cells: Cells) -> np.ndarray:
    values = cells.values
    if cells.empty is None or not cells.empty.any() or values.dtype.kind == "f":
        return values
    values = values.astype(np.float64)
    values[cells.empty] = np.nan
    return values


def _joined(parts: list[np.ndarray], name: str, tables: list[LogTable], counts: list[int]) -> np.ndarray:
    parts = [part for part in parts if len(part)]
    widths = {part.shape[1:]: part for part in parts if not (part.ndim == 2 and np.isnan(part).all())}
    if len(widths) > 1:
        told = " and ".join(str(shape[0] if shape else 1) for shape in sorted(widths)[:2])
        raise DatasetError(
            f"{tables[0].path}: {name!r} holds {told} numbers in different rows; give lists of one length."
        )
    if widths:  # blocks in which no row has a list do not know how long they are
        shape = next(iter(widths))
        parts = [part if part.shape[1:] == shape else np.full((len(part), *shape), np.nan) for part in parts]
    kinds = {part.dtype for part in parts}
    if {np.dtype(np.uint64), np.dtype(np.int64)} <= kinds:
        parts = [part.astype(np.float64) for part in parts]
    return np.concatenate(parts)


@dataclass
class Steps:
    """The rows as ``S`` steps of ``n`` agents, sorted by episode and time.

    Attributes:
        rows: the table.
        agents: names, ``n``.
        episode: ``[S]`` int64, numbered from 0: in the order of the rows where those of an episode stand together, else
            in that of the episodes' names.
        labels: name of each episode, for messages.
        time: ``[S]``, or ``None``.
        at: ``[S, n]`` int64, the row of each agent's step; -1 where it has none.
        findings: what was done.
        sizes: columns of observations that each agent has, where they differ.
    """

    rows: Rows
    agents: list[str]
    episode: np.ndarray
    labels: list[str]
    time: np.ndarray | None
    at: np.ndarray
    findings: list[str]
    sizes: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def last(self) -> np.ndarray:
        """``[S]`` bool, the last step of each episode."""
        return np.append(self.episode[1:] != self.episode[:-1], True)

    def where(self, step: int, agent: int | None = None) -> str:
        """Say where a step is: file, row, episode, time and agent."""
        there = self.at[step][self.at[step] >= 0]
        row = int(there.min() if agent is None else self.at[step, agent])
        told = [f"episode {self.labels[self.episode[step]]}"] if self.labels else []
        told += [] if self.time is None else [f"time {number_text(self.time[step])}"]
        told += [] if agent is None or len(self.agents) == 1 else [f"agent {self.agents[agent]}"]
        return self.rows.place(row) + (f" ({', '.join(told)})" if told else "")

    def values(self, role: str) -> np.ndarray | None:
        """Return the values of a role, NaN where there are none.

        Returns:
            ``[S, k]`` of what the team has, else ``[S, n, k]``; ``None`` where the map does not name it.
        """
        resolved = self.rows.resolved
        if role in resolved.own:
            return self._of_agents(resolved.own[role], role)
        if role not in resolved.shared:
            return None
        values = self._side_by_side(resolved.shared[role])
        if resolved.agents or role in OF_THE_TEAM:
            first = np.where(self.at >= 0, self.at, np.iinfo(np.int64).max).min(1)
            team = values[first]
            if role in OF_THE_TEAM:
                self._check_team(values, team, role)
                return team
            return team if role in ("reward", "terminal", "timeout") else np.repeat(team[:, None], self.n, 1)
        return self._placed(values)

    @property
    def n(self) -> int:
        """The number of agents."""
        return len(self.agents)

    def columns(self, role: str, agent: int) -> tuple[str, ...]:
        """Return the names of a role's columns of one agent, one for each of its numbers."""
        resolved = self.rows.resolved
        names = resolved.own[role][agent] if role in resolved.own else resolved.shared[role]
        widths = [1 if self.rows.columns[name].ndim == 1 else self.rows.columns[name].shape[1] for name in names]
        return tuple(
            name if width == 1 else f"{name}[{part}]" for name, width in zip(names, widths) for part in range(width)
        )

    def _side_by_side(self, names: Iterable[str]) -> np.ndarray:
        parts = [self.rows.columns[name] for name in names]
        parts = [part[:, None] if part.ndim == 1 else part for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)

    def _of_agents(self, own: tuple[tuple[str, ...], ...], role: str) -> np.ndarray:
        at = self.at.max(1)
        parts = [self._side_by_side(names)[at] for names in own]
        widths = [part.shape[1] for part in parts]
        if len(set(widths)) > 1:
            told = ", ".join(f"{agent} {width}" for agent, width in zip(self.agents, widths))
            if role not in PADDED:
                raise DatasetError(
                    f"{self.rows.tables[0].path}: the agents have unequal numbers of columns of {role} ({told}); give "
                    "each the same."
                )
            if role == "observations":
                self.sizes = widths
            kind = np.result_type(*parts)
            parts = [
                np.concatenate([part, np.zeros((len(part), max(widths) - part.shape[1]), kind)], 1) for part in parts
            ]
        return np.stack(parts, 1)

    def _placed(self, values: np.ndarray) -> np.ndarray:
        """Return ``[S, n, k]`` of a long table's rows."""
        there = self.at >= 0
        if there.all():
            return values[self.at]
        kind = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
        placed = np.full((*self.at.shape, values.shape[1]), np.nan, kind)
        placed[there] = values[self.at[there]]
        return placed

    def _check_team(self, values: np.ndarray, team: np.ndarray, role: str) -> None:
        """Refuse agents whose rows of one step tell of unequal states."""
        for agent in range(self.at.shape[1] if not self.rows.resolved.agents else 0):
            there = self.at[:, agent] >= 0
            mine, theirs = values[self.at[there, agent]], team[there]
            differ = (mine != theirs) & ~((mine != mine) & (theirs != theirs))
            if differ.any():
                step = int(np.flatnonzero(there)[differ.any(1).argmax()])
                raise DatasetError(
                    f"{self.where(step, agent)}: {role!r} differs from that of another agent at this step, and it is "
                    "one for the team; give what an agent sees alone as observations."
                )


def number_text(value: Any) -> str:
    """Return a number for a message."""
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def steps_of(rows: Rows, options: dict[str, Any]) -> Steps:
    """Sort the rows into steps.

    Args:
        rows: all of them.
        options: the further keys of the map.

    Raises:
        DatasetError: a step is there twice, time has a gap, or nothing says where episodes end.
    """
    shared, findings = rows.resolved.shared, list[str]()
    keys = {role: rows.columns[shared[role][0]] for role in KEYS if role in shared}
    if rows.resolved.agents:
        keys.pop("agent", None)
    _check_keys(keys, rows)
    episode, labels = _episodes(keys, rows, options)
    time = keys.get("time")
    agent, agents = _agents(keys, rows, options)
    if options.get("agent_places") == "order" and agent is not None:
        agent, agents = _places(agent, episode, rows)
        findings.append(
            f"the agents of an episode take {len(agents)} places in the order of their names, which differ from "
            "episode to episode"
        )
    order = _sorted(episode, time, agent, findings, rows, keys)
    at, episode, time = _at(order, episode, time, agent, agents, rows, keys, labels)
    steps = Steps(rows, agents, episode, labels, time, at, findings)
    return steps


def _check_keys(keys: dict[str, np.ndarray], rows: Rows) -> None:
    file = rows.tables[0].path
    if "agent" in keys and len({"episode", "time"} & keys.keys()) < 2:
        missing = "episode" if "episode" not in keys else "time"
        raise DatasetError(
            f"{file}: a table with a row for each agent needs an episode and a time, and no column is its {missing}; "
            f'name one in the column map, as in {missing} = "{"episode" if missing == "episode" else "step"}".'
        )


def _episodes(keys: dict[str, np.ndarray], rows: Rows, options: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Return the episode of each row and the episodes' names; all zeros where no column says it."""
    if "episode" not in keys:
        return np.zeros(len(rows), np.int64), []
    values = keys["episode"]
    file = np.repeat(np.arange(len(rows.tables)), np.diff(rows.first)) if len(rows.tables) > 1 else None
    found, inverse = np.unique(values, return_inverse=True)
    inverse = inverse.reshape(-1)
    named = rows.names.get(rows.resolved.shared["episode"][0])
    texts = [named[int(value)] if named is not None else number_text(value) for value in found]
    if file is not None and options.get("episodes_per_file"):
        both, inverse = np.unique(file * len(found) + inverse, return_inverse=True)
        texts = [f"{texts[one % len(found)]} of {Path(rows.tables[one // len(found)].path).name}" for one in both]
    firsts = np.full(len(texts), len(rows), np.int64)
    np.minimum.at(firsts, inverse, np.arange(len(rows)))
    together = int((inverse[1:] != inverse[:-1]).sum()) == len(texts) - 1
    place = (
        np.argsort(firsts, kind="stable")
        if together
        else np.array(sorted(range(len(texts)), key=lambda one: natural(texts[one])))
    )
    number = np.empty_like(place)
    number[place] = np.arange(len(place))
    return number[inverse], [texts[one] for one in place]


def _agents(keys: dict[str, np.ndarray], rows: Rows, options: dict[str, Any]) -> tuple[np.ndarray | None, list[str]]:
    """Return the place of each row's agent, and the agents' names."""
    if rows.resolved.agents:
        return None, list(rows.resolved.agents)
    if "agent" not in keys:
        return None, ["0"]
    found, inverse = np.unique(keys["agent"], return_inverse=True)
    column = rows.resolved.shared["agent"][0]
    texts = [rows.names[column][int(value)] if column in rows.names else number_text(value) for value in found]
    wanted = options.get("agents") if options.get("agent_places") != "order" else None
    if wanted is None:
        wanted = sorted(texts, key=natural)
    elif other := sorted(set(texts) - set(wanted)):
        row = int(np.argmax(inverse.reshape(-1) == texts.index(other[0])))
        raise DatasetError(
            f"{rows.place(row)}: {column!r} is {other[0]!r}, which is none of the agents of the column map "
            f"({', '.join(wanted[:8])}); add it there, or drop its rows."
        )
    place = np.array([wanted.index(text) for text in texts])
    return place[inverse.reshape(-1)], list(wanted)


def _places(agent: np.ndarray, episode: np.ndarray, rows: Rows) -> tuple[np.ndarray, list[str]]:
    """Return the place of each row's agent among those of its own episode."""
    count = int(agent.max()) + 1
    pairs, inverse = np.unique(episode * count + agent, return_inverse=True)
    starts = np.searchsorted(pairs // count, np.arange(int(episode.max()) + 1))
    place = np.arange(len(pairs)) - starts[pairs // count]
    return place[inverse.reshape(-1)], [str(number) for number in range(int(place.max()) + 1)]


def _sorted(
    episode: np.ndarray,
    time: np.ndarray | None,
    agent: np.ndarray | None,
    findings: list[str],
    rows: Rows,
    keys: dict[str, np.ndarray],
) -> np.ndarray:
    """Return the order of the rows by episode, time and agent; without an episode they stay as they are."""
    by = [values for values in (agent, time) if values is not None]
    if "episode" not in keys:
        return np.arange(len(rows))
    order = np.lexsort((*by, episode))
    if time is not None:
        stable = np.argsort(episode, kind="stable")
        back = np.flatnonzero((np.diff(episode[stable]) == 0) & (time[stable][1:] < time[stable][:-1]))
        if len(back):
            findings.append(
                f"the rows were sorted by time: within an episode it goes back {len(back)} times, first at "
                f"{rows.place(int(stable[back[0] + 1]))}"
            )
    if (episode[1:] < episode[:-1]).any():
        row = int(np.argmax(episode[1:] < episode[:-1])) + 1
        findings.append(
            f"rows of one episode do not stand together, first at {rows.place(row)}; they were put together"
        )
    return order


def _at(
    order: np.ndarray,
    episode: np.ndarray,
    time: np.ndarray | None,
    agent: np.ndarray | None,
    agents: list[str],
    rows: Rows,
    keys: dict[str, np.ndarray],
    labels: list[str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the row of each agent at each step, ``[S, n]``, and episode and time of each step, ``[S]``."""
    episode = episode[order]
    time = None if time is None else time[order]
    if "episode" not in keys:  # the flags, or time that starts anew, cut it
        return np.repeat(order[:, None], len(agents), 1), episode, time
    fresh = np.ones(len(order), bool)
    if time is not None:
        fresh[1:] = (episode[1:] != episode[:-1]) | (time[1:] != time[:-1])
    own = np.zeros(len(order), np.int64) if agent is None else agent[order]
    twice = np.flatnonzero(~fresh[1:] & (own[1:] == own[:-1]))
    if len(twice):
        row, other = int(order[twice[0] + 1]), int(order[twice[0]])
        told = f"episode {labels[episode[twice[0]]]}, time {number_text(time[twice[0]])}"
        told += "" if agent is None else f", agent {agents[own[twice[0]]]}"
        several = len(rows.tables) > 1 and rows.place(row).rpartition(", ")[0] != rows.place(other).rpartition(", ")[0]
        remedy = (
            "set episodes_per_file = true in the column map if each file numbers its episodes anew, else drop one"
            if several
            else "drop one of them, or name a column that tells them apart"
        )
        raise DatasetError(
            f"{rows.place(max(row, other))}: {told} is there already, at {rows.place(min(row, other))}; {remedy}."
        )
    step = np.cumsum(fresh) - 1
    alone = agent is not None and len(agents) > 1 and fresh.all()
    if alone and len(np.unique(episode * len(agents) + own)) > len(np.unique(episode)):
        raise DatasetError(
            f"{rows.place(0)}: no two of the agents {', '.join(agents[:4])} have a row at the same time; give agents "
            "of one step the same time, a step number say."
        )
    if int(step[-1] + 1) * len(agents) > _MOST_PADDING * len(order):
        raise DatasetError(
            f"{rows.tables[0].path} has {len(agents)} agents, of which few are there at a step; set agent_places = "
            '"order" in the column map if their names differ from episode to episode.'
        )
    if agent is None:
        return np.repeat(order[:, None], len(agents), 1), episode, time
    at = np.full((int(step[-1]) + 1, len(agents)), -1, np.int64)
    at[step, own] = order
    return at, episode[fresh], None if time is None else time[fresh]


def split_at_gaps(steps: Steps, gaps: str) -> None:
    """Look for steps that are missing within an episode.

    Args:
        steps: sorted; changed in place.
        gaps: ``"refuse"``, ``"split"``: a new episode begins after a gap; ``"ignore"``.

    Raises:
        DatasetError: there is a gap, and it is refused.
    """
    time, inside = steps.time, ~steps.last[:-1]
    if time is None or gaps == "ignore" or not inside.any():
        return
    with np.errstate(over="ignore"):
        distance = (time[1:] - time[:-1]).astype(np.float64)
    usual = float(np.quantile(distance[inside], 0.5, method="lower"))
    wide = inside & (distance > _GAP * usual)
    if not wide.any():
        return
    step = int(np.argmax(wide))
    if gaps == "refuse":
        raise DatasetError(
            f"{steps.where(step + 1)}: time goes on by {distance[step]:g} from {number_text(time[step])}, and mostly "
            f'by {usual:g}: steps are missing; set gaps = "split" in the column map to begin a new episode there, or '
            '"ignore".'
        )
    number = np.concatenate([[0], np.cumsum(wide | ~inside)])
    firsts = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    steps.labels = [steps.labels[steps.episode[first]] for first in firsts]
    steps.episode = number
    steps.findings.append(f"{int(wide.sum())} gaps in time were taken as the ends of episodes")
