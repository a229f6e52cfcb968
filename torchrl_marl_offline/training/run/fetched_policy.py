"""Policies on the Hugging Face Hub: ``"hf:OWNER/NAME"`` is one, the ``policy.pt`` of a model repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchrl_marl_offline.core.hub_client import (
    Repository,
    declared,
    fetch,
    kept_or_refused,
    listing,
    mark_as_whole,
)
from torchrl_marl_offline.data.published.cache_folder import cache_folder

POLICY_FILE = "policy.pt"


def fetched_policy(
    name: str | Path,
    *,
    revision: str | None = None,
    cache: str | Path | None = None,
    offline: bool | None = None,
    max_bytes: int | None = None,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Return the file of a policy in the cache folder, where it is fetched to; nothing else of the repository is.

    Args:
        name: ``"OWNER/NAME"`` or ``"OWNER/NAME@REVISION"``, ``"hf:"`` before it or not.
        revision: a branch, a tag or a commit; by default ``main``.
        cache: the cache folder; see :func:`~.cache_folder.cache_folder`.
        offline: whether to use only what was fetched before; by default what ``HF_HUB_OFFLINE`` says.
        max_bytes: the most that is fetched, by the size that the hub states.
        announce: is called with a sentence that has the size, before the file is fetched.

    Raises:
        HubError: there is no such repository, it holds no policy of this library, or it cannot be had.
        ImportError: huggingface_hub is not installed.
    """
    repository, root = Repository.named("model", str(name), revision), cache_folder(cache)
    place = kept_or_refused(repository, root, offline=offline)
    if place is None:
        listed = listing(repository)
        file = listed.require(POLICY_FILE, "policy of this library")
        declared([file], listed, max_bytes=max_bytes, announce=announce)
        place = fetch(listed, [POLICY_FILE], root)
        mark_as_whole(listed, root)
    return place / POLICY_FILE
