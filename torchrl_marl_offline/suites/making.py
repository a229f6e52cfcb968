"""Making a suite: dataset by dataset, each whole or not there, so that a killed run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.files import write_json_atomic, write_text_atomic
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import RUN_SEED
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.data.quality.inspection import inspect
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.findings import Inspection
from torchrl_marl_offline.data.transitions.storage import DATA_FOLDER, METADATA_FILE, is_dataset_folder
from torchrl_marl_offline.suites.entries import Making, Suite, SuiteEntry, SuiteError
from torchrl_marl_offline.suites.suite_card import SUITE_KEY, check_card, identity, make_card
from torchrl_marl_offline.suites.suite_page import suite_page

INDEX_FILE, PAGE_FILE = "index.json", "README.md"


@dataclass
class MadeSuite:
    """What :func:`make_suite` has come to.

    Attributes:
        folder: of the suite.
        made: names of the datasets that were made now.
        found: of those that were there, whole.
        failed: name -> why a dataset could not be made, in one sentence.
    """

    folder: Path
    made: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@checked
def make_suite(
    suite: Suite,
    folder: str | Path,
    *,
    more: bool = False,
    only: Sequence[str] = (),
    seed: Annotated[int, RUN_SEED] = 0,
    recordings: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> MadeSuite:
    """Make the datasets of a suite that are not there yet.

    Each lies in a folder of its own below ``folder``, as ``OfflineDataset.save`` writes it, with its card in its
    metadata. It is written under a hidden name and renamed: a process that is killed leaves no part of one, and the
    next call goes on. One that is there and damaged is made again. ``index.json`` holds the cards, with sizes,
    checksums and the seconds that each dataset took; ``README.md`` shows them. Equal seeds give equal datasets, byte by
    byte.

    Args:
        suite: the table.
        folder: of all its datasets.
        more: those beyond the core too.
        only: of these names or groups alone.
        seed: of all that is drawn.
        recordings: a folder with recordings by others, which some entries take where it is given.
        say: called with each line that tells how it goes.

    Raises:
        SuiteError: an unknown name; the folder holds the suite of another seed or version; or another process is
            making it.
    """
    entries, making = suite.chosen(more=more, only=only), Making(seed, _folder_of(recordings))
    folder = user_path(folder)
    outcome = MadeSuite(folder)
    with _only_maker(folder):
        seconds = {name: facts.get("seconds") for name, facts in read_index(folder).items()}
        for entry in entries:
            if _is_whole(folder / entry.name, identity(suite, entry, making), say):
                outcome.found.append(entry.name)
                continue
            began = time.perf_counter()
            try:
                dataset = _make(suite, entry, making, folder / entry.name)
            except (ImportError, SuiteError, DatasetError) as error:
                outcome.failed[entry.name] = " ".join(str(error).split())
                say(f"failed  {entry.name}: {outcome.failed[entry.name]}")
                continue
            seconds[entry.name] = round(time.perf_counter() - began, 3)
            outcome.made.append(entry.name)
            _write_index(suite, folder, seconds)
            say(f"made    {entry.name}: {len(dataset):,} transitions, {seconds[entry.name]:.1f} s")
        _write_index(suite, folder, seconds)
    return outcome


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the cards of a suite's folder by name; nothing where it has no index.

    Raises:
        SuiteError: the index is damaged.
    """
    file = folder / INDEX_FILE
    if not file.exists():
        return {}
    try:
        cards = list(read_json(file)["datasets"])
        for card in cards:
            check_card(card)
    except (ValueError, KeyError, TypeError) as error:
        raise SuiteError(
            f"{file} is damaged ({error}); delete it, and make the suite again: whole datasets stay."
        ) from error
    return {card["name"]: card for card in cards}


def _folder_of(recordings: str | Path | None) -> Path | None:
    if recordings is None:
        return None
    path = user_path(recordings)
    if not path.is_dir():
        raise SuiteError(f"{path} is no folder of recordings; name another, or leave it out.")
    return path


@contextmanager
def _only_maker(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise SuiteError(f"{folder} is a file, or lies below one, and a suite is a folder; name another.") from error
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise SuiteError(f"Another process is making the suite in {folder}; wait for it, or end it.") from error
    with lock:
        yield


def _is_whole(path: Path, wanted: Mapping[str, Any], say: Callable[[str], None]) -> bool:
    """Say whether a dataset is there as it should be, all of its bytes.

    Raises:
        SuiteError: it is another one.
    """
    if not is_dataset_folder(path):
        return False
    try:
        metadata = OfflineDataset.load(path).metadata
    except DatasetError as error:
        say(f"damaged {path.name}: {error}")
        return False
    card = metadata.get(SUITE_KEY)
    there = {name: card.get(name) for name in wanted} if isinstance(card, dict) else {}
    differing = [name for name in wanted if there.get(name) != json.loads(json.dumps(wanted[name]))]
    if differing:
        name = differing[0]
        raise SuiteError(
            f"{path} holds another dataset, of {name} {there.get(name)!r} and not {wanted[name]!r}; choose another "
            "folder."
        )
    return True


def _make(suite: Suite, entry: SuiteEntry, making: Making, path: Path) -> OfflineDataset:
    recorded = entry.record(entry, making)
    recorded.dataset.metadata[SUITE_KEY] = make_card(suite, entry, making, recorded)
    recorded.dataset.inspection = _with_repetitions_meant(inspect(recorded.dataset))
    recorded.dataset.save(path, overwrite=is_dataset_folder(path))
    return recorded.dataset


def _with_repetitions_meant(inspection: Inspection) -> Inspection:
    """Let repeated episodes be a note and no warning: games of one step, recorded in turn, consist of them."""
    meant = {"severity": "note", "remedy": "in this suite they are meant to"}
    findings = [
        replace(found, **meant) if found.code == "duplicated_episodes" else found for found in inspection.findings
    ]
    return replace(inspection, findings=tuple(findings))


def _write_index(suite: Suite, folder: Path, seconds: Mapping[str, float | None]) -> None:
    """Write the index and the page of all whole datasets that are there."""
    cards = []
    for entry in suite.entries:
        header = folder / entry.name / METADATA_FILE
        try:
            content = read_json(header)
            files = sum(
                file.stat().st_size for file in (folder / entry.name / DATA_FOLDER).rglob("*") if file.is_file()
            )
            facts = {"bytes": files, "checksum": content["header"], "seconds": seconds.get(entry.name)}
            card = content["metadata"][SUITE_KEY] | facts
            check_card(card)
            cards.append(card)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not made yet, or of somebody else
    write_json_atomic(folder / INDEX_FILE, {"suite": suite.name, "version": suite.version, "datasets": cards})
    write_text_atomic(folder / PAGE_FILE, suite_page(suite, cards, folder))
