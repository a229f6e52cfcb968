"""Published sets in the cache folder: converted once, whichever process comes first.

::

    CACHE/datasets/<source>/<task>/<quality>        converted, what is loaded
    CACHE/vaults/<source>/<task>.vlt/<quality>      vaults that were put there by hand
    CACHE/archives/<path in the repository>.zip     archives, fetched or put there by hand
    CACHE/figures/<source>/<task>/<quality>.json    what is in sets without a published card
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from torchrl_marl_offline.core.callers import outside
from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.hub_client import is_offline
from torchrl_marl_offline.data.formats.vault import is_vault, open_vault
from torchrl_marl_offline.data.published.cache_folder import cache_folder
from torchrl_marl_offline.data.published.cards import keep_figures, published_card
from torchrl_marl_offline.data.published.fetching import (
    archive_url,
    fetch_archive,
    qualities_in,
    unpack_quality,
)
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, DatasetWarning, values_are_checked
from torchrl_marl_offline.data.transitions.storage import is_dataset_folder
from torchrl_marl_offline.data.transitions.validation import validate

if TYPE_CHECKING:
    import torch

    from torchrl_marl_offline.data.published.cards import DatasetCard


@checked
def load_published(
    name: str,
    *,
    cache: str | Path | None = None,
    offline: bool | None = None,
    mirror: str | None = None,
    device: torch.device | str | None = None,
    verify: bool = False,
    progress: bool = True,
) -> OfflineDataset:
    """Load a published set, memory-mapped; the first time it is fetched and converted.

    A set that disagrees with its card is loaded all the same, with a :class:`DatasetWarning` that has both numbers, and
    the metadata's ``"card_disagreements"`` keep them.

    Args:
        name: ``"og_marl:smac_v1/3m/Good"``; where the qualities are not published, without one: the only one of the
            archive is taken.
        cache: where everything is kept; see :func:`cache_folder`.
        offline: whether to use only what is there; by default what ``HF_HUB_OFFLINE`` says.
        mirror: a server with the paths of Hugging Face; by default ``HF_ENDPOINT``.
        device: where to put the data; by default it stays memory-mapped.
        verify: whether to compare every file with its checksum; sizes are always compared.
        progress: show a bar on a terminal.

    Raises:
        DatasetError: there is no such set, it cannot be had (the sentence says what to put where), or it is damaged.
    """
    root = cache_folder(cache)
    card = published_card(name)
    if not card.quality:
        card = replace(card, quality=_only_quality(card, root, offline=is_offline(offline), mirror=mirror))
    target = root / "datasets" / card.source / card.task / card.quality
    if not is_dataset_folder(target):
        lock = root / "locks" / f"{hashlib.sha256(card.archive.encode()).hexdigest()[:16]}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not is_dataset_folder(target):  # another process may have been here meanwhile
                _convert(card, root, target, offline=is_offline(offline), mirror=mirror, progress=progress)
    dataset = OfflineDataset.load(target, device=device, verify=verify)
    if values_are_checked() and not dataset.metadata.get("values_checked", True):
        validate(dataset)
    dataset.metadata = card.rights | dataset.metadata  # a set that was converted before cards had them
    keep_figures(card, dataset, root)
    disagreements = card.disagreements(dataset)
    if disagreements:
        dataset.metadata["card_disagreements"] = disagreements
        warnings.warn(f"{card.id} is not what is published: {'; '.join(disagreements)}.", DatasetWarning, outside())
    return dataset


def _convert(card: DatasetCard, root: Path, target: Path, *, offline: bool, mirror: str | None, progress: bool) -> None:
    """Write the converted set; the caller holds the archive's lock."""
    vault = root / "vaults" / card.source / f"{card.task}.vlt" / card.quality
    unpacked = root / "unpacked" / card.source / card.task / card.quality
    shutil.rmtree(unpacked, ignore_errors=True)  # what a killed process left
    try:
        if not is_vault(vault):
            archive = _archive(card, root, vault, offline=offline, mirror=mirror)
            vault = unpack_quality(archive, card, unpacked)
        stream = open_vault(
            vault, task=f"{card.source}:{card.task}", time_limit=card.time_limit, episode_length=card.episode_length
        )
        stream.metadata |= {"source": card.id, "quality": card.quality, "env": card.env, "why_no_env": card.why_no_env}
        stream.metadata["task_options"] = card.env_options
        stream.metadata |= card.rights
        stream.metadata |= {"reference_returns": card.reference_returns, "reference_source": card.reference_source}
        stream.write(target, progress=progress)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _only_quality(card: DatasetCard, root: Path, *, offline: bool, mirror: str | None) -> str:
    """Return the quality of a set whose qualities are not published; what is in the cache folder tells."""
    converted, vaults = root / "datasets" / card.source / card.task, root / "vaults" / card.source / f"{card.task}.vlt"
    found = {folder.name for folder in converted.glob("*") if is_dataset_folder(folder)}
    found |= {folder.name for folder in vaults.glob("*") if is_vault(folder)}
    if len(found) != 1:
        archive = _archive(card, root, vaults / "QUALITY", offline=offline, mirror=mirror) if not found else None
        found |= set() if archive is None else qualities_in(archive, card)
    if len(found) == 1:
        return found.pop()
    names = " or ".join(repr(f"{card.id}/{quality}") for quality in sorted(found))
    raise DatasetError(f"{card.id} has {len(found)} qualities; load {names or 'one that its archive holds'}.")


def _archive(card: DatasetCard, root: Path, vault: Path, *, offline: bool, mirror: str | None) -> Path:
    target = root / "archives" / card.archive
    if target.is_file():
        return target
    advice = (
        f"put {archive_url(card, None)} at {target}, or its folder {vault.parent.name}/{vault.name} at {vault}, or "
        "name another cache folder"
    )
    if offline:
        raise DatasetError(f"{card.id} is not in {root} and nothing may be fetched offline; {advice}.")
    try:
        return fetch_archive(card, target, mirror=mirror)
    except (OSError, ImportError) as error:
        reason = str(error).rstrip(".")
        raise DatasetError(f"{card.id} is not in {root} and cannot be fetched: {reason}; {advice}.") from error
