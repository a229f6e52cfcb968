"""What lies at a path, as far as a format is told by it: the names in a folder, or the arrays of an HDF5 file."""

from __future__ import annotations

from pathlib import Path

from torchrl_marl_offline.data.formats.hdf5 import open_hdf5
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading


class Content:
    """A file or a folder, looked into once for all formats.

    Args:
        path: what is there.

    Attributes:
        names: entries of the folder; none of a file.
        arrays: names of the arrays of an HDF5 file; none of a folder.
        refusal: why a file's arrays cannot be listed: it is damaged or not of HDF5.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = frozenset(entry.name for entry in path.iterdir()) if path.is_dir() else frozenset()
        self.arrays: frozenset[str] = frozenset()
        self.refusal: DatasetError | None = None
        if not path.is_dir():
            try:
                with reading(path), open_hdf5(path, "HDF5") as file:
                    self.arrays = frozenset(file)
            except DatasetError as error:
                self.refusal = error
