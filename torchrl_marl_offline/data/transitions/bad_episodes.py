"""Episodes that cannot be read while the rest of a recording can.

A reader notes them in a :class:`BadEpisodes`. Where values are checked, the first one raises, with its episode and row.
Inside :func:`~.validation.value_checks_deferred` (inspection and repair) they are gathered in the metadata instead:
inspection has the finding ``bad_episode``, and repair drops them. A reader that can leaves a bad episode out itself;
one that has to read on puts any value there, and repair takes the episode out of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, values_are_checked

KEY = "bad_episodes"
"""Where they stand in the metadata: a list of ``episode``, ``row``, ``what``, and ``id`` if its rows were read."""

_NAMED = 5


@dataclass
class BadEpisodes:
    """The bad episodes of one source.

    Args:
        source: its name, for the message.
        found: what was noted, JSON-ready.
    """

    source: str
    found: list[dict[str, Any]] = field(default_factory=list)

    def note(self, episode: int, row: int | None, what: str, *, read_as: int | None = None) -> None:
        """Note one; raise where values are checked.

        Args:
            episode: its number in the source.
            row: of the source, or of the episode where the source has one array for each; ``None`` for all rows.
            what: is wrong.
            read_as: the episode's number among those that were read, where its rows are among them.
        """
        record = {"episode": episode, "row": row, "what": what, "id": read_as}
        if values_are_checked():
            raise DatasetError(f"{self.source}: {sentence(record)}; drop it with load_dataset(..., repair=True).")
        if not any(known["episode"] == episode for known in self.found):
            self.found.append(record)

    def note_rows(self, bad: torch.Tensor, done: torch.Tensor, what: str) -> None:
        """Note the episodes of bad rows.

        Args:
            bad: ``[T]`` bool.
            done: ``[T]`` bool, true on the last row of each episode.
            what: is wrong there.
        """
        rows = bad.nonzero()[:, 0]
        episodes = (done.cumsum(0) - done.long())[rows]
        for number in episodes.unique().tolist():
            self.note(number, int(rows[episodes == number][0]), what, read_as=number)

    def into(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Write them into the metadata, if there are any."""
        if self.found:
            metadata[KEY] = [*metadata.get(KEY, []), *self.found]
        return metadata


def sentence(record: dict[str, Any]) -> str:
    """Say where and what: ``"episode 3, row 57: filled has a gap"``."""
    row = "" if record["row"] is None else f", row {record['row']}"
    return f"episode {record['episode']}{row}: {record['what']}"


def told(records: list[dict[str, Any]]) -> str:
    """Name the episodes: the first few in full, the rest by number."""
    parts = [sentence(record) for record in records[:_NAMED]]
    rest = ", ".join(str(record["episode"]) for record in records[_NAMED:])
    return "; ".join(parts) + (f"; and episodes {rest}" if rest else "")


def ids_to_drop(metadata: dict[str, Any]) -> torch.Tensor:
    """Return the numbers of the episodes that were read although they are bad, ``[k]`` int64."""
    ids = [record["id"] for record in metadata.get(KEY, []) if record["id"] is not None]
    return torch.tensor(ids, dtype=torch.int64)
