"""The files of a table: Parquet, CSV and npz, read as columns of plain numbers or text, a block of rows at a time.

Nothing in a file is executed: objects, which are pickles in an npz, are refused before they are read. What a file
becomes in memory is bounded by its own size: a few kilobytes cannot be declared to become terabytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_marl_offline.core.regular_files import files_below, kind_of, open_regular, require_regular
from torchrl_marl_offline.core.zip_files import ArchiveError, check_members
from torchrl_marl_offline.data.formats.table_columns import natural
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading
from torchrl_marl_offline.data.transitions.values import check_type

SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".npz")
"""Names that the files of a folder may have."""
_PARQUET, _ZIP, _GZIP = b"PAR1", b"PK", b"\x1f\x8b"
_ROWS = 2**15
_LARGER, _SLACK_BYTES = 1000, 2**26
"""How many times its own size a file may become, and what any file may."""
_EMPTY = frozenset(("", "nan", "na", "n/a", "null", "none"))
_TRUTH = {"true": 1, "false": 0}
_HEADER_BYTES, _LONGEST_HEADER = 2**16, 2**24


@dataclass(frozen=True)
class Cells:
    """One column in some rows.

    Attributes:
        values: ``[rows]`` or ``[rows, k]`` bool, integer or float; of a label integer, float or ``str`` objects.
        empty: ``[rows]`` bool, where nothing stands there; ``None`` where every row has a value.
        whole: whether floats are integers of a column that has empty rows.
    """

    values: np.ndarray
    empty: np.ndarray | None = None
    whole: bool = False


@dataclass
class LogTable:
    """One file, opened.

    Attributes:
        path: of the file.
        names: of its columns, in their order.
        notes: text that the file's writer left for this library.
        lines: CSV: the line of each row that was read so far.
    """

    path: Path
    names: tuple[str, ...]
    notes: str | None = None
    lines: array | None = None
    _opened: Any = field(default=None, repr=False)

    def blocks(self, columns: Sequence[str], labels: Iterable[str]) -> Iterator[dict[str, Cells]]:
        """Yield the rows of some columns.

        Args:
            columns: to be read.
            labels: those whose values may be text.
        """
        raise NotImplementedError

    def place(self, row: int) -> str:
        """Say where a row is: ``"logs.csv, line 7"``."""
        return f"{self.path}, row {row}" if self.lines is None else f"{self.path}, line {self.lines[row]}"


def open_table(path: Path) -> LogTable:
    """Open one file; its first bytes tell its format.

    Raises:
        DatasetError: it is of no format that is known, damaged, or has two columns of one name.
        ImportError: it is a Parquet file, and pyarrow is not installed.
    """
    with reading(path):
        with open_regular(path) as stream:
            magic = stream.read(4)
        if magic == _PARQUET:
            table: LogTable = _open_parquet(path)
        elif magic[:2] == _ZIP:
            table = open_npz(path)
        else:
            table = _open_csv(path, packed=magic[:2] == _GZIP)
        doubles = [name for name in table.names if table.names.count(name) > 1]
        if doubles:
            raise DatasetError(f"{path} has two columns {doubles[0]!r}; give each a name of its own.")
        return table


def table_files(path: Path) -> list[Path]:
    """Return the file, or the files of a folder in the order of their names, ``part_2`` before ``part_10``.

    Raises:
        DatasetError: there is none, or something else lies in the folder.
    """
    if not path.exists():
        raise DatasetError(f"{path} does not exist; give a Parquet, CSV or npz file, or a folder of them.")
    if not path.is_dir():
        with reading(path):
            return [require_regular(path)]
    with reading(path):
        found = sorted(files_below(path, _entries(path)), key=lambda file: natural(file.name))
        found = [file for file in found if is_table_name(file.name)]
    if not found:
        raise DatasetError(f"{path} holds no {', '.join(SUFFIXES)} file; give the folder of the table's files.")
    return found


def _entries(path: Path) -> list[str]:
    entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith((".", "_")))
    folders = [name for name in entries if (path / name).is_dir()]
    if folders:
        raise DatasetError(f"{path} holds the folder {folders[0]}; give a folder whose files are the table's.")
    return entries


def is_table_name(name: str) -> bool:
    """Say whether a file's name is one of a table."""
    return name.lower().endswith(SUFFIXES)


def looks_like_table(path: Path) -> bool:
    """Say whether a file is a table by its first bytes; a text is one where its first line names three columns."""
    if not path.exists() or kind_of(path) is not None:
        return False
    with open_regular(path) as stream:
        magic = stream.read(4)
        if magic == _PARQUET:
            return True
        stream.seek(0)
        if magic[:2] == _ZIP:
            return _holds_arrays(stream)
        if magic[:2] == _GZIP:
            return path.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz"))
        head = stream.read(_HEADER_BYTES)
    if path.name.lower().endswith((".csv", ".tsv")):
        return True
    first = head.split(b"\n", 1)[0]
    try:
        text = first.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    names = text.strip().split(_delimiter(text))
    return len(names) > 2 and text.strip().isprintable() and all(_is_name(name) for name in names)


def _holds_arrays(stream: Any) -> bool:
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def _is_name(text: str) -> bool:
    text = text.strip().strip('"')
    return bool(text) and (text[0].isalpha() or text[0] == "_") and len(text) < 100


def _check_growth(path: Path, size: int) -> None:
    most = _LARGER * path.stat().st_size + _SLACK_BYTES
    if size > most:
        raise DatasetError(
            f"{path} of {path.stat().st_size:,} bytes would become {size:,} bytes; if that is right, write it anew as "
            "several files, or without compression."
        )


# Parquet


class _Parquet(LogTable):
    def blocks(self, columns: Sequence[str], labels: Iterable[str]) -> Iterator[dict[str, Cells]]:
        import pyarrow as pa

        labels, seen = set(labels), 0
        try:
            for batch in self._opened.iter_batches(_ROWS, columns=list(columns), use_threads=False):
                batch.validate(full=True)
                found = {
                    name: _arrow_cells(batch.column(name), name, self, seen, is_label=name in labels)
                    for name in columns
                }
                seen += len(batch)
                yield found
        except pa.ArrowException as error:
            raise DatasetError(f"{self.path} cannot be read ({_short(error)}); fetch it again.") from error


def _open_parquet(path: Path) -> LogTable:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"{path} is a Parquet file, which needs pyarrow; pip install 'torchrl-marl-offline[tables]', or write the "
            "table as CSV or npz."
        ) from error
    try:
        file = pq.ParquetFile(path, memory_map=False)
        facts, schema = file.metadata, file.schema_arrow
        rows, groups = facts.num_rows, [facts.row_group(index) for index in range(facts.num_row_groups)]
        stored = [group.column(index).total_uncompressed_size for group in groups for index in range(group.num_columns)]
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{path} is a damaged or truncated Parquet file ({_short(error)}); fetch it again."
        ) from error
    if rows != sum(group.num_rows for group in groups) or min([rows, *stored], default=0) < 0:
        raise DatasetError(f"{path} states {rows:,} rows, its parts others; fetch it again.")
    _check_growth(path, max(sum(stored), 4 * rows * max(1, sum(map(_width, schema.types)))))
    notes = (schema.metadata or {}).get(b"torchrl_marl_offline")
    return _Parquet(path, tuple(schema.names), None if notes is None else notes.decode("utf-8", "replace"), None, file)


def _width(kind: Any) -> int:
    """Return how many numbers each row has by the schema alone, also where it is empty."""
    import pyarrow as pa

    return kind.list_size * _width(kind.value_type) if pa.types.is_fixed_size_list(kind) else 1


def _arrow_cells(column: Any, name: str, table: LogTable, start: int, *, is_label: bool) -> Cells:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    empty = None if column.null_count == 0 else column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_null(kind):
        return Cells(np.full(len(column), np.nan), np.ones(len(column), bool), whole=True)
    if is_label and pa.types.is_decimal(kind):  # which may have more digits than a float
        column, kind = column.cast(pa.string()), pa.string()
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _arrow_lists(column, empty, name, table, start)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view":
        if not is_label:
            row = int(np.argmin(empty)) if empty is not None else 0
            raise _is_text(table, start + row, name, column[row].as_py())
        return Cells(np.array(column.to_pylist(), dtype=object), empty)
    if is_label and pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        column = _arrow_times(column)
        kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
        kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise _is_no_number(table, name, str(kind), "numbers or text are" if is_label else "numbers are")
    whole = not pa.types.is_floating(kind)
    if empty is not None and whole:
        if is_label:
            column = column.fill_null(False if pa.types.is_boolean(kind) else 0)
        else:
            column = column.cast(pa.int8() if pa.types.is_boolean(kind) else kind).cast(pa.float64(), safe=False)
    return Cells(column.to_numpy(zero_copy_only=False), empty, whole)


def _arrow_times(column: Any) -> Any:
    """Return times as whole numbers, of one unit in all files that have one type."""
    import pyarrow as pa

    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ns"))
    if pa.types.is_time32(column.type):
        column = column.cast(pa.int32())
    return column.cast(pa.int64(), safe=False)


def _arrow_lists(column: Any, empty: np.ndarray | None, name: str, table: LogTable, start: int) -> Cells:
    """Return ``[rows, k]`` of lists of one length; rows without a list are NaN."""
    import pyarrow as pa

    kind = column.type.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise _is_no_number(table, name, str(column.type))
    lengths = np.asarray(column.value_lengths().fill_null(-1)) if not _is_fixed(column) else None
    present = np.ones(len(column), bool) if empty is None else ~empty
    if lengths is None:
        width = column.type.list_size
    else:
        found = np.unique(lengths[present])
        if len(found) > 1:
            row = int(np.flatnonzero(present & (lengths != lengths[present][0]))[0])
            raise DatasetError(
                f"{table.place(start + row)}: {name!r} is a list of {lengths[row]} numbers, and of "
                f"{lengths[present][0]} before; give lists of one length."
            )
        width = int(found[0]) if len(found) else 0
    flat = column.filter(pa.array(present)).flatten() if empty is not None else column.flatten()
    values = flat.to_numpy(zero_copy_only=False)
    if values.dtype == object:  # bools with nulls
        values = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if len(values) != width * int(present.sum()):
        raise DatasetError(f"{table.path}: the lists of {name!r} are damaged; fetch it again.")
    if empty is None:
        return Cells(values.reshape(len(column), width))
    full = np.full((len(column), width), np.nan, np.result_type(values.dtype, np.float32))
    full[present] = values.reshape(-1, width)
    return Cells(full, empty, values.dtype.kind in "iub")


def _is_fixed(column: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_fixed_size_list(column.type)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _is_no_number(table: LogTable, name: str, kind: str, wanted: str = "numbers are") -> DatasetError:
    return DatasetError(
        f"{table.path}: the column {name!r} holds {kind[:60]}, and {wanted} wanted there; give these, or leave it out "
        "of the column map."
    )


def _is_text(table: LogTable, row: int, name: str, text: Any) -> DatasetError:
    number = str(text).strip()
    decimal = "," in number and number.lstrip("+-").replace(",", "").isdigit()
    remedy = "write decimals with a point" if decimal else "give numbers (or true and false)"
    return DatasetError(
        f"{table.place(row)}: {name!r} holds the text {number[:40]!r}, and a number is wanted there; {remedy}, or "
        "leave the column out of the column map."
    )


# npz


class _Npz(LogTable):
    def blocks(self, columns: Sequence[str], labels: Iterable[str]) -> Iterator[dict[str, Cells]]:
        labels, found = set(labels), {}
        with open_regular(self.path) as stream, zipfile.ZipFile(stream) as archive:
            for name in columns:
                with archive.open(f"{name}.npy") as member:
                    values = np.lib.format.read_array(member, allow_pickle=False)
                if values.dtype.kind in "US":
                    if name not in labels:
                        raise _is_text(self, 0, name, values.reshape(-1)[0] if values.size else "")
                    texts = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
                    found[name] = Cells(texts.astype(object))
                    continue
                if name in labels and values.dtype.kind in "mM":
                    found[name] = Cells(values.astype(np.int64), np.isnat(values))
                    continue
                check_type(values.dtype, f"{self.path}: {name!r}")
                found[name] = Cells(_plain(values))
        lengths = {len(cells.values) for cells in found.values()}
        if len(lengths) > 1:
            told = ", ".join(f"{name} {len(cells.values)}" for name, cells in list(found.items())[:6])
            raise DatasetError(f"{self.path} has columns of unequal length ({told}); give each one value for each row.")
        yield found


def _plain(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f" and values.dtype not in (np.float16, np.float32, np.float64):
        return values.astype(np.float64)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def open_npz(path: Path) -> LogTable:
    """Open an npz archive, after a look at what its arrays declare.

    Raises:
        DatasetError: it is damaged, or holds what ``numpy.savez`` does not write.
    """
    with open_regular(path) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = check_members(archive, ratio=_LARGER)
                names = [_array_name(path, archive, member) for member in members]
        except ArchiveError as error:
            raise DatasetError(f"{path} {error}; write it anew with numpy.savez.") from error
        except zipfile.BadZipFile as error:
            raise DatasetError(
                f"{path} is a damaged or truncated npz file ({_short(error)}); fetch it again."
            ) from error
    return _Npz(path, tuple(names))


def _array_name(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    """Return the name of an array after a look at its type and its declared size."""
    name = member.filename.removesuffix(".npy")
    if name == member.filename:
        raise DatasetError(f"{path} holds {name!r}, which is no array; write it anew with numpy.savez.")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise DatasetError(f"{path} holds {name!r} in a form that numpy.savez does not write; write it anew.")
        shape, _, dtype = read(stream)
        header = stream.tell()
    if dtype.hasobject:
        raise DatasetError(
            f"{path}: {name!r} holds Python objects, which are never read from a file; write arrays of numbers."
        )
    if header + math.prod(shape) * dtype.itemsize != member.file_size:
        raise DatasetError(f"{path} declares {name!r} as {shape}, which it does not hold; fetch it again.")
    if len(shape) not in (1, 2):
        raise DatasetError(
            f"{path}: {name!r} has shape {shape}, and a column has one value, or one list, for each row; pass arrays "
            "of this kind to from_arrays()."
        )
    return name


# CSV


class _Csv(LogTable):
    def blocks(self, columns: Sequence[str], labels: Iterable[str]) -> Iterator[dict[str, Cells]]:
        labels, places = set(labels), {name: self.names.index(name) for name in columns}
        self.lines, width, seen = array("q"), len(self.names), 0
        with _text(self.path, packed=self._opened[0]) as text:
            rows = csv.reader(text, delimiter=self._opened[1], strict=True)
            next(rows)  # the names
            while block := self._rows(rows, width):
                across = list(zip(*block))
                yield {
                    name: _labels(across[place]) if name in labels else _numbers(across[place], name, self, seen)
                    for name, place in places.items()
                }
                seen += len(block)

    def _rows(self, rows: Any, width: int) -> list[list[str]]:
        """Return the next rows, as far as there are some."""
        block = []
        try:
            for row in islice(filter(None, rows), _ROWS):
                self.lines.append(rows.line_num)
                if len(row) != width:
                    raise DatasetError(
                        f"{self.path}, line {rows.line_num} has {len(row)} values for {width} columns; give each row "
                        "one for each column."
                    )
                block.append(row)
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"{self.path}, after line {rows.line_num} is no text in UTF-8 ({_short(error)}); save it in UTF-8."
            ) from error
        except csv.Error as error:
            raise DatasetError(
                f"{self.path}, line {rows.line_num} is no line of a CSV file ({_short(error)}); look for a quote that "
                "is not closed."
            ) from error
        return block


def _text(path: Path, *, packed: bool) -> io.TextIOWrapper:
    stream: Any = open_regular(path)
    if packed:
        stream = _Bounded(stream, path)
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


class _Bounded(io.RawIOBase):
    """What is unpacked, as far as its size is likely."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream, self._packed = stream, gzip.GzipFile(fileobj=stream)
        self._path, self._size = path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._packed.read(len(buffer))
        self._size += len(content)
        _check_growth(self._path, self._size)
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._packed.close()
        self._stream.close()
        super().close()


def _open_csv(path: Path, *, packed: bool) -> LogTable:
    try:
        with _text(path, packed=packed) as text:
            first = text.readline(_LONGEST_HEADER)
            delimiter = _delimiter(first)
            names = next(csv.reader(chain([first], text), delimiter=delimiter, strict=True), [])  # names may have lines
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path} is no Parquet, npz or CSV file in UTF-8 ({_short(error)}); save it in UTF-8, or give one of them."
        ) from error
    except (csv.Error, EOFError, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path} is no Parquet, npz or CSV file ({_short(error)}); give one of them.") from error
    names = [name.strip() for name in names]
    if len(names) < 2 or not all(names):
        if names[1:] and not names[0]:  # the index of a data frame
            names[0] = "index"
        else:
            what = f"begins with the line {first.strip()[:60]!r}" if names else "is empty"
            raise DatasetError(f"{path} {what}, which names no columns; give a Parquet, npz or CSV file with a header.")
        if not all(names):
            raise DatasetError(f"{path} has a column without a name; name every column in its first line.")
    numbers = [name for name in names if name.replace(".", "", 1).lstrip("-").isdigit()]
    if 2 * len(numbers) > len(names):
        raise DatasetError(f"{path} has numbers in its first line, {numbers[0]!r}; name the columns there.")
    return _Csv(path, tuple(names), None, None, (packed, delimiter))


def _delimiter(line: str) -> str:
    return max(",;\t|", key=line.count)


def _labels(texts: Sequence[str]) -> Cells:
    empty = np.array([text.strip().lower() in _EMPTY for text in texts])
    return Cells(np.array([text.strip() for text in texts], dtype=object), empty if empty.any() else None)


def _numbers(texts: Sequence[str], name: str, table: LogTable, start: int) -> Cells:
    """Return integers, bools or floats, whichever all texts of a block are."""
    if any("_" in text for text in texts):  # which Python takes for digits' separators
        row = next(row for row, text in enumerate(texts) if "_" in text)
        raise _is_text(table, start + row, name, texts[row])
    try:
        return Cells(np.array([int(text) for text in texts], dtype=np.int64))
    except (ValueError, OverflowError):
        pass
    try:
        values = np.array(texts, dtype=np.float64)
        return Cells(values, np.isnan(values) if np.isnan(values).any() else None)
    except ValueError:
        pass
    plain = [text.strip().lower() for text in texts]
    if all(text in _TRUTH for text in plain):
        return Cells(np.array([_TRUTH[text] for text in plain], dtype=bool))
    values, whole = np.full(len(plain), np.nan), True
    for row, text in enumerate(plain):
        if text in _EMPTY:
            continue
        try:
            values[row] = _TRUTH[text] if text in _TRUTH else float(text)
            whole &= text in _TRUTH or text.lstrip("+-").isdigit()
        except ValueError:
            raise _is_text(table, start + row, name, texts[row]) from None
    return Cells(values, np.isnan(values), whole)
