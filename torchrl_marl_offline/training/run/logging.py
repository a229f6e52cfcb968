"""Where the numbers of a run go: CSV always, TensorBoard and Weights & Biases on request.

``train.csv`` has one row per logging point, ``eval.csv`` one per evaluation of one evaluator (column ``evaluator``). A
column that appears later widens the header; earlier rows leave it empty.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.files import append_whole, write_text_atomic
from torchrl_marl_offline.core.outputs import LoggerName
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.regular_files import read_text
from torchrl_marl_offline.training.run.experiment_loggers import (
    check_loggers,
    log_video_file,
    tensorboard_logger,
    wandb_logger,
)

PROJECT = "torchrl-marl-offline"
Row = dict[str, Any]


class CsvTable:
    """A table of rows with a ``step`` column, kept in memory and, where ``path`` is given, on disk after every row.

    Args:
        path: the CSV file; its rows are read where it exists. ``None`` keeps the table in memory alone.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else user_path(path)
        self.rows: list[Row] = read_csv(self.path) if self.path is not None and self.path.exists() else []
        self._columns = list(dict.fromkeys(column for row in self.rows for column in row))

    def append(self, row: Row) -> None:
        """Add a row and hand it to the operating system, so that a killed process loses nothing that was logged."""
        self.rows.append(row)
        new = [column for column in row if column not in self._columns]
        self._columns += new
        if self.path is None:
            return
        if new or not self.path.exists():
            self._rewrite()
        else:
            append_whole(self.path, self._format([row]).encode())

    def truncate(self, step: int) -> None:
        """Drop the rows after ``step``: a run that goes on from there will write them again."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        if self.path is not None and self._columns:
            self._rewrite()

    def _rewrite(self) -> None:
        write_text_atomic(self.path, self._format([dict(zip(self._columns, self._columns)), *self.rows]))

    def _format(self, rows: list[Row]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue()


class CsvError(ValueError):
    """A run's CSV file is damaged; the message names it and the remedy.

    Attributes:
        what: the file, and what is wrong with it, without the remedy.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what}; restore it, or move it away and run this again: the run goes on from its checkpoint, and the "
            "table lacks the rows before that."
        )

    def __reduce__(self) -> tuple[type[CsvError], tuple[str]]:
        return CsvError, (self.what,)


def read_csv(path: str | Path) -> list[Row]:
    """Read a run's CSV file: numbers as float, ``step`` as int, no empty cells, no half-written last line.

    Raises:
        CsvError: it is damaged.
    """
    try:
        return _read_rows(Path(path))
    except (ValueError, csv.Error) as error:  # a UnicodeDecodeError is a ValueError
        raise CsvError(f"{path} is damaged ({' '.join(str(error).split())})") from error


def _read_rows(path: Path) -> list[Row]:
    text = read_text(path)
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]), strict=True)
    columns = reader.fieldnames or ["step"]
    if "step" not in columns or len(set(columns)) < len(columns):
        raise ValueError(f"line 1 is no header of a run's table: {','.join(columns)[:60]}")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has not the {len(columns)} cells of the header")
        try:
            rows.append({column: _parse(column, cell) for column, cell in row.items() if cell != ""})
        except ValueError as error:
            raise ValueError(f"line {reader.line_num}: {row['step'][:60]!r} is no step") from error
        if "step" not in rows[-1]:
            raise ValueError(f"line {reader.line_num} has no step")
    for column in columns:
        cells = [row[column] for row in rows if column in row]
        words = [cell for cell in cells if isinstance(cell, str)]
        if words and len(words) < len(cells):  # words are in columns of words alone
            raise ValueError(f"{words[0][:60]!r} stands among the numbers of {column}")
    return rows


def _parse(column: str, cell: str) -> Any:
    if column == "step":
        return int(cell)
    try:
        return float(cell)
    except ValueError:
        return cell


class RunLogger:
    """One place to write to, fanned out to the CSV files and to TorchRL's loggers.

    Args:
        output: folder of ``train.csv`` and ``eval.csv``; ``None`` keeps the rows in memory.
        name: the run's name in TensorBoard and Weights & Biases; by default the folder's.
        tensorboard: also write TensorBoard events to ``output/tensorboard``.
        wandb: also log to Weights & Biases. ``"offline"`` needs no network or account (``wandb sync`` sends it later);
            ``True`` is offline where the environment variable ``WANDB_MODE`` is, else online.
        project: the Weights & Biases project.
        group: the runs of Weights & Biases that this one belongs with, for instance a study's.

    Raises:
        ImportError: if a logger is asked for whose package is not installed.
        ValueError: if one is asked for without an ``output`` folder.
    """

    @checked
    def __init__(
        self,
        output: str | Path | None = None,
        *,
        name: str | None = None,
        tensorboard: bool = False,
        wandb: bool | str = False,
        project: str = PROJECT,
        group: str | None = None,
    ) -> None:
        self.output = None if output is None else user_path(output)
        if self.output is None and (tensorboard or wandb):
            raise ValueError("TensorBoard and Weights & Biases need a folder to write to; give RunLogger an output.")
        if wandb not in (False, True, "online", "offline"):
            raise ValueError(f'wandb must be False, True, "online" or "offline", got {wandb!r}.')
        self.train = CsvTable(None if self.output is None else self.output / "train.csv")
        self.eval = CsvTable(None if self.output is None else self.output / "eval.csv")
        name = name or (self.output.name if self.output is not None else "run")
        self._loggers = []
        if tensorboard:
            self._loggers.append(tensorboard_logger(self.output, name))
        if wandb:
            self._loggers.append(wandb_logger(self.output, name, mode=wandb, project=project, group=group))

    @classmethod
    @checked
    def named(
        cls,
        names: Sequence[LoggerName],
        output: str | Path | None,
        *,
        name: str | None = None,
        group: str | None = None,
    ) -> RunLogger:
        """Return a logger to what is named, ``"csv"``, ``"tensorboard"`` or ``"wandb"``; to CSV files in any case.

        Raises:
            ValueError: a name that there is not.
        """
        check_loggers(names)
        return cls(output, name=name, tensorboard="tensorboard" in names, wandb="wandb" in names, group=group)

    def log_train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row to ``train.csv``; elsewhere the names are ``train/<metric>``."""
        self.train.append({"step": step, **metrics})
        self._fan_out("train", metrics, step)

    def log_eval(self, step: int, evaluator: str, metrics: Mapping[str, float]) -> None:
        """Add a row to ``eval.csv``; elsewhere the names are ``eval/<evaluator>/<metric>``."""
        self.eval.append({"step": step, "evaluator": evaluator, **metrics})
        self._fan_out(f"eval/{evaluator}", metrics, step)

    def log_video(self, step: int, name: str, path: str | Path) -> None:
        """Show a video file, GIF or MP4, in the loggers that can show it, as ``video/<name>``."""
        for logger in self._loggers:
            log_video_file(logger, f"video/{name}", Path(path), step)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Tell the loggers the settings of the run, for their tables of hyperparameters."""
        flat = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in config.items()}
        for logger in self._loggers:
            logger.log_hparams(flat)

    def truncate(self, step: int) -> None:
        """Drop the CSV rows after ``step``; what TensorBoard or Weights & Biases already hold stays."""
        self.train.truncate(step)
        self.eval.truncate(step)

    def close(self) -> None:
        """Flush and close the loggers."""
        for logger in self._loggers:
            experiment = logger.experiment
            experiment.finish() if hasattr(experiment, "finish") else experiment.close()
        self._loggers = []

    def _fan_out(self, prefix: str, metrics: Mapping[str, float], step: int) -> None:
        numbers = {f"{prefix}/{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
        for logger in self._loggers:
            logger.log_metrics(numbers, step=step)
