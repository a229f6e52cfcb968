"""The formats by name: how each is read, and how it is told by its content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.data.formats import d4rl, minari, ogbench_npz, omar_npy, omiga_h5, pymarl, table_reader, vault
from torchrl_marl_offline.data.formats.content import Content
from torchrl_marl_offline.data.formats.streaming import RowStream
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.storage import is_dataset_folder

OWN = ""
"""The format of the folders that this library writes."""


@dataclass(frozen=True)
class Reader:
    """One format.

    Attributes:
        read: reads a path with the format's options.
        recognise: returns of a :class:`~.content.Content` the path that ``read`` wants, or None where it is of another
            format. None: the format is never recognised, only named.
        arrays: of an HDF5 format, the arrays that tell it, for the sentence about a file that lacks some of them.
        open: returns what :func:`convert_dataset` writes block by block, however large it is.
    """

    read: Callable[..., OfflineDataset]
    recognise: Callable[[Content], Path | None] | None = None
    arrays: frozenset[str] = frozenset()
    open: Callable[..., RowStream] | None = None


READERS: dict[str, Reader] = {
    "table": Reader(
        table_reader.read_table, table_reader.recognise
    ),  # asked last: other formats' files are tables, too
    "pymarl": Reader(pymarl.read_pymarl, pymarl.recognise, pymarl.ARRAYS),
    "vault": Reader(vault.read_vault, vault.recognise, open=vault.open_vault),
    "omiga_h5": Reader(omiga_h5.read_omiga_h5, omiga_h5.recognise, omiga_h5.ARRAYS, omiga_h5.open_omiga_h5),
    "omar_npy": Reader(omar_npy.read_omar_npy, omar_npy.recognise, open=omar_npy.open_omar_npy),
    "minari": Reader(minari.read_minari, minari.recognise),
    "d4rl": Reader(d4rl.read_d4rl, d4rl.recognise, d4rl.ARRAYS),
    "ogbench": Reader(ogbench_npz.read_ogbench),
}
"""The formats by the prefix that names them; :func:`register_reader` adds one."""


@checked
def register_reader(
    name: str,
    read: Callable[..., OfflineDataset],
    *,
    recognise: Callable[[Content], Path | None] | None = None,
) -> None:
    """Let ``load_dataset("NAME:PATH")`` read a format of one's own, and recognise it.

    Args:
        name: the prefix, an identifier.
        read: called with the path and the options of ``load_dataset``; returns a dataset, from
            :func:`~torchrl_marl_offline.from_arrays` say.
        recognise: is given what lies at a path, its ``path``, and ``names`` of a folder's entries or ``arrays`` of an
            HDF5 file; returns the path that ``read`` wants, or None where it is of another format. It is asked before
            the library's own formats.

    Raises:
        ValueError: the name is no identifier, or one of the library's own formats.
    """
    if not name.isidentifier():
        raise ValueError(f"A reader's name must be an identifier, got {name!r}.")
    if name in READERS and READERS[name].read.__module__.startswith(__name__.partition(".")[0]):
        raise ValueError(f"{name!r} is a format of the library's own; choose another name.")
    READERS[name] = Reader(read, recognise)


def recognised(path: Path) -> tuple[str, Path]:
    """Return the format of a file or folder and the path that its reader wants.

    Args:
        path: what is there.

    Raises:
        DatasetError: nothing is there, or nothing that is known.
    """
    if path.exists():
        if path.is_dir() and is_dataset_folder(path):
            return OWN, path
        content = Content(path)
        for name, reader in reversed(READERS.items()):  # those that were registered first
            wanted = None if reader.recognise is None else reader.recognise(content)
            if wanted is not None:
                return name, wanted
        if not path.is_dir():
            raise _unknown_file(content)
        inner = sorted(entry.name for entry in path.iterdir() if vault.is_vault(entry))
        if inner:
            raise DatasetError(f"{path} holds the vaults {', '.join(inner)}; name one of them, {path / inner[0]}.")
    what = "is no dataset folder" if path.exists() else "does not exist"
    formats = ", ".join(f"'{name}:PATH'" for name in READERS)
    raise DatasetError(
        f"{path} {what}; give {formats}, a published set such as 'og_marl:smac_v1/3m/Good', or a folder that "
        "OfflineDataset.save wrote."
    )


def _unknown_file(content: Content) -> DatasetError:
    path, arrays = content.path, content.arrays
    if content.refusal is not None:
        if "is not an HDF5 file" not in str(content.refusal):
            return content.refusal
        return DatasetError(
            f"{path} is not an HDF5 file, as those of pymarl:, omiga_h5: and d4rl: are, nor a Parquet, CSV or npz "
            "table; give the folder of the dataset, or pass its arrays to from_arrays()."
        )
    of_hdf5 = {name: reader.arrays for name, reader in READERS.items() if reader.arrays}
    near = max(of_hdf5, key=lambda name: len(of_hdf5[name] & arrays))
    missing, shown = sorted(of_hdf5[near] - arrays), ", ".join(sorted(arrays)[:12]) or "none"
    return DatasetError(
        f"{path} is an HDF5 file of no format that is known by its arrays ({shown}); it "
        f"lacks {', '.join(missing)} for {near}: load it as '{near}:{path}', or pass its arrays to from_arrays()."
    )
