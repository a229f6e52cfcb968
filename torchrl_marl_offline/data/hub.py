"""Datasets on the Hugging Face Hub: ``"hf:OWNER/NAME"`` is one, in a dataset repository.

A repository holds what a dataset folder holds, a card (``README.md``) and its picture. Pulling takes ``metadata.json``
and then the files that it lists, no others; both checksums are compared, the hub's and the folder's own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.hub_client import (
    MARK,
    README,
    Listing,
    Repository,
    check_login,
    declared,
    escaped,
    fetch,
    front_matter,
    kept_or_refused,
    listing,
    mark_as_whole,
    markdown_table,
    push,
    without_paths,
)
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT
from torchrl_marl_offline.data.published.cache_folder import cache_folder
from torchrl_marl_offline.data.quality.card import can_be_described, describe
from torchrl_marl_offline.data.quality.inspection import inspect
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.storage import (
    DATA_FOLDER,
    METADATA_FILE,
    header_with,
    is_dataset_folder,
    listed_files,
    replacing,
)

if TYPE_CHECKING:
    import torch

    from torchrl_marl_offline.data.transitions.findings import Inspection

HUB = "hf"
"""The prefix of a dataset on the hub."""
PICTURE = "card.png"
_TAGS = ("offline-rl", "multi-agent", "torchrl", "reinforcement-learning")
_SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
_LARGE = "10M<n<100M"
_OURS = (".memmap", "/meta.json")


@checked
def push_dataset(
    folder: str | Path,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    licence: str | None = None,
    message: str | None = None,
) -> str:
    """Publish a dataset folder on the Hugging Face Hub, with a card, in one commit.

    The repository and the branch are made where they are not there; a card and data of an earlier push are replaced.
    Every file is compared with its checksum first. What is uploaded is the data, a card with the facts and findings of
    :func:`~.inspection.inspect`, and the metadata, in which of absolute paths only the last name is left.

    Args:
        folder: that :meth:`OfflineDataset.save` wrote.
        name: of the dataset repository, ``"OWNER/NAME"``.
        private: make the repository private; one that is there and public is refused.
        revision: the branch to write to; by default ``main``.
        licence: by the hub's short name, ``"mit"``; by default the metadata's ``"license"``, or none.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        DatasetError: the folder holds no dataset, or a damaged one.
        HubError: nobody is logged in, the repository may not be written to or has files that no push wrote, or the hub
            cannot be reached.
        ImportError: huggingface_hub is not installed.

    Example:
        >>> push_dataset("data/spread", "me/spread-medium", licence="mit")  # doctest: +SKIP
        'https://huggingface.co/datasets/me/spread-medium/commit/8c1f...'
    """
    repository, folder = Repository.named("dataset", name, revision), user_path(folder)
    if not is_dataset_folder(folder):
        raise DatasetError(f"{folder} holds no dataset; give a folder that OfflineDataset.save wrote.")
    check_login(repository)
    dataset = OfflineDataset.load(folder)
    inspection = inspect(dataset)
    files: dict[str, bytes | Path] = {entry: folder / entry for entry in listed_files(folder)}
    picture = _picture(dataset, inspection)
    if picture is not None:
        files[PICTURE] = picture
    files[METADATA_FILE] = header_with(folder, without_paths)
    text = dataset_card(dataset, inspection, repository, licence=licence, picture=PICTURE if picture else None)
    files[README] = text.encode()
    message = message or f"{len(dataset):,} transitions of {dataset.spec.task or 'an unnamed task'}"
    return push(repository, files, private=private, message=message, is_ours=_is_ours)


@checked
def pull_dataset(
    name: str,
    folder: str | Path | None = None,
    *,
    revision: str | None = None,
    cache: str | Path | None = None,
    offline: bool | None = None,
    max_bytes: Annotated[int | None, COUNT] = None,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Fetch a dataset from the Hugging Face Hub, compare every file with its checksums, and return its folder.

    Only ``metadata.json`` and the files that it lists are fetched; nothing is executed. What has arrived stays in the
    cache folder: a fetch that broke off goes on with the files that are missing.

    Args:
        name: ``"OWNER/NAME"`` or ``"OWNER/NAME@REVISION"``.
        folder: where to copy it to, as a folder of its own; by default it stays in the cache folder.
        revision: a branch, a tag or a commit; by default ``main``.
        cache: the cache folder; see :func:`~.cache_folder.cache_folder`.
        offline: whether to use only what was fetched before; by default what ``HF_HUB_OFFLINE`` says.
        max_bytes: the most that is fetched, by the sizes that the hub states.
        overwrite: whether to replace a dataset that is at ``folder``.
        announce: is called with a sentence that has the size, before the data are fetched.

    Raises:
        HubError: there is no such repository, it holds no dataset of this library, or it cannot be had.
        DatasetError: it is damaged, or was changed on the way.
        FileExistsError: something is at ``folder``.
        ImportError: huggingface_hub is not installed.

    Example:
        >>> pull_dataset("me/spread-medium", "data/spread")  # doctest: +SKIP
        PosixPath('data/spread')
    """
    repository, root = Repository.named("dataset", name, revision), cache_folder(cache)
    if folder is None:
        return _kept_or_fetched(repository, root, offline=offline, max_bytes=max_bytes, announce=announce)
    target = user_path(folder)
    with replacing(target, overwrite=overwrite) as temporary:
        found = _kept_or_fetched(repository, root, offline=offline, max_bytes=max_bytes, announce=announce)
        for entry in (METADATA_FILE, *listed_files(found)):
            place = temporary / entry
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found / entry, place)
    return target


def load_from_hub(
    name: str,
    *,
    revision: str | None = None,
    cache: str | Path | None = None,
    offline: bool | None = None,
    max_bytes: int | None = None,
    device: torch.device | str | None = None,
    verify: bool = True,
) -> OfflineDataset:
    """Load a dataset from the hub, memory-mapped in the cache folder.

    Args:
        name: see :func:`pull_dataset`, as of ``revision``, ``cache``, ``offline`` and ``max_bytes``.
        revision: a branch, a tag or a commit.
        cache: the cache folder.
        offline: whether to use only what was fetched before.
        max_bytes: the most that is fetched.
        device: where to put the data; by default it stays memory-mapped.
        verify: whether to compare every file with its checksum where it was fetched before; a new one always is.
    """
    repository = Repository.named("dataset", name, revision)
    place = _kept_or_fetched(repository, cache_folder(cache), offline=offline, max_bytes=max_bytes, verify=verify)
    return OfflineDataset.load(place, device=device, verify=False)


# Fetching


def _kept_or_fetched(
    repository: Repository,
    cache: Path,
    *,
    offline: bool | None,
    max_bytes: int | None,
    announce: Callable[[str], None] | None = None,
    verify: bool = True,
) -> Path:
    place = kept_or_refused(repository, cache, offline=offline)
    if place is not None:
        if verify:
            _verify(place, repository, cache)
        return place
    listed = listing(repository)
    header = listed.require(METADATA_FILE, "dataset of this library")
    declared([header], listed, max_bytes=max_bytes)
    place = fetch(listed, [METADATA_FILE], cache)
    names = _stated(listed, listed_files(place))
    declared([header, *(listed.files[name] for name in names)], listed, max_bytes=max_bytes, announce=announce)
    place = fetch(listed, [METADATA_FILE, *names], cache)
    _verify(place, repository, cache)
    mark_as_whole(listed, cache)
    return place


def _verify(place: Path, repository: Repository, cache: Path) -> None:
    try:
        OfflineDataset.load(place)
    except DatasetError as error:
        remedy = f"delete {repository.place(cache)} and fetch it again, or ask who published it"
        raise DatasetError(f"{repository}: {str(error).rstrip('.')}; {remedy}.") from error


def _stated(listed: Listing, sizes: dict[str, int]) -> list[str]:
    """Return the names of the files to fetch; the header and the hub must agree on each."""
    for name, size in sizes.items():
        there = listed.files.get(name)
        if there is None or there.bytes != size:
            what = "is not there" if there is None else f"has {there.bytes:,} bytes"
            raise DatasetError(
                f"{listed.repository} was changed after it was written: {name}, of {size:,} bytes, {what}; take "
                "another revision, or ask who published it."
            )
    return list(sizes)


def _is_ours(name: str) -> bool:
    return name == PICTURE or (name.startswith(f"{DATA_FOLDER}/") and name.endswith(_OURS))


# The card


def dataset_card(
    dataset: OfflineDataset,
    inspection: Inspection,
    repository: Repository,
    *,
    licence: str | None = None,
    picture: str | None = None,
) -> str:
    """Return the card of a dataset repository, in Markdown with its facts for the hub at the top.

    Args:
        dataset: what it is about.
        inspection: what was found in it.
        repository: where it is to lie.
        licence: see :func:`push_dataset`.
        picture: the file of the picture, if there is one.
    """
    metadata = without_paths(dataset.metadata)
    size = next((text for most, text in _SIZES.items() if len(dataset) < most), _LARGE)
    facts = {
        "license": licence or metadata.get("license"),
        "task_categories": ["reinforcement-learning"],
        "tags": _TAGS,
        "size_categories": [size],
    }
    quality = metadata.get("quality")
    title = ", ".join(str(part) for part in (dataset.spec.task or repository.name, quality) if part)
    findings = "\n".join(
        f"- **{finding.severity}** `{finding.code}`: {escaped(without_paths(finding.what))}"
        + (f" ({finding.rows:,} rows)" if finding.rows else "")
        for finding in inspection.findings
    )
    parts = [
        front_matter(facts),
        f"# {escaped(title)}",
        "Transitions of a team of agents for offline multi-agent reinforcement learning.",
        f"![returns, lengths, actions and rewards]({picture})" if picture else None,
        markdown_table(_rows(dataset, inspection, metadata), ("", "")),
        "## Loading",
        f"```python\nfrom torchrl_marl_offline import load_dataset\n\n"
        f'dataset = load_dataset("{HUB}:{repository}")\n```',
        "It needs `pip install 'torchrl-marl-offline[hub]'`. Nothing in the repository is executed.",
        "## Findings",
        findings or "Inspection found nothing.",
        *_cited(metadata.get("citation")),
        f"{MARK} {version('torchrl-marl-offline')}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(dataset: OfflineDataset, inspection: Inspection, metadata: dict[str, Any]) -> list[tuple[str, Any]]:
    spec = dataset.spec
    kind = f"discrete, one of {spec.action_size}" if spec.discrete else f"continuous, {spec.action_size} components"
    if spec.discrete and spec.has_action_mask:
        kind += ", with a mask of the legal ones"
    elif not spec.discrete:
        kind += f" in {spec.bounds_text}"
    rows = [
        ("task", spec.task or "unnamed"),
        ("environment", metadata.get("env") or metadata.get("why_no_env")),
        ("quality", metadata.get("quality")),
        ("behaviour", metadata.get("behaviour")),
        ("source", metadata.get("source")),
        ("transitions", f"{len(dataset):,}"),
        ("episodes", f"{dataset.n_episodes:,}"),
        ("agents", spec.n_agents),
        ("observation", spec.observation_size),
        ("state", spec.state_size),
        ("actions", kind),
        ("joint SACo", f"{inspection.facts['joint_saco']:.4f}"),
        ("time limit", metadata.get("time_limit")),
        ("repairs", "; ".join(map(str, metadata.get("repairs", []))) or None),
    ]
    if can_be_described(inspection):
        card = describe(dataset, inspection).facts
        names = {"return": "return of an episode", "length": "length of an episode"}
        moments = {name: [f"{card[name][each]:.4g}" for each in ("mean", "std", "min", "max")] for name in names}
        rows += [(names[name], "{} ± {} ({} to {})".format(*each)) for name, each in moments.items()]
        rows.append(("success", None if card["success"] is None else f"{card['success']:.4f}"))
    return [(name, value) for name, value in rows if value is not None]


def _cited(citation: Any) -> list[str]:
    if not isinstance(citation, str) or not citation.strip():
        return []
    is_bibtex = citation.lstrip().startswith("@") and "```" not in citation
    return ["## Citation", f"```bibtex\n{citation.strip()}\n```" if is_bibtex else escaped(citation)]


def _picture(dataset: OfflineDataset, inspection: Inspection) -> bytes | None:
    if not can_be_described(inspection):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return describe(dataset, inspection).save_picture(Path(folder) / PICTURE).read_bytes()
