"""Opening HDF5 files, with errors that say what else a file may be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torchrl_marl_offline.data.storage import is_dataset_folder
from torchrl_marl_offline.data.validation import DatasetError

if TYPE_CHECKING:
    import h5py

_HDF5_MAGIC, _ZIP_MAGIC = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"


def open_hdf5(path: Path, format_name: str) -> h5py.File:
    """Open a file for reading.

    Args:
        path: the file.
        format_name: what the reader calls its format, for the messages.

    Raises:
        DatasetError: there is no file, it is none of HDF5, or it is cut short.
        ImportError: h5py is not installed.
    """
    reader = format_name.lower()
    if path.is_dir():
        remedy = "load it with load_dataset(path)" if is_dataset_folder(path) else "give one .h5 file"
        raise DatasetError(f"{path} is a folder, but the {reader} reader reads one HDF5 file; {remedy}.")
    if not path.is_file():
        raise DatasetError(f"{path} does not exist; give the path of a {format_name} HDF5 file.")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"Reading {format_name} files needs h5py; install it with pip install h5py.") from error
    with path.open("rb") as stream:
        magic = stream.read(8)
    if magic[:4] == _ZIP_MAGIC:
        raise DatasetError(f"{path} is a zip or NumPy archive, not HDF5; pass its arrays to from_arrays().")
    if magic != _HDF5_MAGIC:
        raise DatasetError(f"{path} is not an HDF5 file; the {reader} reader reads {format_name}'s HDF5 episodes only.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path} is a damaged or truncated HDF5 file ({error}); fetch it again.") from error
