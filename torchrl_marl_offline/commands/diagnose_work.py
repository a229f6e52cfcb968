"""What ``marl-offline diagnose`` does."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torchrl_marl_offline.commands.diagnose import NOT_SANE
from torchrl_marl_offline.commands.script_settings import check_device, check_output
from torchrl_marl_offline.data import OfflineDataset, load_dataset
from torchrl_marl_offline.evaluation.diagnostics import diagnose_run, diagnoses_text, save_diagnoses
from torchrl_marl_offline.evaluation.diagnostics.recorded_runs import RecordedRun, members_of


def run(parsed: argparse.Namespace) -> int:
    """Look at each run, print and write what was found; returns the exit status."""
    check_device(parsed.device)
    folders = [member for folder in parsed.runs for member in members_of(folder) or [folder]]
    for folder in folders:
        RecordedRun.at(folder)
    output = _common(parsed.runs) if parsed.output is None else parsed.output
    check_output(output, is_new=False)
    names, data = names_of(folders), _Data(parsed.dataset)
    options = {"rows": parsed.rows, "seed": parsed.seed, "device": parsed.device}
    found = [diagnose_run(folder, data.of(folder), name=name, **options) for folder, name in zip(folders, names)]
    page = save_diagnoses(found, output, formats=parsed.figures)
    if parsed.json:
        print(json.dumps({"runs": [each.to_dict() for each in found], "page": str(page)}, indent=1, allow_nan=False))
    else:
        print(f"{diagnoses_text(found)}\npage: {page}")
    return NOT_SANE if parsed.strict and any(each.verdict.word != "sane" for each in found) else 0


class _Data:
    """The data of runs, each loaded once.

    Args:
        given: what all were trained on, or ``None``.
    """

    def __init__(self, given: str | None) -> None:
        self._given = None if given is None else load_dataset(given)
        self._loaded: dict[str, OfflineDataset | None] = {}

    def of(self, folder: Path) -> OfflineDataset | None:
        """Return a run's data; ``None`` where it cannot be had, which its diagnosis says."""
        if self._given is not None:
            return self._given
        run = RecordedRun.at(folder)
        source = str(run.source())
        if source not in self._loaded:
            found = run.dataset()
            self._loaded[source] = None if isinstance(found, str) else found
        return self._loaded[source]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return a name for each run: the last part of its path, or as many as tell it from the others.

    Raises:
        ValueError: a folder is named twice.
    """
    paths = [folder.resolve() for folder in folders]
    if (twice := Counter(paths).most_common(1)) and twice[0][1] > 1:
        raise ValueError(f"{twice[0][0]} is named twice; leave one out.")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [Path(*path.parts[-depth:]).as_posix() for path in paths]


def _common(folders: Sequence[Path]) -> Path:
    """Return the folder itself where there is one, else the nearest that holds all."""
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.resolve() for folder in folders]))
