"""Damaged files through every reader: each ends in a DatasetError or in a dataset that keeps to the layout.

``TORCHRL_MARL_OFFLINE_FUZZ`` sets the number of files, 100 by default. A flipped bit inside a number of a format
without checksums gives another number, which nothing can notice; what must never happen is a crash, a hang, another
exception, or a dataset that :func:`validate` would refuse; and, where the format has checksums, other data. (A vault's
chunks have checksums, its files have not: a whole file in another's place is not noticed.)
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_toys import episodes, pymarl_episode_arrays, write_h5
from format_toys import d4rl_arrays, omiga_arrays, vault_arrays, write_minari, write_omar, write_vault

from torchrl_marl_offline.data import DatasetError, load_dataset, validate

FILES = int(os.environ.get("TORCHRL_MARL_OFFLINE_FUZZ", "100"))


CHECKSUMMED = ("", "vault:")
"""Formats with checksums of all data: what loads must be what was written."""


@pytest.fixture
def originals(tmp_path, monkeypatch) -> dict[str, Path]:
    """One small recording per source prefix; ``""`` is our own folder."""
    for library in ("h5py", "tensorstore", "minari"):
        pytest.importorskip(library)
    folder = tmp_path / "originals"
    folder.mkdir()
    return {
        "pymarl:": write_h5(folder / "pymarl.h5", pymarl_episode_arrays([3, 1, 4], longest=4)),
        "omiga_h5:": write_h5(folder / "omiga.h5", omiga_arrays([3, 1, 4])),
        "omar_npy:": write_omar(folder / "seed_0_data", episodes=2, length=25),
        "d4rl:": write_h5(folder / "d4rl.h5", d4rl_arrays()),
        "vault:": write_vault(folder / "vault", vault_arrays([3, 1, 4])),
        "minari:": write_minari(folder, monkeypatch, [3, 2, 4]),
        "": episodes([3, 1, 4]).save(folder / "ours"),
    }


def damage(path: Path, rng: random.Random) -> str:
    """Do one thing to a file, or to a file somewhere in a folder, and say what."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    kind = rng.choice(["flip", "flip", "flip many", "cut", "zero", "missing", "swap", "array"])
    if kind == "array":
        if not damage_array(file, rng):
            kind = "flip"
        else:
            return f"array {file.name}"
    if kind == "missing":
        file.unlink()
        return f"missing {file.name}"
    if kind == "swap":
        other = rng.choice(files).read_bytes()
        file.write_bytes(other)
        return f"swap {file.name}"
    if kind == "cut":
        del content[rng.randrange(len(content) + 1) :]
    elif kind == "zero" and content:
        start = rng.randrange(len(content))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif content:
        for _ in range(1 if kind == "flip" else 30):
            # Headers are where a flipped bit does most: half of the flips are near the start.
            position = rng.randrange(min(len(content), 512) if rng.random() < 0.5 else len(content))
            content[position] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return f"{kind} {file.name}"


def damage_array(file: Path, rng: random.Random) -> bool:
    """Drop an array, or give it another shape, type or content, if the file has arrays by name."""
    if file.suffix == ".npy":
        array = np.load(file)
        np.save(file, mutated(array, rng))
        return True
    if file.suffix not in {".h5", ".hdf5"}:
        return False
    import h5py

    names: list[str] = []
    with h5py.File(file, "r+") as content:
        content.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = rng.choice(names)
        values = content[name][...]
        del content[name]
        if rng.random() < 0.7 and values.ndim:
            content[name] = mutated(values, rng)
    return True


def mutated(values: np.ndarray, rng: random.Random) -> np.ndarray:
    kind = rng.choice(["short", "empty", "axis", "text", "nan", "huge", "negative"])
    if kind == "short":
        return values[:-1]
    if kind == "empty":
        return values[:0]
    if kind == "axis":
        return values[..., None]
    if kind == "text":
        return np.full(values.shape, b"x")
    if kind == "nan":
        return np.full(values.shape, np.nan)
    return np.full(values.shape, 10**9 if kind == "huge" else -1, dtype=np.int64)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # NumPy's about NaN, Minari's about versions
def test_damaged_files_end_in_our_error_or_a_correct_load(originals, tmp_path):
    rng = random.Random(0)
    outcomes: Counter = Counter()
    for number in range(FILES):
        prefix, original = rng.choice(sorted(originals.items()))
        copy = tmp_path / "copy" / original.name
        copy.parent.mkdir()
        (shutil.copytree if original.is_dir() else shutil.copy)(original, copy)
        what = damage(copy, rng)
        try:
            dataset = load_dataset(f"{prefix}{copy}")
            validate(dataset)
            if prefix in CHECKSUMMED and not (prefix == "vault:" and what.startswith("swap")):
                whole = load_dataset(f"{prefix}{original}").data
                assert whole.shape == dataset.data.shape and (whole == dataset.data).all(), (number, what)
            outcomes[prefix, "loads"] += 1
        except AssertionError:
            raise
        except DatasetError as error:
            assert "\n" not in str(error).strip(), (number, what, str(error))
            outcomes[prefix, "refused"] += 1
        except Exception as error:
            raise AssertionError(f"file {number}, {prefix}{what}: {type(error).__name__}: {error}") from error
        shutil.rmtree(copy.parent)
    print(dict(outcomes))
    assert outcomes["", "refused"] > 0 and sum(outcomes.values()) == FILES
    assert len({prefix for prefix, _ in outcomes}) == 7 or FILES < 60
