"""``load_dataset``: one name for every source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchrl_marl_offline.data.dataset import OfflineDataset
from torchrl_marl_offline.data.pymarl import read_pymarl
from torchrl_marl_offline.data.storage import is_dataset_folder
from torchrl_marl_offline.data.validation import DatasetError

READERS: dict[str, Callable[..., OfflineDataset]] = {
    "pymarl": read_pymarl,
}
"""Reader of each ``source:`` prefix: called with what follows the colon and the options."""


def load_dataset(source: str | Path, **options: Any) -> OfflineDataset:
    """Load a dataset.

    Args:
        source: ``"pymarl:FILE"``, or the folder that :meth:`OfflineDataset.save` wrote.
        options: the reader's own: those of :func:`read_pymarl`, or of :meth:`OfflineDataset.load`.

    Raises:
        DatasetError: the source is unknown, or what is there is not what it should be.
    """
    prefix, colon, rest = str(source).partition(":")
    if colon and prefix in READERS:
        return READERS[prefix](rest, **options)
    path = Path(source)
    if path.is_file():
        known = ", ".join(f"'{name}:{path}'" for name in READERS)
        raise DatasetError(
            f"{path} is a file without a reader named; load it as {known}, or pass arrays to from_arrays()."
        )
    if not is_dataset_folder(path):
        sources = ", ".join(f"'{name}:PATH'" for name in READERS)
        what = "is no dataset folder" if path.exists() else "does not exist"
        raise DatasetError(f"{source} {what}; give {sources} or a folder that OfflineDataset.save wrote.")
    return OfflineDataset.load(path, **options)
