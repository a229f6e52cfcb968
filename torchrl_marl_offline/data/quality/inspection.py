"""Inspection: what is wrong with a dataset, on how many rows, and what loading does about it.

A dataset that :func:`~.validation.validate` refuses cannot be loaded, but can be inspected: :func:`inspect_source` and
:func:`load_inspected` call the reader inside :func:`~.validation.value_checks_deferred`, where a dataset checks keys,
shapes and types only. So what is inspected is the reader's TensorDict before validation, whatever the format, and no
reader has to know of it. A source whose reader fails (cut short, of another format, without a field) has one finding,
``unreadable``, with the reader's sentence.

=============================  ========  ==============================================================================
finding                        severity  what repair does
=============================  ========  ==============================================================================
``unreadable``                 error     nothing
``bad_episode``                error     drops these episodes: parts of them cannot be read, the rest of the source can
``minus_inf_padding``          error     writes zeros
``not_finite_placeholder``     error     writes the row's own values into the next state, else zeros
``not_finite``                 error     writes zeros and masks the rows
``no_legal_action``            error     allows every action there; takes an agent that has none until its episode ends
                                         for dead, and masks the row where one has none for a while
``illegal_action``             error     puts the first legal action there and masks the rows
``illegal_next_action``        error     puts the first legal action there and marks that nobody acted
``action_outside_bounds``      error     clips
``episode_marks``              error     ends an episode wherever id, done, terminated or truncated say so
``crosses_episode_end``        error     masks the rows
``no_row_counts``              error     nothing: there is nothing to learn from
``done_never_set``             warning   cuts episodes of ``episode_length``, where that is given
``broken_episode``             warning   masks the rows
``time_limit_as_termination``  warning   truncates instead; masks the rows if the final observations are not recorded
``replicated_state``           warning   keeps one copy
``duplicated_episodes``        warning   drops the copies, if asked by name; a note below 5 % of the episodes
``same_content``               warning   nothing (:func:`compare`)
``shared_episodes``            note      nothing (:func:`compare`)
``card_disagreement``          warning   nothing: a published set is not what is published about it
``team_reward``                note      nothing
``rounded_values``             warning   nothing: values are lost where an array becomes float32
``low_coverage``               note      nothing
``masked_rows``                note      nothing
``reader``                     note      nothing: what the reader says, and has mostly dealt with
=============================  ========  ==============================================================================

An ``error`` makes a dataset unfit for training, a ``warning`` is likely to mislead it, a ``note`` is good to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.data.quality.scan import RowCount, Scan
from torchrl_marl_offline.data.transitions import bad_episodes, rounding, row_blocks
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, value_checks_deferred
from torchrl_marl_offline.data.transitions.findings import SEVERITIES, Finding, Inspection, Severity
from torchrl_marl_offline.data.transitions.fingerprints import content_checksum, episode_hashes


def inspect(data: OfflineDataset | TensorDictBase, spec: TaskSpec | None = None) -> Inspection:
    """Look for every defect of the table above.

    Args:
        data: a dataset, or a TensorDict of ``[T]`` transitions in the layout, whatever its values.
        spec: the task's sizes, where ``data`` is a bare TensorDict.

    Raises:
        DatasetError: a key is missing or has a wrong shape or type: there is nothing to inspect.

    Example:
        >>> from torchrl_marl_offline.data import from_arrays
        >>> dataset = from_arrays(
        ...     observations=torch.rand(4, 2, 3),
        ...     actions=torch.zeros(4, 2, 1),
        ...     rewards=torch.ones(4),
        ...     terminals=torch.tensor([False, True, False, True]),
        ... )
        >>> [finding.code for finding in inspect(dataset).findings]
        ['team_reward']
    """
    if isinstance(data, TensorDictBase):
        if spec is None:
            raise DatasetError("A bare TensorDict says nothing about the task; call inspect(data, spec=TaskSpec(...)).")
        data = OfflineDataset(data, spec, check=False)
    limit = data.metadata.get("time_limit")
    scan = Scan.of(row_blocks.blocks(data.data), data.spec, len(data), time_limit=limit)
    return inspection_of(scan, data.metadata)


def inspection_of(scan: Scan, metadata: dict[str, Any]) -> Inspection:
    """Say what a finished scan of all rows found, and what the metadata have to say."""
    saco = round(scan.distinct_pairs / scan.length, 6)
    facts = {
        "task": scan.spec.task,
        "transitions": scan.length,
        "episodes": len(scan.lengths),
        "agents": scan.spec.n_agents,
        "joint_saco": saco,
    }
    findings = [finding for part in (_values, _actions, _episodes, _successors, _signals) for finding in part(scan)]
    findings += [*_bad_episodes(metadata), *_reader(metadata)]
    if saco < 0.5:
        findings.append(
            Finding(
                "low_coverage",
                "note",
                scan.length - round(saco * scan.length),
                None,
                f"each pair of state and joint action occurs {scan.length / scan.distinct_pairs:.1f} times on average",
                "nothing is done: the set holds less than its size suggests",
            )
        )
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))  # stable: the order above within
    return Inspection(str(metadata.get("source", "dataset")), facts, tuple(findings))


def inspected(source: str | Path, read: Callable[[], OfflineDataset]) -> tuple[Inspection, OfflineDataset | None]:
    """Read a source without the checks of its values, and inspect it.

    Args:
        source: its name.
        read: the reader, called without arguments.

    Returns:
        The inspection, and the dataset as it was read: unchecked, and ``None`` where the reader failed.
    """
    try:
        with value_checks_deferred():
            dataset = read()
    except DatasetError as error:
        text = str(error).rstrip(".")
        finding = Finding("unreadable", "error", 0, None, text, "nothing can be read")
        return Inspection(str(source), {}, (finding,)), None
    return inspect(dataset), dataset


def compare(a: OfflineDataset, b: OfflineDataset) -> tuple[Finding, ...]:
    """Say whether two datasets, two qualities say, are the same recording, or share episodes.

    Episodes are compared by content, in any order: the checksums of two files differ as soon as their compression does.
    """
    first, second = episode_hashes(a), episode_hashes(b)
    if content_checksum(a) == content_checksum(b):
        what = "both datasets have the same content"
    elif torch.equal(first.sort().values, second.sort().values):
        what = "both datasets hold the same episodes"
    else:
        shared = torch.isin(second, first)
        if not shared.any():
            return ()
        what = f"{int(shared.sum())} of {b.n_episodes} episodes of the second dataset are in the first one too"
        remedy = "nothing is done: expect it of a mixture, and never evaluate on one what the other trained"
        return (Finding("shared_episodes", "note", int(b.episode_lengths[shared].sum()), None, what, remedy),)
    remedy = "nothing is done: use one of them, their names do not tell two qualities apart"
    return (Finding("same_content", "warning", len(a), None, what, remedy),)


def _finding(code: str, severity: Severity, rows: RowCount, what: str, remedy: str) -> Iterator[Finding]:
    """Yield a finding if there is such a row."""
    if rows.count:
        yield Finding(code, severity, rows.count, rows.first, what, remedy)


def _values(scan: Scan) -> Iterator[Finding]:
    if scan.padding:
        counts = ", ".join(f"{int(columns.sum())} entries of {key!r}" for key, columns in scan.padding.items())
        what = f"{counts} are -inf on every row: padding of short observations"
        yield Finding("minus_inf_padding", "error", scan.length, 0, what, "repair writes zeros")
    what = "a value that nothing reads (of an absent agent, after the task's end, in a masked row) is NaN or infinite"
    yield from _finding("not_finite_placeholder", "error", scan["not_finite_placeholder"], what, "repair writes others")
    what, remedy = "a value is NaN or infinite", "repair masks these rows"
    yield from _finding("not_finite", "error", scan["not_finite"], what, remedy)


def _actions(scan: Scan) -> Iterator[Finding]:
    outside, following = scan.outside
    bounds = scan.spec.bounds_text
    what = f"an action lies outside its bounds {bounds}: {outside} actions, {following} next"
    remedy = "repair clips; rescale the actions or widen the TaskSpec if its bounds are not the task's"
    yield from _finding("action_outside_bounds", "error", scan["action_outside_bounds"], what, remedy)
    # After a termination an empty next mask is never used, but a distribution over no action is NaN.
    remedy = "repair takes an agent that has none until its episode ends for dead, and masks the other rows"
    yield from _finding(
        "no_legal_action", "error", scan["no_legal_action"], "a mask allows some agent no action", remedy
    )
    for code, name, remedy in (
        ("illegal_action", "a recorded action", "repair masks these rows"),
        ("illegal_next_action", "a recorded next action", "repair marks that nobody acted there"),
    ):
        yield from _finding(code, "error", scan[code], f"{name} is illegal or no action of the task", remedy)


def _episodes(scan: Scan) -> Iterator[Finding]:
    what = "done, terminated, truncated and the episode ids disagree about where an episode ends"
    remedy = "repair ends an episode wherever one of them says so"
    yield from _finding("episode_marks", "error", scan["episode_marks"], what, remedy)
    if scan.never_ends:
        remedy = "give repair the episode_length, if all episodes have one"
        yield Finding("done_never_set", "warning", scan.length, 0, "no row before the last ends an episode", remedy)
    if scan.by_time_limit.any():
        ends = scan.last_rows[scan.by_time_limit]
        length = int(scan.lengths[scan.by_time_limit].max())
        what = (
            f"episodes terminate after exactly {length} steps, without success: a time limit recorded as a termination"
        )
        remedy = "repair truncates them; leave them if the task always ends after so many steps"
        yield Finding("time_limit_as_termination", "warning", len(ends), int(ends[0]), what, remedy)
    copies, lengths = scan.copies, scan.lengths
    if copies.any():
        severity: Severity = "warning" if copies.float().mean() >= 0.05 else "note"
        what = f"{int(copies.sum())} of {len(copies)} episodes repeat an earlier one exactly"
        remedy = "repair drops them if asked by name; short episodes of small tasks repeat by chance"
        rows = RowCount(int(lengths[copies].sum()), int((scan.last_rows - lengths + 1)[copies][0]))
        yield from _finding("duplicated_episodes", severity, rows, what, remedy)


def _successors(scan: Scan) -> Iterator[Finding]:
    what, remedy = "the successor of a truncated row is the next episode's first observation", "repair masks these rows"
    yield from _finding("crosses_episode_end", "error", scan["crosses_episode_end"], what, remedy)
    what = "the next observation or state within an episode is not the following row's"
    remedy = "repair masks these rows; steps are missing or windows are out of step"
    yield from _finding("broken_episode", "warning", scan["broken_episode"], what, remedy)


def _signals(scan: Scan) -> Iterator[Finding]:
    if scan.state_is_repeated:
        n, size = scan.spec.n_agents, scan.spec.state_size
        what = f"the state of {size} entries is one vector of {size // n} repeated for each agent"
        yield Finding("replicated_state", "warning", scan.length, 0, what, "repair keeps one copy")
    if scan.is_team_reward:
        remedy = "nothing is done: it is a team reward, and its sum over agents counts it once per agent"
        yield Finding("team_reward", "note", scan.length, 0, "all agents' rewards are equal on every row", remedy)
    if not scan.any_counts:
        what = "no row counts: collector/mask is false on every one, or agents/mask of all its agents"
        remedy = "correct the masks; a truncated row counts where its next observation is given"
        yield Finding("no_row_counts", "error", scan.length, 0, what, remedy)
    what = f"rows do not count in training, {scan.masked_terminal} terminal"
    yield from _finding("masked_rows", "note", scan["masked_rows"], what, "nothing is done: losses leave them out")


def _bad_episodes(metadata: dict[str, Any]) -> Iterator[Finding]:
    bad = metadata.get(bad_episodes.KEY, [])
    if bad:
        what = f"{len(bad)} {'episode' if len(bad) == 1 else 'episodes'} cannot be read: {bad_episodes.told(bad)}"
        yield Finding("bad_episode", "error", 0, None, what, "repair drops them")


def _reader(metadata: dict[str, Any]) -> Iterator[Finding]:
    for sentence in metadata.get("findings", []):
        yield Finding("reader", "note", 0, None, sentence.rstrip("."), "the reader says so")
    for sentence in metadata.get(rounding.KEY, []):
        yield Finding("rounded_values", "warning", 0, None, sentence.rstrip("."), rounding.REMEDY)
    for sentence in metadata.get("card_disagreements", []):
        remedy = "nothing is done: fetch it again, or find out which recording it is"
        yield Finding("card_disagreement", "warning", 0, None, sentence.rstrip("."), remedy)
