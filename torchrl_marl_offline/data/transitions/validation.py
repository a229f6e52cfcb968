"""Checks that a TensorDict of transitions keeps to the layout, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase

from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_LOG_PROB,
    ACTION_MASK,
    AGENT_MASK,
    DONE,
    EPISODE,
    EPISODE_STEP,
    HAS_NEXT_ACTION,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TERMINATED,
    TRAJ_IDS,
    TRUNCATED,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.core.ranges import shown
from torchrl_marl_offline.data.transitions.bad_episodes import KEY, told
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError

if TYPE_CHECKING:
    from tensordict import NestedKey

    from torchrl_marl_offline.data.transitions.protocol import Transitions

_ROWS_AT_ONCE = 65_536
_ROUNDED_LOG_PROB = 1e-3


def expected_leaves(spec: TaskSpec) -> dict[NestedKey, tuple[tuple[int, ...], torch.dtype]]:
    """Return the leaves every dataset of a task has: key -> (shape of one row, dtype)."""
    n = spec.n_agents
    action = ((n,), torch.int64) if spec.discrete else ((n, spec.action_size), torch.float32)
    leaves = {
        OBSERVATION: ((n, spec.observation_size), torch.float32),
        STATE: ((spec.state_size,), torch.float32),
        ACTION: action,
    }
    if spec.has_action_mask:
        leaves[ACTION_MASK] = ((n, spec.action_size), torch.bool)
    leaves |= {next_key(key): leaf for key, leaf in leaves.items()}
    leaves[next_key(REWARD)] = ((n, 1), torch.float32)
    for key in (DONE, TERMINATED, TRUNCATED):
        leaves[next_key(key)] = ((1,), torch.bool)
    leaves[TRAJ_IDS] = ((), torch.int64)
    leaves[MASK] = ((), torch.bool)
    leaves[HAS_NEXT_ACTION] = ((), torch.bool)
    return leaves


def optional_leaves(spec: TaskSpec) -> dict[NestedKey, tuple[tuple[int, ...], torch.dtype]]:
    """Return the leaves that only some sources have, in the form of :func:`expected_leaves`."""
    alive = ((spec.n_agents,), torch.bool)
    leaves = {AGENT_MASK: alive, next_key(AGENT_MASK): alive, next_key(SUCCESS): ((1,), torch.bool)}
    leaves |= {EPISODE: ((), torch.int64), EPISODE_STEP: ((), torch.int64)}
    return leaves | {ACTION_LOG_PROB: ((spec.n_agents,), torch.float32)}


def validate(dataset: Transitions | TensorDictBase, spec: TaskSpec | None = None) -> None:
    """Check keys, shapes, types, values and episode boundaries of a dataset.

    Args:
        dataset: the dataset, or its TensorDict of ``[T]`` transitions with episodes end to end.
        spec: the sizes to hold it against; a dataset brings its own.

    Raises:
        DatasetError: one sentence that names the key, how many rows are concerned, the first of them and the remedy:
            a key is missing or has the wrong shape or type; a value is NaN or infinite; a continuous action lies
            outside its bounds or a discrete one outside ``0..A-1``; a mask allows no action; a recorded action is
            illegal; an episode does not end where its rows end.
    """
    data = dataset if isinstance(dataset, TensorDictBase) else dataset.data
    spec = spec if spec is not None else getattr(dataset, "spec", None)
    if spec is None:
        raise DatasetError("A bare TensorDict says nothing about the task; call validate(data, spec=TaskSpec(...)).")
    if data is not dataset:
        check_read(dataset.metadata)
    check_leaves(data, spec)
    for start, rows in _chunks(data):
        check_values(rows, spec, start=start)
    _check_episodes(data)


def _are(kind: type) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _are_bad_episodes(values: Any) -> bool:
    kinds = {"episode": int, "row": int | None, "what": str, "id": int | None}
    return _are(dict)(values) and all(
        name in record and isinstance(record[name], kind) for record in values for name, kind in kinds.items()
    )


_METADATA: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("findings", "card_disagreements", "repairs", "rounded"), ("a list of sentences", _are(str))),
    **dict.fromkeys(("provenance", "parts"), ("a list of dictionaries", _are(dict))),
    **dict.fromkeys(("task_options", "inspection"), ("a dictionary", lambda value: isinstance(value, dict))),
    **dict.fromkeys(("env", "source"), ("text", lambda value: isinstance(value, str | None))),
    **dict.fromkeys(("license", "license_source", "citation"), ("text", lambda value: isinstance(value, str | None))),
    "bad_episodes": ("a list of episodes with row, what and id", _are_bad_episodes),
    "time_limit": ("a number of steps", lambda value: value is None or (type(value) is int and value > 0)),
    "values_checked": ("true or false", lambda value: isinstance(value, bool)),
    "vault": (
        "a dictionary of seeds",
        lambda value: isinstance(value, dict) and isinstance(value.get("seeds", []), list),
    ),
}
"""What the library reads of a dataset's metadata: name -> what stands there, and whether a value is that."""


def check_metadata(metadata: Any) -> None:
    """Check the types of everything in a dataset's metadata that the library reads; users may add whatever they like.

    Raises:
        DatasetError: one of them is something else.
    """
    if not isinstance(metadata, dict):
        raise DatasetError(f"A dataset's metadata is a dictionary, got {shown(metadata)}; give one, or leave it out.")
    for name, (what, fits) in _METADATA.items():
        if name in metadata and not fits(metadata[name]):
            raise DatasetError(
                f"has {shown(metadata[name])} as {name!r} in its metadata, where {what} stands; correct it, or "
                "leave it out."
            )


def check_read(metadata: dict[str, Any]) -> None:
    """Refuse a dataset of which some episodes could not be read; see :mod:`~.bad_episodes`."""
    if metadata.get(KEY):
        raise DatasetError(f"Some episodes cannot be read ({told(metadata[KEY])}); load it with repair=True.")


def check_values(rows: TensorDictBase, spec: TaskSpec, *, start: int = 0) -> None:
    """Check the values of some rows: finite, actions within bounds and legal.

    Args:
        rows: consecutive transitions.
        spec: the task's sizes.
        start: number of the first row, for the message.
    """
    _check_finite(rows, start)
    _check_actions(rows, start, spec)
    _check_log_probs(rows, start, spec)
    if spec.has_action_mask:
        _check_masks(rows, start)


def check_leaves(data: TensorDictBase, spec: TaskSpec) -> None:
    """Check keys, shapes and types only, without reading the rows."""
    if data.ndim != 1 or len(data) == 0:
        raise DatasetError(
            f"A dataset needs one batch dimension with at least one transition, got batch size {tuple(data.shape)}; "
            "flatten episodes end to end along time."
        )
    present = set(data.keys(include_nested=True, leaves_only=True))
    expected = expected_leaves(spec)
    missing = [key for key in expected if key not in present]
    if missing:
        raise DatasetError(
            f"The dataset lacks {', '.join(map(repr, missing))}; build it with from_arrays() or add the key in the "
            "layout of torchrl_marl_offline.core.layout."
        )
    known = expected | optional_leaves(spec)
    for key in present & known.keys():
        shape, dtype = known[key]
        value = data.get(key)
        if tuple(value.shape[1:]) != shape or value.dtype != dtype:
            raise DatasetError(
                f"{key!r} has rows of shape {tuple(value.shape[1:])} and type {value.dtype}, but the task needs "
                f"{shape} and {dtype}; convert it, or correct the TaskSpec."
            )


def _chunks(data: TensorDictBase) -> Iterator[tuple[int, TensorDictBase]]:
    for start in range(0, len(data), _ROWS_AT_ONCE):
        yield start, data[start : start + _ROWS_AT_ONCE]


def _fail_where(bad: torch.Tensor, rows: TensorDictBase, start: int, key: NestedKey, what: str, remedy: str) -> None:
    """Raise if any row of ``bad`` (``[rows, ...]``) is true."""
    wrong = bad.reshape(len(bad), -1).any(-1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        where = f"first at row {start + first}, in episode {int(rows.get(TRAJ_IDS)[first])}"
        raise DatasetError(f"{key!r} {what} ({where}; {int(wrong.sum())} rows in that block); {remedy}.")


def _check_finite(rows: TensorDictBase, start: int) -> None:
    for key in rows.keys(include_nested=True, leaves_only=True):
        value = rows.get(key)
        # A NaN or an infinity makes the sum one, too: one quick pass where there is none.
        if value.is_floating_point() and not value.sum().isfinite():
            _fail_where(
                ~value.isfinite(), rows, start, key, "is NaN or infinite", "load with repair=True, or mend these rows"
            )


def _check_actions(rows: TensorDictBase, start: int, spec: TaskSpec) -> None:
    for key in (ACTION, next_key(ACTION)):
        action = rows.get(key)
        if spec.discrete:
            bad = (action < 0) | (action >= spec.action_size)
            what = f"lies outside 0..{spec.action_size - 1}"
            remedy = "drop those episodes, or correct TaskSpec.action_size"
        else:
            # Recorded actions were clipped in another precision: a rounding error is no defect.
            low, high = spec.bounds_with_slack(action)
            bad = (action < low) | (action > high)
            what = f"lies outside its bounds {spec.bounds_text}"
            remedy = "clip or rescale the actions, or widen the bounds (action_bounds=, or those of spec=)"
        _fail_where(bad, rows, start, key, what, remedy)


def _check_log_probs(rows: TensorDictBase, start: int, spec: TaskSpec) -> None:
    """Refuse probabilities in the place of their logarithms; densities of continuous actions may be above 1."""
    values = rows.get(ACTION_LOG_PROB, None) if spec.discrete else None
    if values is not None:
        remedy = "give the logarithms of the probabilities"
        _fail_where(values > _ROUNDED_LOG_PROB, rows, start, ACTION_LOG_PROB, "is above 0", remedy)


def _check_masks(rows: TensorDictBase, start: int) -> None:
    for key, action in ((ACTION_MASK, ACTION), (next_key(ACTION_MASK), next_key(ACTION))):
        mask = rows.get(key)
        chosen = mask.gather(-1, rows.get(action).unsqueeze(-1))
        if chosen.all():
            continue  # so no mask is empty
        remedy = "allow a no-op there, or load it with repair=True, which takes such an agent for dead"
        _fail_where(~mask.any(-1), rows, start, key, "allows no action at all for some agent", remedy)
        _fail_where(~chosen, rows, start, action, f"is illegal by {key!r}", "drop those episodes, or repair the mask")


def _check_episodes(data: TensorDictBase) -> None:
    ids = data.get(TRAJ_IDS)
    done = data.get(next_key(DONE))[:, 0]
    ends = data.get(next_key(TERMINATED))[:, 0] | data.get(next_key(TRUNCATED))[:, 0]
    remedy = "set done to their union"
    _fail_where(done != ends, data, 0, next_key(DONE), "differs from terminated or truncated", remedy)
    last = torch.ones_like(done)
    last[:-1] = ids[1:] != ids[:-1]
    _fail_where(
        done != last,
        data,
        0,
        TRAJ_IDS,
        "and ('next', 'done') disagree about where an episode ends",
        "give every episode its own id, its rows end to end, and done on its last row only",
    )
    if int(last.sum()) != len(ids.unique()):
        raise DatasetError(
            f"{TRAJ_IDS!r} uses one id for rows that are not end to end; give every episode an id of its own."
        )
