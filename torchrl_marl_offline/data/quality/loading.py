"""Loading with inspection: what ``load_dataset`` says of its findings, and what ``repair=`` and ``strict=`` do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from torchrl_marl_offline.core.callers import outside
from torchrl_marl_offline.data.quality.inspection import inspect, inspected
from torchrl_marl_offline.data.quality.repairs import repair as mend
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import (
    DatasetError,
    DatasetWarning,
    value_checks_deferred,
    values_are_checked,
)


def load_inspected(
    source: str | Path,
    read: Callable[[], OfflineDataset],
    *,
    repair: bool = False,
    strict: bool = False,
    codes: Sequence[str] | None = None,
) -> OfflineDataset:
    """Read a dataset, inspect it, and do what the switches say.

    ======================  =======================================================================================
    switches                what becomes of findings
    ======================  =======================================================================================
    none                    what :func:`~.validation.validate` refuses raises; other errors and warnings warn
    ``repair``              what can be repaired is, the metadata's ``"repairs"`` say how, what is left warns or raises
    ``strict``              any error or warning raises
    ``repair``, ``strict``  any error or warning that is left after the repair raises
    ======================  =======================================================================================

    Without a switch, the findings of a folder are those that stand in its metadata since it was written, unless its
    values have errors of which these say nothing (:mod:`~.stored_values`); what a reader brings into memory is
    inspected in one pass. Inside :func:`~.inspection.inspected`, which inspects what comes back, it only reads.

    Args:
        source: its name, for messages.
        read: the reader, called without arguments.
        repair: whether to repair.
        strict: whether to refuse what is not clean.
        codes: which findings to repair, as of :func:`~.repairs.repair`; by default all that need not be asked for.

    Raises:
        DatasetError: the reader failed, or see above.

    Warns:
        DatasetWarning: one for each finding of that severity that is left.
    """
    if not values_are_checked():
        return read()
    if not (repair or strict):
        dataset = read()
        dataset.inspection = dataset.inspection or inspect(dataset)
        problems = dataset.inspection.problems
    else:
        inspection, dataset = inspected(source, read)
        if dataset is None:
            raise DatasetError(f"{inspection['unreadable'].what}.")
        if repair and inspection.problems:
            with value_checks_deferred():
                dataset = mend(dataset, inspection, codes=codes)
            inspection = inspect(dataset)
        dataset.inspection = inspection
        problems = inspection.problems if strict else inspection.of_severity("error")
        if problems:
            what = "; ".join(f"{finding.code} on {finding.rows} rows ({finding.what})" for finding in problems)
            remedy = "look at it with python -m torchrl_marl_offline data inspect"
            raise DatasetError(f"{source}: {what}; {remedy if repair else f'{remedy}, or load with repair=True'}.")
        problems = inspection.problems
    for finding in problems:
        if finding.code != "card_disagreement":  # of which load_published has warned
            counted = f" ({finding.rows} rows)" if finding.rows else ""
            warnings.warn(f"{source}: {finding.what}{counted}; {finding.remedy}.", DatasetWarning, outside())
    return dataset
