"""Small recordings of every format, and what can happen to their files."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from data_toys import episodes, pymarl_episode_arrays, write_h5
from format_toys import d4rl_arrays, ogbench_arrays, omiga_arrays, vault_arrays, write_minari, write_omar, write_vault
from table_toys import long_log, rows_of, write_table

from torchrl_marl_offline.data import DatasetError, load_dataset, validate

CHECKSUMMED = ("", "vault:")
"""Formats with checksums of all data: what loads must be what was written."""
READERS = ("", "d4rl:", "minari:", "ogbench:", "omar_npy:", "omiga_h5:", "pymarl:", "table:", "vault:")
"""The prefixes; ``""`` is our own folder."""
KINDS = ("flip", "flip", "flip many", "cut", "zero", "missing", "swap", "array", "declare", "text")


def original(prefix: str, folder: Path, monkeypatch: Any) -> Path:
    """Write one small recording of a format."""
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        "pymarl:": lambda: write_h5(folder / "pymarl.h5", pymarl_episode_arrays([3, 1, 4], longest=4)),
        "omiga_h5:": lambda: write_h5(folder / "omiga.h5", omiga_arrays([3, 1, 4])),
        "omar_npy:": lambda: write_omar(folder / "seed_0_data", episodes=2, length=25),
        "d4rl:": lambda: write_h5(folder / "d4rl.h5", d4rl_arrays()),
        "ogbench:": lambda: ogbench_file(folder / "ant.npz"),
        "vault:": lambda: write_vault(folder / "vault", vault_arrays([3, 1, 4])),
        "minari:": lambda: write_minari(folder, monkeypatch, [3, 2, 4]),
        "": lambda: episodes([3, 1, 4]).save(folder / "ours"),
        "table:": lambda: table_of_three_kinds(folder / "logs"),
    }
    return writers[prefix]()


def ogbench_file(path: Path) -> Path:
    """Write trajectories of a few steps."""
    np.savez(path, **ogbench_arrays([3, 1, 4]))
    return path


def table_of_three_kinds(folder: Path) -> Path:
    """One log in three files, an episode in each."""
    log = long_log((3, 2, 4), agents=(0, 1))
    for number, kind in enumerate((".csv", ".npz", ".parquet")):
        rows = [row for row, episode in enumerate(log["episode"]) if episode == number]
        write_table(folder / f"part-{number}{kind}", rows_of(log, rows))
    return folder


def damage(path: Path, rng: random.Random, kind: str | None = None) -> str:
    """Do one thing to a file, or to a file somewhere in a folder, and say what."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    file, kind = rng.choice(files), kind or rng.choice(KINDS)
    if kind == "array" and damage_array(file, rng):
        return f"array {file.name}"
    if kind == "declare" and declare(file, rng):
        return f"declare {file.name}"
    if kind == "text" and change_text(file, rng):
        return f"text {file.name}"
    content = bytearray(file.read_bytes())
    if kind == "missing":
        file.unlink()
    elif kind == "swap":
        file.write_bytes(rng.choice(files).read_bytes())
    else:
        file.write_bytes(damage_bytes(content, rng, kind))
    return f"{kind} {file.name}"


def damage_bytes(content: bytearray, rng: random.Random, kind: str) -> bytearray:
    if kind == "cut":
        del content[rng.randrange(len(content) + 1) :]
    elif kind == "zero" and content:
        start = rng.randrange(len(content))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif content:
        for _ in range(30 if kind == "flip many" else 1):
            # Headers are where a flipped bit does most: half of the flips are near the start.
            position = rng.randrange(min(len(content), 512) if rng.random() < 0.5 else len(content))
            content[position] ^= 1 << rng.randrange(8)
    return content


def damage_array(file: Path, rng: random.Random) -> bool:
    """Drop an array, or give it another shape, type or content, if the file has arrays by name."""
    if file.suffix == ".npy":
        np.save(file, mutated(np.load(file), rng))
        return True
    if file.suffix == ".npz":
        with np.load(file) as content:
            arrays = dict(content)
        name = rng.choice(sorted(arrays))
        np.savez(file, **arrays | {name: mutated(arrays[name], rng)})
        return True
    if file.suffix not in {".h5", ".hdf5"}:
        return False
    import h5py

    with h5py.File(file, "r+") as content:
        name = rng.choice(array_names(content))
        values = content[name][...]
        del content[name]
        if rng.random() < 0.7 and values.ndim:
            content[name] = mutated(values, rng)
    return True


def array_names(content: Any) -> list[str]:
    import h5py

    names: list[str] = []
    content.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


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


def declare(file: Path, rng: random.Random) -> bool:
    """Let a file declare one or all of its arrays far larger than they are."""
    if file.suffix in {".h5", ".hdf5"}:
        declare_arrays(file, rng, 10 ** rng.randrange(6, 10))
        return True
    if file.suffix == ".npy":
        file.write_bytes(declared(np.load(file), rng))
        return True
    if file.suffix == ".npz":
        with np.load(file) as content:
            arrays = dict(content)
        chosen = rng.choice(sorted(arrays))
        with zipfile.ZipFile(file, "w") as archive:
            for name, values in arrays.items():
                stream = io.BytesIO()
                np.save(stream, values)
                archive.writestr(f"{name}.npy", declared(values, rng) if name == chosen else stream.getvalue())
        return True
    return file.suffix == ".json" and change_text(file, rng, numbers=True)


def declared(values: np.ndarray, rng: random.Random) -> bytes:
    """Return an array's file that declares up to 10^13 rows."""
    stream, shape = io.BytesIO(), [*values.shape]
    shape[rng.randrange(len(shape))] = 10 ** rng.randrange(6, 14)
    header = {"descr": values.dtype.str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + values.tobytes()


def declare_arrays(file: Path, rng: random.Random, rows: int) -> None:
    import h5py

    with h5py.File(file, "r+") as content:
        names = array_names(content)
        chunked = rng.random() < 0.5
        for name in names if rng.random() < 0.5 else [rng.choice(names)]:
            values = content[name][...]
            del content[name]
            shape = (rows, *values.shape[1:])
            data = content.create_dataset(name, shape, values.dtype, chunks=(64, *shape[1:]) if chunked else None)
            if chunked:
                data[: len(values)] = values


def change_text(file: Path, rng: random.Random, *, numbers: bool = False) -> bool:
    """Change a number or a word of a JSON file, in what it holds or in its text."""
    if file.suffix != ".json":
        return False
    text = file.read_text()
    places = list(re.finditer(r"-?\d+(\.\d+)?" if numbers else r"-?\d+(\.\d+)?|\"[^\"]*\"|true|false|null", text))
    if not places:
        return False
    place = rng.choice(places)
    values = ["-1", "0", "1e400", "NaN", '""', '"../x"', "null", "[]", "{}", str(10 ** rng.randrange(6, 30))]
    file.write_text(text[: place.start()] + (values[-1] if numbers else rng.choice(values)) + text[place.end() :])
    if rng.random() < 0.5:
        unseal(file)
    return True


def unseal(file: Path) -> None:
    """Take the checksum out of a header of ours: whoever changes it can make a new one."""
    try:
        content = json.loads(file.read_text())
    except ValueError:
        return
    if isinstance(content, dict) and content.pop("header", None):
        file.write_text(json.dumps(content))


def try_one(prefix: str, whole: Path, place: Path, rng: random.Random, kind: str | None = None) -> tuple[str, str]:
    """Damage a copy of a recording and load it; return ``"loads"`` or ``"refused"``, and what was done to it.

    Raises:
        AssertionError: anything else came of it.
    """
    shutil.rmtree(place, ignore_errors=True)
    copy = place / whole.name
    place.mkdir(parents=True)
    (shutil.copytree if whole.is_dir() else shutil.copy)(whole, copy)
    what = damage(copy, rng, kind)
    try:
        dataset = load_dataset(f"{prefix}{copy}")
        validate(dataset)
    except DatasetError as error:
        assert "\n" not in str(error).strip(), (prefix, what, str(error))
        return "refused", what
    except Exception as error:
        raise AssertionError(f"{prefix}{what}: {type(error).__name__}: {error}") from error
    if prefix in CHECKSUMMED and not (prefix == "vault:" and what.startswith("swap")) and "text" not in what:
        expected = load_dataset(f"{prefix}{whole}").data
        assert expected.shape == dataset.data.shape and (expected == dataset.data).all(), (prefix, what)
    return "loads", what
