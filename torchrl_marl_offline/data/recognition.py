"""Which format a path holds, told by its content."""

from __future__ import annotations

import re
from pathlib import Path

from torchrl_marl_offline.core.regular_files import lies_at
from torchrl_marl_offline.data.hdf5 import open_hdf5
from torchrl_marl_offline.data.storage import is_dataset_folder
from torchrl_marl_offline.data.validation import DatasetError, reading
from torchrl_marl_offline.data.vault import is_vault

OWN = ""
"""The format of the folders that this library writes."""

HDF5_NAMES = {
    "pymarl": {"obs", "actions", "reward", "filled"},
    "omiga_h5": {"s", "o", "a", "r", "d"},
    "d4rl": {"observations", "actions", "rewards", "terminals"},
}
"""Arrays that a file of each format has."""


def recognised(path: Path) -> tuple[str, Path]:
    """Return the format of a file or folder and the path that its reader wants.

    Args:
        path: what is there.

    Raises:
        DatasetError: nothing is there, or nothing that is known.
    """
    if path.is_dir():
        found = _of_folder(path)
        if found is not None:
            return found
        inner = sorted(entry.name for entry in path.iterdir() if is_vault(entry))
        if inner:
            raise DatasetError(f"{path} holds the vaults {', '.join(inner)}; name one of them, {path / inner[0]}.")
    elif path.exists():
        return _of_file(path)
    what = "is no dataset folder" if path.exists() else "does not exist"
    formats = ", ".join(f"'{name}:PATH'" for name in ("pymarl", "vault", "omiga_h5", "omar_npy", "minari", "d4rl"))
    raise DatasetError(
        f"{path} {what}; give {formats}, a published set such as 'og_marl:smac_v1/3m/Good', or a folder that "
        "OfflineDataset.save wrote."
    )


def _of_folder(path: Path) -> tuple[str, Path] | None:
    if is_dataset_folder(path):
        return OWN, path
    if is_vault(path):
        return "vault", path
    if lies_at(path / "data" / "main_data.hdf5"):
        return "minari", path
    if lies_at(path / "main_data.hdf5"):
        return "minari", path.parent
    names = [entry.name for entry in path.iterdir()]
    if any(re.fullmatch(r"obs_\d+\.npy|seed_\d+_data", name) for name in names):
        return "omar_npy", path
    if any(re.fullmatch(r"part_\d+\.(h5|hdf5)", name) for name in names):
        return "pymarl", path
    return None


def _of_file(path: Path) -> tuple[str, Path]:
    if path.name == "main_data.hdf5":
        return "minari", path.parent.parent
    try:
        with reading(path), open_hdf5(path, "HDF5") as file:
            names = sorted(file)
    except DatasetError as error:
        if "is not an HDF5 file" not in str(error):
            raise
        raise DatasetError(
            f"{path} is not an HDF5 file, as those of pymarl:, omiga_h5: and d4rl: are, and no other single file is "
            "known; give the folder of the dataset, or pass its arrays to from_arrays()."
        ) from error
    fitting = [name for name, arrays in HDF5_NAMES.items() if arrays <= set(names)]
    if len(fitting) == 1:
        return fitting[0], path
    near = max(HDF5_NAMES, key=lambda name: len(HDF5_NAMES[name] & set(names)))
    missing = sorted(HDF5_NAMES[near] - set(names))
    raise DatasetError(
        f"{path} is an HDF5 file of no format that is known by its arrays ({', '.join(names[:12]) or 'none'}); it "
        f"lacks {', '.join(missing)} for {near}: load it as '{near}:{path}', or pass its arrays to from_arrays()."
    )
