"""Which columns of a table hold what: a column map, given as TOML or a dictionary, or told by the columns' names.

A map has these keys; whatever is not recorded is left out.

==========================  ==========================================================================================
key                         what it names
==========================  ==========================================================================================
``observations``            columns that an agent sees; needed
``actions``                 columns of its action; needed
``reward``                  one column of the team, or one of each agent; needed
``episode``                 the episode a row belongs to: numbers or text
``time``                    the step within it: numbers, times, or text as 2024-05-01T12:00:00.5; rows are sorted
``agent``                   long tables: whose row it is, a number or a name
``terminal``, ``timeout``   true where the task ended; where the recording stopped although the task went on
``mask``                    true where an agent is alive
``state``, ``success``      of the team
``action_mask``             one column of 0 and 1 for each discrete action
``action_log_prob``         log-probability of the recorded action under the behaviour policy
``next_observations``, ...  also ``next_state``, ``next_action_mask``, ``next_mask``, ``next_actions``: what follows a
                            row; empty where the next row of the table says it
``counts``                  false where a row must not count in training
``has_next_action``         false where nobody acted after a row
==========================  ==========================================================================================

Each names a column, a list of columns, or patterns: ``*`` stands for any text, ``{agent}`` for an agent's name. A table
with an ``agent`` column is **long**: one row for each agent and step. One whose patterns have ``{agent}`` is **wide**:
one row for each step. With neither, it is the table of one agent.

Further keys: ``agents`` (their names, in order), ``agent_places`` (``"names"``: every name has a place of its own;
``"order"``: the agents of an episode take the first places, in the order of their names), ``n_actions``, ``discrete``,
``action_bounds``, ``gaps`` (``"refuse"``, ``"split"``: a new episode begins after a gap in time; ``"ignore"``),
``episodes_per_file`` (each file of a folder numbers its episodes anew, or begins one), ``task``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchrl_marl_offline.core.ranges import shown
from torchrl_marl_offline.core.regular_files import read_text
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError

LISTS = (
    "observations",
    "actions",
    "state",
    "action_mask",
    "next_observations",
    "next_actions",
    "next_state",
    "next_action_mask",
)
"""Roles that may have several columns; the others have one."""
SINGLE = (
    "reward",
    "terminal",
    "timeout",
    "mask",
    "success",
    "action_log_prob",
    "next_mask",
    "counts",
    "has_next_action",
)
KEYS = ("episode", "time", "agent")
NEEDED = ("observations", "actions", "reward")
OF_THE_TEAM = ("state", "next_state", "success", "counts", "has_next_action")
"""Roles that no agent has a column of its own for."""
PADDED = ("observations", "next_observations")
"""Roles that may have fewer columns for some agents than for others; zeros fill them up."""
FLAGS = (
    "terminal",
    "timeout",
    "mask",
    "next_mask",
    "success",
    "counts",
    "has_next_action",
    "action_mask",
    "next_action_mask",
)
"""Roles whose numbers are true or false."""
MOST_ACTIONS = 10**6
"""More discrete actions are none: a number of another kind."""
OF_AN_AGENT = ("observations", "actions", "action_mask", "action_log_prob", "mask")

_AGENT = "{agent}"
_FLOAT32 = 3.5e38
_LONGEST_LIST = 8

_WORDS: dict[str, tuple[str, ...]] = {
    "episode": ("episode", "episode_id", "episode_index", "episode_idx", "eps_id", "ep", "traj", "traj_id"),
    "time": ("time", "step", "t", "timestep", "time_step", "step_id", "frame", "frame_index", "timestamp", "tick"),
    "agent": ("agent", "agent_id", "agent_index", "robot", "robot_id", "player", "player_id", "unit", "unit_id"),
    "reward": ("reward", "rewards", "rew", "team_reward", "next_reward"),
    "terminal": (
        "terminal",
        "terminals",
        "terminated",
        "termination",
        "terminations",
        "is_terminal",
        "done",
        "dones",
        "next_done",
    ),
    "timeout": ("timeout", "timeouts", "truncated", "truncation", "truncations", "is_truncated"),
    "mask": ("mask", "alive", "active", "is_alive", "agent_mask"),
    "success": ("success", "is_success", "won", "battle_won", "next_success"),
    "action_log_prob": (
        "action_log_prob",
        "log_prob",
        "logprob",
        "logp",
        "log_probs",
        "logprobs",
        "log_probability",
        "action_logp",
        "action_logprob",
        "action_log_probs",
        "action_log_probability",
        "action_prob_log",
        "behaviour_log_prob",
        "behavior_log_prob",
        "sample_log_prob",
    ),
    "observations": ("observation", "observations", "obs"),
    "actions": ("action", "actions", "act", "acs"),
    "state": ("state", "states", "global_state"),
    "action_mask": ("action_mask", "avail_actions", "available_actions", "legal_actions", "legals", "avail"),
}
_WORDS |= {
    f"next_{role}": tuple(f"next_{word}" for word in _WORDS[role]) for role in ("observations", "state", "action_mask")
}
_WORDS["episode"] += ("trajectory", "trajectory_id", "rollout", "rollout_id", "run_id")
_FAMILIES = ("next_observations", "next_action_mask", "next_state", "action_mask", "observations", "actions", "state")
"""Roles whose words may be followed by a number or a name, ``obs_3``; the longer words are looked for first."""
_DONE = ("done", "dones", "next_done")
_NO_PARTS = frozenset(
    (
        *(
            "prob",
            "probs",
            "probability",
            "probabilities",
            "log",
            "logp",
            "logprob",
            "logit",
            "logits",
            "entropy",
            "std",
        ),
        *("name", "names", "label", "text", "value", "values", "qvalue", "advantage", "timestamp"),
    )
)
"""Words of columns that stand beside observations, states and actions without being a part of them."""


@dataclass(frozen=True)
class ColumnMap:
    """The map of one table; see the table above for the keys.

    Attributes:
        columns: role -> names or patterns, as they were given.
        options: the further keys.
        told_by: what said so, for messages.
        by_names: whether the columns' names alone said it.
    """

    columns: dict[str, tuple[str, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    told_by: str = "the column map"
    by_names: bool = False

    @property
    def is_wide(self) -> bool:
        """Whether the agents have columns of their own."""
        return any(_AGENT in name for names in self.columns.values() for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary that :func:`column_map` reads."""
        columns = {
            role: list(names) if role in LISTS or len(names) > 1 else names[0] for role, names in self.columns.items()
        }
        return columns | self.options


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) and one for one in value)


def _are_bounds(value: Any) -> bool:
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_bound, value))):
        return False
    low, high = value
    return isinstance(low, list | tuple) or isinstance(high, list | tuple) or low < high


def _is_bound(value: Any) -> bool:
    """Say whether it is a finite number, or a list of such."""
    if isinstance(value, list | tuple):
        return all(map(_is_bound, value))
    return isinstance(value, int | float) and not isinstance(value, bool) and -_FLOAT32 < value < _FLOAT32


_OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "agents": ("a list of agents' names", lambda value: _is_names(value) and len(set(value)) == len(value)),
    "agent_places": ('"names" or "order"', lambda value: value in ("names", "order")),
    "n_actions": (
        f"a whole number from 1 to {MOST_ACTIONS}",
        lambda value: type(value) is int and 1 <= value <= MOST_ACTIONS,
    ),
    "discrete": ("true or false", lambda value: isinstance(value, bool)),
    "action_bounds": (
        'two finite numbers or lists of numbers, the lower one first, or "data"',
        lambda value: value == "data" or _are_bounds(value),
    ),
    "gaps": ('"refuse", "split" or "ignore"', lambda value: value in ("refuse", "split", "ignore")),
    "episodes_per_file": ("true or false", lambda value: isinstance(value, bool)),
    "task": ("text", lambda value: isinstance(value, str)),
}


def column_map(given: Mapping[str, Any], told_by: str = "columns=") -> ColumnMap:
    """Return the map that a dictionary says.

    Args:
        given: keys as in the table above.
        told_by: where it stands, for messages.

    Raises:
        DatasetError: a key or a value that no map has.
    """
    columns, options = {}, {}
    roles = (*KEYS, *LISTS, *SINGLE)
    for name, value in given.items():
        if name in _OPTIONS:
            what, fits = _OPTIONS[name]
            if not fits(value):
                raise DatasetError(f"{told_by} has {shown(value)} as {name!r}, where {what} stands; correct it.")
            options[name] = list(value) if isinstance(value, tuple) else value
        elif name in roles:
            names = (value,) if isinstance(value, str) and value else value
            if not _is_names(names) or (name not in LISTS and len(names) > 1):
                what = "a column, or a list of columns," if name in LISTS else "one column"
                raise DatasetError(f"{told_by} has {shown(value)} as {name!r}, where {what} stands; correct it.")
            columns[name] = tuple(names)
        else:
            near = difflib.get_close_matches(str(name), [*roles, *_OPTIONS], 1)
            meant = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join([*roles, *_OPTIONS])}."
            raise DatasetError(f"{told_by} has the key {str(name)[:60]!r}, which no column map has; {meant}")
    for role in NEEDED:
        if role not in columns:
            raise DatasetError(
                f"{told_by} says nothing of {role!r}; name its columns, as in {role} = {_example(role)}."
            )
    found = ColumnMap(columns, options, told_by)
    _check_agents(found)
    return found


def _example(role: str) -> str:
    return {"reward": '"reward"'}.get(role, f'["{role[:3]}_*"]')


def _check_agents(found: ColumnMap) -> None:
    if "agent" in found.columns and found.is_wide:
        raise DatasetError(
            f"{found.told_by} has both an agent column and patterns with {_AGENT}; a long table has the column, a wide "
            "one the patterns: keep one of them."
        )
    if not found.is_wide:
        return
    for role, names in found.columns.items():
        with_agent = [name for name in names if _AGENT in name]
        if role in (*KEYS, *OF_THE_TEAM) and with_agent:
            raise DatasetError(f"{found.told_by} has {_AGENT} in {role!r}, which is one for all agents; leave it out.")
        if any(name.count(_AGENT) > 1 for name in with_agent):
            raise DatasetError(f"{found.told_by} has {_AGENT} twice in one name of {role!r}; write it once.")
        if role in ("observations", "actions") and not with_agent:
            raise DatasetError(f"{found.told_by} has no {_AGENT} in {role!r}; each agent needs columns of its own.")


def read_map(path: Path) -> ColumnMap:
    """Read a map from a TOML file.

    Raises:
        DatasetError: it is no TOML, or says what no map says.
    """
    try:
        given = tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; give the TOML file of a column map.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path} is no TOML ({error}); write one line for each key, as in time = 'step'.") from error
    return column_map(given, str(path))


@dataclass(frozen=True)
class Resolved:
    """A map whose patterns were replaced by the columns of a table.

    Attributes:
        map: what was given, or told by names.
        agents: names of the agents of a wide table, in order; empty for a long one.
        shared: role -> columns that all agents share, or the only ones of a long table.
        own: role -> columns of each agent of a wide table.
    """

    map: ColumnMap
    agents: tuple[str, ...]
    shared: dict[str, tuple[str, ...]]
    own: dict[str, tuple[tuple[str, ...], ...]]

    def names(self) -> tuple[str, ...]:
        """Return every column that is read, each once."""
        found = [name for names in self.shared.values() for name in names]
        found += [name for of_agents in self.own.values() for names in of_agents for name in names]
        return tuple(dict.fromkeys(found))


def resolve(given: ColumnMap, names: Sequence[str], file: str) -> Resolved:
    """Find the columns that a map's patterns mean.

    Args:
        given: the map.
        names: the table's columns, in their order.
        file: for messages.

    Raises:
        DatasetError: a column is missing, nothing fits a pattern, or a column has two roles.
    """
    agents = _agents(given, names, file) if given.is_wide else ()
    shared: dict[str, tuple[str, ...]] = {}
    own: dict[str, tuple[tuple[str, ...], ...]] = {}
    for role, patterns in given.columns.items():
        if not any(_AGENT in pattern for pattern in patterns):
            shared[role] = _matches(patterns, names, role, given, file)
            continue
        own[role] = tuple(
            _matches(_of(agent, patterns, names, role, given), names, role, given, file) for agent in agents
        )
        if role not in LISTS and any(len(of_agent) > 1 for of_agent in own[role]):
            raise DatasetError(f"{file}: {given.told_by} names several columns of one agent as {role!r}; name one.")
    found = Resolved(given, agents, shared, own)
    _check_roles(found, file)
    return found


def _of(agent: str, patterns: Sequence[str], names: Sequence[str], role: str, given: ColumnMap) -> list[str]:
    """Return the patterns of one agent; of those that were told by names, the ones that it has."""
    mine = [pattern.replace(_AGENT, agent) for pattern in patterns]
    if given.by_names and role in PADDED:
        return [name for name in mine if name in names] or mine
    return mine


def _matches(patterns: Iterable[str], names: Sequence[str], role: str, given: ColumnMap, file: str) -> tuple[str, ...]:
    found: list[str] = []
    for pattern in patterns:
        if pattern in names:
            found.append(pattern)
            continue
        matches = [match for match in map(_regex(pattern).fullmatch, names) if match] if "*" in pattern else []
        if not matches:
            near = difflib.get_close_matches(pattern, names, 1)
            meant = f"did you mean {near[0]!r}?" if near else f"it has {told(names)}."
            what = "no column that fits" if "*" in pattern else "no column"
            raise DatasetError(f"{file} has {what} {pattern!r}, which is {role!r} by {given.told_by}; {meant}")
        found += in_order([match[0] for match in matches])
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise DatasetError(f"{file}: {given.told_by} names {twice!r} twice as {role!r}; name each column once.")
    if role not in LISTS and len(found) > 1:
        raise DatasetError(f"{file} has {told(found)} for {role!r} of {given.told_by}, which is one column; name it.")
    return tuple(found)


def _regex(pattern: str, agent: str | None = None) -> re.Pattern[str]:
    parts = re.split(r"(\*|\{agent\})", pattern)
    kinds = {"*": "(.+)", _AGENT: agent or "(?P<agent>.+?)"}
    return re.compile("".join(kinds.get(part, re.escape(part)) for part in parts), re.DOTALL)


def _agents(given: ColumnMap, names: Sequence[str], file: str) -> tuple[str, ...]:
    """Return the agents of a wide table: those that are named, or those that the patterns of observations find."""
    if "agents" in given.options:
        return tuple(given.options["agents"])
    pattern = next(name for name in given.columns["observations"] if _AGENT in name)
    found = {match["agent"] for match in map(_regex(pattern).fullmatch, names) if match}
    if not found:
        raise DatasetError(
            f"{file} has no column that fits {pattern!r}, which {given.told_by} names as 'observations'; it has "
            f"{told(names)}."
        )
    return tuple(sorted(found, key=natural))


def _check_roles(found: Resolved, file: str) -> None:
    roles: dict[str, str] = {}
    for role, columns in [*found.shared.items(), *((r, sum(own, ())) for r, own in found.own.items())]:
        for name in columns:
            other = roles.setdefault(name, role)
            observed = {role, other} <= {"observations", "state", "next_observations", "next_state", "time", "agent"}
            if other != role and not observed:
                raise DatasetError(
                    f"{file}: {found.map.told_by} names {name!r} as {other!r} and as {role!r}; give it one role."
                )


def natural(name: Any) -> list[Any]:
    """Return a key that sorts numbers within names by their size: ``robot_2`` before ``robot_10``."""
    parts = re.split(r"(\d+)", str(name))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def in_order(names: Sequence[str]) -> list[str]:
    """Return names that differ in their numbers alone by these, ``obs_2`` before ``obs_10``; others as they are."""
    texts = {tuple(natural(name)[::2]) for name in names}
    return sorted(names, key=natural) if len(texts) == 1 else list(names)


def told(names: Sequence[str]) -> str:
    """Return names for a message, the first few."""
    more = f" and {len(names) - _LONGEST_LIST} more" if len(names) > _LONGEST_LIST else ""
    return ", ".join(map(repr, names[:_LONGEST_LIST])) + more


# Told by names


def map_by_names(names: Sequence[str], file: str) -> ColumnMap:
    """Tell the map from the columns' names alone.

    Columns of agents have a prefix, ``robot_0_obs_x``; every name that ends in a word of a role counts.

    Raises:
        DatasetError: they do not say enough.
    """
    found: dict[str, list[str]] = {}
    of_agents: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for name in names:
        agent, rest = (None, name) if (role := _role(name)) is not None else _split(name)
        if role is not None:
            found.setdefault(role, []).append(name)
        elif agent is None:
            unknown.append(name)
        else:
            of_agents.setdefault(agent, {})[name] = _role(rest) or ""
    agents = {name: own for name, own in of_agents.items() if {"observations", "actions"} & set(own.values())}
    unknown += [name for agent, own in of_agents.items() if agent not in agents for name in own]  # mean_reward
    for agent, own in agents.items():
        for name, role in own.items():
            found.setdefault(role, []).append(_AGENT + name[len(agent) :])
    columns = {role: tuple(in_order(list(dict.fromkeys(patterns)))) for role, patterns in found.items()}
    for role in set(columns) & set(LISTS):
        _check_parts(columns[role], role, file)
    if "time" in columns:  # a step beside a time of day: the step
        columns["time"] = tuple(sorted(columns["time"], key=lambda name: _WORDS["time"].index(_plain(name)))[:1])
    if "terminal" in columns:
        columns["terminal"] = tuple(n for n in columns["terminal"] if not _says_done(n)) or columns["terminal"]
    missing = [role for role in NEEDED if role not in columns]
    wide = [role for role in ("observations", "actions") if any(_AGENT in name for name in columns.get(role, ()))]
    if missing or len(wide) == 1:
        what = f"which columns are {' and '.join(missing)}" if missing else "which columns each agent has"
        left = f" (known by no name: {told(unknown)})" if unknown else f" (it has {told(names)})"
        raise DatasetError(
            f"{file}: the names of its columns do not say {what}{left}; write a column map, {_suggestion(file)} beside "
            f'it or columns=, with lines such as {(missing or ["observations"])[0]} = ["..."].'
        )
    if wide:
        dropped = [role for role in ("agent",) if role in columns]
        columns = {role: patterns for role, patterns in columns.items() if role not in dropped}
    for role, patterns in columns.items():
        if role not in LISTS and len(patterns) > 1:
            raise DatasetError(
                f"{file} has {told(patterns)}, which may each be its {role!r}; say which in a column map, "
                f'{_suggestion(file)} beside it or columns=, as in {role} = "{patterns[0]}".'
            )
    options = {"agents": sorted(agents, key=natural)} if wide else {}
    by_names = ColumnMap(columns, options, "the names of the columns", by_names=True)
    _check_agents(by_names)
    return by_names


def _check_parts(names: Sequence[str], role: str, file: str) -> None:
    """Refuse to guess whether ``action_prob`` is a part of the action, or ``action_name`` beside ``action``."""
    parts = {name: _part(name, role) for name in names}
    alone = [name for name, part in parts.items() if not part]
    others = [name for name, part in parts.items() if part and not part.isdigit()]
    unsure = others if alone else [name for name in others if set(re.split(r"[_./ -]+", parts[name])) & _NO_PARTS]
    if unsure:
        sure = alone or [name for name in names if name not in unsure]
        raise DatasetError(
            f"{file}: the names of its columns do not say whether {told(unsure)} belong to its {role}; write a column "
            f'map, {_suggestion(file)} beside it or columns=, as in {role} = ["{(sure or unsure)[0]}"].'
        )


def _part(name: str, role: str) -> str:
    """Return what a name says beyond its role's word: ``x`` of ``{agent}_obs_x``."""
    plain = _plain(name.rpartition("}")[2].lstrip("_./"))
    word = next(word for word in sorted(_WORDS[role], key=len, reverse=True) if plain.startswith(word))
    return plain[len(word) :].strip("_[]-")


def is_done(found: ColumnMap) -> bool:
    """Say whether the terminal flag has a name that time limits set, too: ``done``."""
    return _says_done(found.columns.get("terminal", ("",))[0])


def _says_done(name: str) -> bool:
    return _plain(name.rpartition("}")[2].lstrip("_./")) in _DONE


def _plain(name: str) -> str:
    return name.strip().lower().replace(".", "_").replace("/", "_").replace(" ", "_")


def _suggestion(file: str) -> str:
    return f"{Path(file).stem}.toml"


def _role(name: str) -> str | None:
    """Return the role that a name says, ``None`` where it says none."""
    plain = _plain(name)
    for role, words in _WORDS.items():
        if plain in words:
            return role
    for role in _FAMILIES:
        for word in sorted(_WORDS[role], key=len, reverse=True):
            if plain.startswith(word) and re.fullmatch(r"([_\[-].+|\d+)", plain[len(word) :]):
                return role
    return None


def _split(name: str) -> tuple[str | None, str]:
    """Return the agent that a name begins with, and the rest, which says a role."""
    for match in re.finditer(r"[_./]", name):
        agent, rest = name[: match.start()], name[match.end() :]
        if agent and agent.lower() != "next" and _role(rest) in (*OF_AN_AGENT, "reward", "terminal", "timeout"):
            return agent, rest
        if agent and _role(rest) in ("next_observations", "next_action_mask"):
            return agent, rest
    return None, name


def with_options(found: ColumnMap, options: Mapping[str, Any]) -> ColumnMap:
    """Return the map with some of its further keys replaced by those that are not ``None``.

    Raises:
        DatasetError: one of them has a wrong value, or says of actions what another one denies.
    """
    given = {name: value for name, value in options.items() if value is not None}
    merged = found.options | column_map_options(given, "an option of the reader")
    discrete = merged.get("discrete")
    of_discrete = [name for name in ("n_actions", "action_mask") if name in merged or name in found.columns]
    other = "n_actions" if "n_actions" in merged else "action_mask"
    if discrete is False and of_discrete:
        raise DatasetError(f"{found.told_by} has discrete = false and {other}, which discrete actions have; drop one.")
    if "action_bounds" in merged and (discrete or of_discrete):
        other = "discrete = true" if discrete else other
        raise DatasetError(f"{found.told_by} has {other} and action_bounds, which continuous actions have; drop one.")
    return replace(found, options=merged)


def column_map_options(given: Mapping[str, Any], told_by: str) -> dict[str, Any]:
    """Return the further keys of a map, checked."""
    for name, value in given.items():
        what, fits = _OPTIONS[name]
        if not fits(value):
            raise DatasetError(f"{told_by}: {name} is {shown(value)}, where {what} stands; correct it.")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
