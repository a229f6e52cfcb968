"""Reader of tables: logs as Parquet, CSV or npz, with a row for each agent and step, or for each step.

A column map says which columns hold what (:mod:`~.table_columns`): ``columns=``, a TOML file beside the table
(``logs.toml`` beside ``logs.parquet``; ``columns.toml`` in a folder), what :func:`~.table_export.write_table` left in a
Parquet file, or else the columns' names alone; the metadata's ``"columns"`` keep it. The files of a folder are one
table, in the order of their names.

What a row says of an agent that is not there counts for nothing: in a long table its row is missing, in a wide one its
columns are empty. The agent then has zeros and ``("agents", "mask")`` is false. Where only the actions of an episode's
last row are empty, that row holds the final observations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound, as_bound
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_LOG_PROB,
    AGENT_MASK,
    HAS_NEXT_ACTION,
    MASK,
    REWARD,
    TERMINATED,
    next_key,
)
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import BOUNDS, REAL, WIDTHS, shown
from torchrl_marl_offline.core.regular_files import lies_at
from torchrl_marl_offline.data.formats.arrays import from_arrays
from torchrl_marl_offline.data.formats.content import Content
from torchrl_marl_offline.data.formats.table_columns import (
    FLAGS,
    MOST_ACTIONS,
    ColumnMap,
    column_map,
    is_done,
    map_by_names,
    read_map,
    resolve,
    told,
    with_options,
)
from torchrl_marl_offline.data.formats.table_files import is_table_name, looks_like_table, open_table, table_files
from torchrl_marl_offline.data.formats.table_rows import Steps, number_text, read_rows, split_at_gaps, steps_of
from torchrl_marl_offline.data.transitions.agent_ends import AgentEnds
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import (
    DatasetError,
    reading,
    value_checks_deferred,
    values_are_checked,
)
from torchrl_marl_offline.data.transitions.rounding import Rounding

MAP_FILE = "columns.toml"
"""Name of the column map in a folder."""
_ANEW = 0.5
"""Up to how many usual steps later than the one before an episode may begin."""
NOTED = (
    *("env", "task_options", "time_limit", "team_reward", "declared_bounds"),
    *("license", "license_source", "citation"),
)
"""What an exported table keeps of a dataset's metadata."""


def recognise(content: Content) -> Path | None:
    """Return the path that :func:`read_table` wants, or None where it is of another format."""
    if not content.path.is_dir():
        return content.path if looks_like_table(content.path) else None
    names = [name for name in content.names if not name.startswith((".", "_"))]
    tables = [name for name in names if is_table_name(name)]
    return content.path if tables and all(is_table_name(name) or name.endswith(".toml") for name in names) else None


@checked
def read_table(
    path: str | Path,
    *,
    columns: Mapping[str, Any] | str | Path | None = None,
    task: str | None = None,
    n_actions: Annotated[int | None, WIDTHS] = None,
    action_bounds: Annotated[tuple[Bound, Bound] | Literal["data"] | None, REAL, BOUNDS] = None,
    gaps: Literal["refuse", "split", "ignore"] | None = None,
) -> OfflineDataset:
    """Read a table of logs into memory.

    Args:
        path: a Parquet, CSV (also ``.csv.gz``) or npz file, or a folder of such files.
        columns: the column map as a dictionary, or the path of its TOML file; see :mod:`~.table_columns`.
        task: name for the spec.
        n_actions: number of discrete actions; by default one more than the largest recorded one.
        action_bounds: lower and upper bound of every component of a continuous action, by default -1 and 1.
        gaps: where steps are missing: refuse, split the episode, or ignore it.

    Raises:
        DatasetError: a file is damaged, a column is missing, empty or no number, a step is there twice, time has a gap,
            flags and episodes disagree, or nothing says what a column holds; with file, row and column.
        ImportError: a Parquet file without pyarrow.

    Example:
        >>> import tempfile
        >>> lines = "episode,step,agent,obs_x,action,reward", "0,0,left,0.5,0.1,1", "0,0,right,0.2,0.3,0"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "logs.csv"
        ...     _ = path.write_text(chr(10).join(lines))
        ...     dataset = read_table(path)
        >>> dataset.spec.n_agents
        2
    """
    path = user_path(path)
    with reading(path):
        options = {"task": task, "n_actions": n_actions, "action_bounds": action_bounds, "gaps": gaps}
        tables = [open_table(file) for file in table_files(path)]
        names, file = tables[0].names, str(tables[0].path)
        noted: dict[str, Any] = {}
        given = _given_map(path, columns)
        if given is None and tables[0].notes is not None:
            given, noted = _noted_map(tables[0].notes, file)
        given = map_by_names(names, file) if given is None else given
        given = with_options(given, options)
        resolved = resolve(given, names, file)
        rounding = Rounding()
        steps = steps_of(read_rows(resolved, tables, rounding), given.options)
        if given.by_names:
            steps.findings.insert(0, f"columns were told by their names: {_shown(given)}")
            if not (given.is_wide or "agent" in given.columns):
                steps.findings.append(
                    "no column says whose a row is, and no agent has columns of its own: all of it is one agent's"
                )
        if left := [name for name in names if name not in resolved.names()]:
            steps.findings.append(f"columns that are not read: {told(left)}")
        metadata = rounding.into(noted | {"source": f"table:{path}", "task": given.options.get("task")})
        dataset = _Building(steps, given, metadata).dataset()
        _check_declared(dataset, file)
        reward = dataset.data.get(next_key(REWARD))
        if noted.get("team_reward") is True and (reward == reward[:, :1]).all():
            dataset.metadata["team_reward"] = True  # each agent has a column of it in a table
        return dataset


def _check_declared(dataset: OfflineDataset, file: str) -> None:
    """Refuse bounds of the task that are none, or none of these actions."""
    try:
        is_one = dataset.task_spec.discrete == dataset.spec.discrete
    except (ValueError, TypeError):
        is_one = False
    if not is_one or (dataset.spec.discrete and "declared_bounds" in dataset.metadata):
        raise DatasetError(f"{file} has damaged declared_bounds in it; write the table anew.")


def _given_map(path: Path, columns: Mapping[str, Any] | str | Path | None) -> ColumnMap | None:
    if isinstance(columns, Mapping):
        return column_map(columns)
    if columns is not None and not isinstance(columns, str | Path):
        raise DatasetError(
            f"columns= is {shown(columns)}; give a column map as a dictionary, or the path of its TOML file."
        )
    if columns is not None:
        return read_map(user_path(columns))
    stem = path.with_name(path.name.removesuffix(".gz")).with_suffix(".toml")
    beside = path / MAP_FILE if path.is_dir() else stem
    return read_map(beside) if lies_at(beside) else None


def _noted_map(text: str, file: str) -> tuple[ColumnMap, dict[str, Any]]:
    """Return the map that an exported Parquet file brings along, and what it keeps of the metadata."""
    try:
        notes = json.loads(text)
        columns, metadata = notes["columns"], notes["metadata"]
        kept = {name: metadata[name] for name in NOTED if name in metadata}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{file} has a damaged column map in it; give one by columns=.") from error
    if not isinstance(columns, dict):
        raise DatasetError(f"{file} has a damaged column map in it; give one by columns=.")
    return column_map(columns, f"the column map in {file}"), kept


def _shown(given: ColumnMap) -> str:
    return "; ".join(f"{role} = {told(names)}" for role, names in given.columns.items())


@dataclass
class _Building:
    """A dataset on its way from steps to transitions.

    Args:
        steps: the rows, sorted.
        given: the column map.
        metadata: to be completed.
    """

    steps: Steps
    given: ColumnMap
    metadata: dict[str, Any]

    def dataset(self) -> OfflineDataset:
        steps = self.steps
        self._check_flags()
        observation = steps.values("observations").astype(np.float32, copy=False)
        action, discrete = self._actions()
        there = (steps.at >= 0) & ~(_empty(observation) & _empty(action))
        if not there.any(1).all():
            step = int(np.argmin(there.any(1)))
            raise DatasetError(f"{steps.where(step)}: no agent has an observation or an action; drop this row.")
        if not steps.labels:
            self._cut(there)
        split_at_gaps(steps, self.given.options.get("gaps", "refuse"))
        observation = self._filled(observation, there)
        mask, alive = steps.values("mask"), there
        if mask is not None:
            self._refuse_empty(mask, "mask", there)
            alive = there & _flags(mask)[..., 0]
        final = self._final(action, there)
        kept, acting = ~final, alive & ~final[:, None]
        self._refuse_empty(observation, "observations", alive)
        self._refuse_empty(action, "actions", acting)
        observation = np.where(np.isnan(observation) & ~alive[..., None], 0, observation)
        masks = self._masks(acting, final)
        action, options = self._indices(action, masks, alive) if discrete else self._reals(action)
        arrays = {"observations": observation, "actions": action, "rewards": self._rewards(acting)} | masks
        if "state" in self.given.columns:
            arrays["state"] = self._of_team("state", np.ones(len(steps), bool))
        if "success" in self.given.columns:
            arrays["success"] = _flags(self._of_team("success", kept))[:, 0]
        terminal, timeout = self._ends(there, final)
        arrays |= self._checked_ends(terminal, timeout, alive, kept)
        following, known = self._following(arrays, final)
        if mask is not None or not alive[kept].all():
            arrays["agent_mask"] = alive
        extra = self._extra(acting, alive, final, arrays)
        arrays = {name: values[kept] for name, values in (arrays | following).items()}
        extra = {key: values[kept] for key, values in extra.items()}
        return self._with(arrays, options, extra, known[kept] if following else None)

    def _check_flags(self) -> None:
        """Refuse numbers that are neither 0 nor 1 where a map says true and false."""
        for role in FLAGS:
            values = self.steps.values(role)
            if values is None or values.dtype.kind == "b":
                continue
            values = values[:, None] if values.ndim == 2 else values  # [S, n or 1, k]
            bad = (values != 0) & (values != 1) & (values == values)
            if not bad.any():
                continue
            step, agent, part = (int(index[0]) for index in np.nonzero(bad))
            team = values.shape[1] == 1
            name = self.steps.columns(role, 0 if team else agent)[part]
            raise DatasetError(
                f"{self.steps.where(step, None if team else agent)}: {name!r} is {values[step, agent, part]:g}, and "
                f"{role!r} is true or false, 1 or 0, in each row; correct it, or name another column."
            )

    # Observations and agents

    def _filled(self, observation: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Write zeros into columns that are empty for all rows of an agent and not for another's."""
        empty = np.isnan(observation)
        if self.steps.n > 1 and empty.any():
            never = (empty | ~there[..., None]).all(0)  # [n, o]
            never &= ~never.all(0) & there.any(0)[:, None]
            if never.any():
                sizes = (~never).sum(1).tolist()
                self.steps.findings.append(
                    f"columns of observations that are empty in every row of an agent were filled with zeros; the "
                    f"agents have {sizes} of {never.shape[1]}"
                )
                observation = np.where(never, 0, observation)
        if self.steps.sizes:
            self.metadata["observation_sizes"] = self.steps.sizes
        return observation

    def _final(self, action: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Return ``[S]`` bool, the last steps of episodes that hold observations and no action."""
        final = self.steps.last & ~(there & ~_empty(action)).any(1)
        alone = final & np.append(True, self.steps.last[:-1])
        if alone.any():
            raise DatasetError(
                f"{self.steps.where(int(np.argmax(alone)))}: the only row of an episode has no action; drop it."
            )
        if final.any():
            self.steps.findings.append(
                f"the last rows of {int(final.sum())} episodes have no action: they are read as final observations"
            )
        return final

    def _refuse_empty(self, values: np.ndarray, role: str, wanted: np.ndarray) -> None:
        """Refuse NaN and infinities where a value counts, ``[S, n]``; inspection masks them where it may."""
        if values.dtype.kind != "f" or (not values_are_checked() and role in ("observations", "reward", "state")):
            return
        if values.ndim == 2:
            values, wanted = values[:, None], wanted.any(1, keepdims=True)
        bad = ~np.isfinite(values) & wanted[..., None]
        if not bad.any():
            return
        step, agent, part = (int(index[0]) for index in np.nonzero(bad))
        team = values.shape[1] == 1
        name = self.steps.columns(role, 0 if team else agent)[part]
        what = "is empty or NaN" if np.isnan(values[step, agent, part]) else "is infinite, or too large for float32"
        raise DatasetError(
            f"{self.steps.where(step, None if team else agent)}: {name!r} {what}, in {int(bad.any(-1).sum())} rows; "
            f"{_remedy(role)}."
        )

    # Actions

    def _actions(self) -> tuple[np.ndarray, bool]:
        """Return ``[S, n, a]``, float or integer, and whether they are indices."""
        action = self.steps.values("actions")
        names = list(
            dict.fromkeys(name for agent in range(self.steps.n) for name in self.steps.columns("actions", agent))
        )
        whole = self.steps.rows.whole.issuperset(_sources(self.steps, "actions"))
        options = self.given.options
        discrete = options.get("discrete")
        if discrete is None and "action_bounds" in options:
            discrete = False
        if discrete is None:
            discrete = whole or "n_actions" in options or "action_mask" in self.given.columns
            if whole and "n_actions" not in options and "action_mask" not in self.given.columns:
                self.steps.findings.append(
                    "the actions are whole numbers and were taken as discrete; set discrete = false if they are not"
                )
        known = action[np.isfinite(action)] if action.dtype.kind == "f" else action
        given = "action_bounds" in options or options.get("discrete") is False
        unsure = not (discrete or given) and known.size and known.dtype.kind == "f"
        if unsure and (known == np.round(known)).all() and (known.max() > 1 or (known.max() == 1 and known.min() == 0)):
            raise DatasetError(
                f"{self.steps.rows.tables[0].path}: {told(names)} of the actions hold whole numbers up to "
                f"{known.max():g}; set discrete = true in the column map if they are indices, else action_bounds."
            )
        if discrete and action.shape[2] > 1:
            if action.shape[2] != options.get("n_actions", action.shape[2]) or not _is_one_hot(action):
                raise DatasetError(
                    f"{self.steps.rows.tables[0].path}: {told(names)} are {action.shape[2]} columns of discrete "
                    "actions, and an agent takes one; number its joint choices, or set discrete = false."
                )
            self.steps.findings.append("the actions are columns of 0 and 1 and were taken as one-hot")
            empty = _empty(action)
            action = np.nan_to_num(action).argmax(-1)[..., None].astype(np.float64)
            action[empty] = np.nan
            options["n_actions"] = self.steps.values("actions").shape[2]
        return action, discrete

    def _indices(
        self, action: np.ndarray, masks: dict[str, np.ndarray], alive: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return ``[S, n]`` int64, and the options of :func:`from_arrays`."""
        values, steps = action[..., 0], self.steps
        nobody = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        known = np.where(nobody, 0, values)
        bad = (known != np.round(known)) | (known < 0) | (known >= MOST_ACTIONS)
        if bad.any():
            step, agent = (int(index[0]) for index in np.nonzero(bad))
            raise DatasetError(
                f"{steps.where(step, agent)}: {steps.columns('actions', agent)[0]!r} is {values[step, agent]}, which "
                "is no index of an action; number the actions from 0, or set discrete = false in the column map."
            )
        indices = known.astype(np.int64)
        largest = int(indices.max()) + 1
        if masks:
            mask = masks["action_mask"]
            if largest > mask.shape[-1]:
                raise DatasetError(
                    f"{steps.rows.tables[0].path}: an action is {largest - 1}, and the action mask has "
                    f"{mask.shape[-1]} columns; give one for each action."
                )
            indices = np.where(nobody | ~alive & (indices == 0), mask.argmax(-1), indices)
            return indices, {"n_actions": mask.shape[-1]}
        size = self.given.options.get("n_actions")
        if size is None:
            size = max(largest, 2)
            steps.findings.append(
                f"there are {size} actions, one more than the largest that was taken; set n_actions if there are more"
            )
        return indices, {"n_actions": size}

    def _reals(self, action: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        bounds = self.given.options.get("action_bounds", (-1.0, 1.0))
        if action.dtype.kind == "b":
            action = action.astype(np.float32)
        with np.errstate(over="ignore"):
            action = action.astype(np.float32)
        nobody = np.isnan(action)
        rest = np.zeros(action.shape[1:], np.float32)  # of an agent that is not there
        if not isinstance(bounds, str):
            low, high = (np.float32(as_bound(bound)) for bound in bounds)
            if (low.ndim and low.shape[-1] != action.shape[-1]) or (high.ndim and high.shape[-1] != action.shape[-1]):
                low = high = rest  # refused by from_arrays
            rest = np.clip(rest, low, high)
        return np.where(nobody, rest, action), {"action_bounds": bounds}

    def _masks(self, acting: np.ndarray, final: np.ndarray) -> dict[str, np.ndarray]:
        values = self.steps.values("action_mask")
        if values is None:
            return {}
        self._refuse_empty(values, "action_mask", acting)
        mask = _flags(values)
        mask[final] |= _empty(values)[final][..., None]
        return {"action_mask": mask}

    def _rewards(self, acting: np.ndarray) -> np.ndarray:
        """Return ``[S]`` of the team or ``[S, n]``."""
        values = self.steps.values("reward")
        self._refuse_empty(values, "reward", acting)
        unused = ~acting if values.ndim == 3 else ~acting.any(1)
        return np.where(np.isnan(values[..., 0]) & unused, 0, values[..., 0]).astype(np.float32)

    def _of_team(self, role: str, wanted: np.ndarray) -> np.ndarray:
        values = self.steps.values(role)
        self._refuse_empty(values, role, np.repeat(wanted[:, None], self.steps.n, 1))
        return values

    # Ends

    def _ends(self, there: np.ndarray, final: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ``[S, n]`` bool, terminal and timeout, those of final rows moved to the row before."""
        steps = self.steps
        found = {}
        for role in ("terminal", "timeout"):
            values = steps.values(role)
            if values is None:
                found[role] = np.zeros((len(steps), steps.n), bool)
                continue
            self._refuse_empty(values, role, there & ~final[:, None])
            found[role] = np.broadcast_to(_flags(values)[..., 0].reshape(len(steps), -1), (len(steps), steps.n)).copy()
            before = np.flatnonzero(final) - 1
            found[role][before] |= found[role][final]
            found[role][final] = False
        if is_done(self.given) and "timeout" in self.given.columns and (found["terminal"] & found["timeout"]).any():
            name = self.given.columns["terminal"][0]
            steps.findings.append(f"rows with {name!r} and a timeout were taken as truncated, not as terminated")
            found["terminal"] &= ~found["timeout"]
        if "terminal" not in self.given.columns:
            steps.findings.append("no column says where the task ended: no episode counts as terminated")
        return found["terminal"], found["timeout"]

    def _checked_ends(
        self, terminal: np.ndarray, timeout: np.ndarray, alive: np.ndarray, kept: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Let episodes end at their last rows alone, of those that are kept."""
        steps = self.steps
        last = self._last(kept)
        open_ended, given_timeout = last & ~(terminal | timeout).any(1), timeout
        timeout = timeout | (last[:, None] & ~terminal)
        if open_ended.any():
            steps.findings.append(
                f"{int(open_ended.sum())} episodes whose last row has no flag were taken as truncated there"
            )
        flagged = np.maximum.reduceat(terminal | given_timeout, np.flatnonzero(np.append(True, steps.last[:-1])))
        number = np.cumsum(np.append(False, steps.last[:-1]))
        silent = last[:, None] & alive & ~flagged[number] & ~open_ended[:, None]
        if silent.any():
            steps.findings.append(
                f"{int(silent.sum())} agents without a flag in the last row of an episode that another one's flag ends "
                "were taken as truncated there"
            )
        terminated, truncated, _ = AgentEnds(steps.n).add(terminal[kept], timeout[kept], alive[kept])
        early = (terminated | truncated) & ~last[kept]
        if early.any():
            step = int(np.flatnonzero(kept)[np.argmax(early)])
            raise DatasetError(
                f"{steps.where(step)}: a flag ends the episode there, and its rows go on; correct the flag, or the "
                "column that numbers the episodes."
            )
        return {"terminals": terminal, "truncations": timeout}

    def _last(self, kept: np.ndarray) -> np.ndarray:
        """Return ``[S]`` bool, the last of the kept steps of each episode."""
        last = self.steps.last
        return np.where(kept, last | np.append(last[1:] & ~kept[1:], False), False)

    def _cut(self, there: np.ndarray) -> None:
        """Number episodes that no column numbers: they end by flags, or before time starts anew."""
        steps = self.steps
        flags = [
            _flags(values).any(1) if values.ndim == 2 else _flags(values)[..., 0] for values in self._flag_values()
        ]
        shape = (len(steps), steps.n)
        found = np.zeros(shape, bool)
        for values in flags:
            found |= values.reshape(len(steps), -1)
        ends = AgentEnds(steps.n).add(found, np.zeros(shape, bool), there)
        last = ends.terminated | ends.truncated
        starts = steps.rows.first[1:-1]  # of the files but the first
        if self.given.options.get("episodes_per_file"):
            last[starts - 1] = True
        if steps.time is not None:
            self._cut_by_time(last)
        elif (goes_on := starts[~last[starts - 1]]).size:
            raise DatasetError(
                f"{steps.where(int(goes_on[0]))}: nothing says whether this file goes on with the episode of the one "
                "before; set episodes_per_file = true in the column map if it begins anew, else name a column of time "
                "or episode."
            )
        elif not flags and not starts.size:
            raise DatasetError(
                f"{steps.rows.tables[0].path}: nothing says where episodes end; name a column of episode, terminal or "
                "timeout in the column map."
            )
        steps.episode = np.concatenate([[0], np.cumsum(last[:-1])])
        steps.labels = [str(number) for number in range(int(steps.episode[-1]) + 1)]
        steps.findings.append("no column numbers the episodes: they were cut by flags, or where time starts anew")

    def _cut_by_time(self, last: np.ndarray) -> None:
        """Mark the steps before which time starts anew, in place.

        Raises:
            DatasetError: time goes back, or stands still, and not to where the episode began.
        """
        time = self.steps.time
        back = np.flatnonzero((time[1:] <= time[:-1]) & ~last[:-1])
        forward = time[1:] > time[:-1]
        usual = np.median((time[1:][forward] - time[:-1][forward]).astype(np.float64)) if forward.any() else 0.0
        ends = np.flatnonzero(last)
        begin = 0
        for step in back.tolist():
            before = np.searchsorted(ends, step)
            begin = max(begin, int(ends[before - 1]) + 1 if before else 0)
            if step > begin and time[step + 1] - time[begin] > _ANEW * usual:
                raise DatasetError(
                    f"{self.steps.where(step + 1)}: time goes on with {number_text(time[step + 1])} after "
                    f"{number_text(time[step])}, within what no flag ends; sort the rows, or name a column of episode."
                )
            last[step] = True
            begin = step + 1

    def _flag_values(self) -> list[np.ndarray]:
        return [values for role in ("terminal", "timeout") if (values := self.steps.values(role)) is not None]

    # What follows a row

    def _following(self, arrays: dict[str, np.ndarray], final: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return what follows each step, if anything is recorded of it, and ``[S]`` bool, where the table says it."""
        steps, columns = self.steps, self.given.columns
        known, found = ~steps.last, {}
        sources = {"observations": "next_observations", "state": "next_state", "action_mask": "next_action_mask"}
        sources = {name: role for name, role in sources.items() if name in arrays}
        if not final.any() and not any(role in columns for role in sources.values()):
            return {}, known
        at_end = steps.last.copy()
        for name, role in sources.items():
            values = arrays[name]
            following = np.concatenate([values[1:], values[-1:]])
            following[steps.last] = values[steps.last]
            said = np.zeros(values.shape[:-1], bool)
            if (recorded := steps.values(role)) is not None:
                said = ~_empty(recorded)
                self._refuse_empty(recorded, role, said if said.ndim == 2 else said[:, None])
                recorded = _flags(recorded) if values.dtype == bool else recorded
                following = np.where(said[..., None], recorded, following).astype(values.dtype)
            at_end &= said.reshape(len(steps), -1).any(1)
            found[role] = following
        return found, known | at_end

    def _extra(
        self, acting: np.ndarray, alive: np.ndarray, final: np.ndarray, arrays: dict[str, np.ndarray]
    ) -> dict[Any, np.ndarray]:
        """Return leaves that :func:`from_arrays` does not make, or makes otherwise."""
        steps, columns = self.steps, self.given.columns
        found: dict[Any, np.ndarray] = {}
        if "action_log_prob" in columns:
            values = steps.values("action_log_prob")
            self._refuse_empty(values, "action_log_prob", acting)
            found[ACTION_LOG_PROB] = np.where(np.isnan(values) & ~acting[..., None], 0, values)[..., 0].astype(
                np.float32
            )
        if "counts" in columns:
            found[MASK] = _flags(self._of_team("counts", ~final))[:, 0]
        if "has_next_action" in columns:
            found[HAS_NEXT_ACTION] = _flags(self._of_team("has_next_action", ~final))[:, 0]
        if "next_mask" in columns:
            values = steps.values("next_mask")
            self._refuse_empty(values, "next_mask", acting)
            found[next_key(AGENT_MASK)] = _flags(values)[..., 0]
        elif final.any() and "agent_mask" in arrays:
            after = np.concatenate([alive[1:], alive[-1:]])
            found[next_key(AGENT_MASK)] = np.where(steps.last[:, None], alive, after) & ~(
                arrays["terminals"] & self._last(~final)[:, None]
            )
        if "next_actions" in columns:
            found[next_key(ACTION)] = steps.values("next_actions")
        return found

    def _with(
        self,
        arrays: dict[str, np.ndarray],
        options: dict[str, Any],
        extra: dict[Any, np.ndarray],
        known: np.ndarray | None,
    ) -> OfflineDataset:
        """Return the dataset, with the leaves that are read besides the arrays of :func:`from_arrays`."""
        options = options | {"task": self.given.options.get("task")}
        self.metadata |= {"columns": self.given.to_dict(), "agent_names": self.steps.agents}
        self.metadata["findings"] = [*self.metadata.get("findings", []), *self.steps.findings]
        if known is None and not extra:
            return from_arrays(**arrays, **options, metadata=self.metadata)
        with value_checks_deferred():
            dataset = from_arrays(**arrays, **options, metadata=self.metadata)
        data = dataset.data
        if known is not None:
            data.set(MASK, torch.from_numpy(known) | data.get(next_key(TERMINATED))[:, 0])
        for key, values in extra.items():
            if key == next_key(ACTION):
                _set_next_actions(data, torch.from_numpy(values))
            elif key != next_key(AGENT_MASK) or key in data.keys(include_nested=True):
                data.set(key, torch.from_numpy(np.ascontiguousarray(values)))
        if HAS_NEXT_ACTION in extra:  # after the actions, which set it, too
            data.set(HAS_NEXT_ACTION, torch.from_numpy(extra[HAS_NEXT_ACTION]))
        return OfflineDataset(data, dataset.spec, dataset.metadata)


def _set_next_actions(data: Any, recorded: torch.Tensor) -> None:
    """Write actions ``[T, n, a]`` that were recorded at final observations; rows without one are NaN."""
    known = ~recorded.isnan().any(-1).any(-1) if recorded.is_floating_point() else torch.ones(len(recorded)).bool()
    action = data.get(next_key(ACTION))
    values = recorded.nan_to_num() if recorded.is_floating_point() else recorded
    values = (values[..., 0] if action.ndim == 2 else values).to(action.dtype)
    data.set(next_key(ACTION), torch.where(known.reshape(-1, *[1] * (action.ndim - 1)), values, action))
    data.set(HAS_NEXT_ACTION, data.get(HAS_NEXT_ACTION) | known)


def _empty(values: np.ndarray) -> np.ndarray:
    """Return where all columns are NaN, without the last axis."""
    return np.isnan(values).all(-1) if values.dtype.kind == "f" else np.zeros(values.shape[:-1], bool)


def _flags(values: np.ndarray) -> np.ndarray:
    """Return bools: nonzero is true, NaN is not."""
    return (values != 0) & ~np.isnan(values) if values.dtype.kind == "f" else values != 0


def _is_one_hot(action: np.ndarray) -> bool:
    values = action[~_empty(action)]
    return bool(((values == 0) | (values == 1)).all() and (values == 1).sum(-1).max(initial=1) == 1)


def _sources(steps: Steps, role: str) -> tuple[str, ...]:
    resolved = steps.rows.resolved
    return resolved.shared.get(role, ()) + tuple(name for own in resolved.own.get(role, ()) for name in own)


def _remedy(role: str) -> str:
    if role in ("observations", "state", "reward"):
        return "drop those rows or write numbers, or load it with repair=True, which masks them"
    if role == "actions":
        return "only the last row of an episode may be without an action; drop those rows, or give the agents' mask"
    return "write a number there, or drop those rows"
