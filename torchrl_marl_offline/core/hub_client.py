"""The Hugging Face Hub: what lies in a repository, fetching it, writing to it; each failure is told in one sentence.

``huggingface_hub`` is imported where it is used. What is fetched is named file by file, compared with the size and the
checksum that the hub states, and kept in the layout of the hub's own cache, so that revisions share what is equal::

    CACHE/hub/datasets--OWNER--NAME/snapshots/<commit>/...   links to ../../blobs
    CACHE/hub/datasets--OWNER--NAME/whole/<revision>         the commit; written when all of it has arrived
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from filelock import FileLock

from torchrl_marl_offline.core.files import WriteError, free_bytes, remove, write_text_atomic, writing

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

PREFIX = "hf:"
"""What stands before the name of a repository, where a path could stand, too."""
MAIN = "main"
README = "README.md"
MARK = "Written by torchrl-marl-offline"
"""Stands in each card: a repository whose card has it may be written to again."""
_OF_THE_HUB = ".gitattributes"
_LARGEST_CARD = 10**6
_NAME = re.compile(r"(?=[^/]+/[^/]{1,96}$)\w[\w.-]*/\w[\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]{0,199}", re.ASCII)
_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_PASSWORD = re.compile(r"(?<=://)[^/\s]*@")
_OFFLINE = "HF_HUB_OFFLINE"
_LOGIN = "log in with: hf auth login, or set HF_TOKEN to a token that may"
_LONGEST_REASON, _LONGEST_SHOWN, _MOST_NAMES = 300, 60, 8


class HubError(ValueError):
    """Something that cannot be had from the hub, or be written there; the message names the remedy."""


def is_offline(offline: bool | None = None) -> bool:
    """Say whether nothing may be fetched: ``offline``, or the environment's ``HF_HUB_OFFLINE`` where it is ``None``."""
    return os.environ.get(_OFFLINE, "").upper() in {"1", "ON", "YES", "TRUE"} if offline is None else offline


def endpoint(mirror: str | None = None) -> str:
    """Return the server's address: ``mirror``, else the environment's ``HF_ENDPOINT``, else Hugging Face."""
    return (mirror or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def without_password(text: str) -> str:
    """Return a text in which addresses have no user and password.

    Example:
        >>> without_password("http://me:secret@host/a cannot be reached")
        'http://host/a cannot be reached'
    """
    return _PASSWORD.sub("", text)


def _here() -> str:
    return without_password(endpoint())


def first_line(error: BaseException) -> str:
    """Return the first line of what a client says, which has many."""
    return without_password((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]


def named_on_hub(source: Any) -> bool:
    """Say whether a source is ``"hf:OWNER/NAME"``."""
    return str(source).startswith(PREFIX)


# Repositories


@dataclass(frozen=True)
class Repository:
    """One repository at one revision.

    Attributes:
        kind: of what it holds.
        name: ``"OWNER/NAME"``.
        revision: a branch, a tag or a commit.
    """

    kind: Literal["dataset", "model"]
    name: str
    revision: str = MAIN

    @classmethod
    def named(cls, kind: Literal["dataset", "model"], name: str, revision: str | None = None) -> Repository:
        """Read ``"OWNER/NAME"`` or ``"OWNER/NAME@REVISION"``, ``"hf:"`` before it or not.

        Raises:
            HubError: it is no such name.
        """
        base, at, own = str(name).removeprefix(PREFIX).partition("@")
        if not _NAME.fullmatch(base) or "--" in base or ".." in base or base[-1] in ".-" or base.endswith(".git"):
            raise HubError(f"{str(name)!r} names no repository of the hub; give OWNER/NAME, as in its address.")
        if at and revision is not None:
            raise HubError(f"{str(name)!r} names a revision already; leave out {revision!r}, or @{own}.")
        chosen = own if at else MAIN if revision is None else revision
        if not _REVISION.fullmatch(chosen) or ".." in chosen or chosen[-1] in "./":
            raise HubError(f"{chosen!r} names no revision of {base}; give a branch, a tag or a commit.")
        return cls(kind, base, chosen)

    def __str__(self) -> str:
        return self.name if self.revision == MAIN else f"{self.name}@{self.revision}"

    @property
    def address(self) -> str:
        """Where a browser shows it."""
        return f"{_here()}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def place(self, cache: Path) -> Path:
        """Return its folder in a cache folder."""
        return cache / "hub" / f"{self.kind}s--{self.name.replace('/', '--')}"


@dataclass(frozen=True)
class HubFile:
    """One file as the hub states it.

    Attributes:
        name: below the repository.
        bytes: its size.
        checksum: SHA-256 of a large file; of the others, git's SHA-1, which starts with the size.
    """

    name: str
    bytes: int
    checksum: str

    def describes(self, path: Path) -> bool:
        """Say whether a file has this size and checksum."""
        if path.stat().st_size != self.bytes:
            return False
        with path.open("rb") as stream:
            if len(self.checksum) == 64:
                return hashlib.file_digest(stream, "sha256").hexdigest() == self.checksum
            known = hashlib.sha1(f"blob {self.bytes}\0".encode(), usedforsecurity=False)
            while block := stream.read(2**20):
                known.update(block)
            return known.hexdigest() == self.checksum


@dataclass(frozen=True)
class Listing:
    """What lies in a repository.

    Attributes:
        repository: which.
        commit: that its revision stands for now.
        files: by name.
    """

    repository: Repository
    commit: str
    files: Mapping[str, HubFile]

    def require(self, name: str, what: str) -> HubFile:
        """Return a file without which the repository holds nothing of ours.

        Raises:
            HubError: it is not there; the message lists what is.
        """
        if name not in self.files:
            shown = ", ".join(sorted(self.files)[:_MOST_NAMES]) or "nothing"
            more = len(self.files) - _MOST_NAMES
            shown += f" and {more} more" if more > 0 else ""
            raise HubError(f"{self.repository} holds no {what}: there is no {name}, but {shown}; name another one.")
        return self.files[name]


def listing(repository: Repository) -> Listing:
    """Ask the hub what lies in a repository.

    Raises:
        HubError: there is no such repository or revision, it may not be read, or the hub cannot be reached.
    """
    api = _api()
    from huggingface_hub.hf_api import RepoFile

    where = {"repo_type": repository.kind, "revision": repository.revision}
    with _told(repository, "read"):
        commit = _stated_commit(api.repo_info(repository.name, **where).sha, repository)
        entries = list(api.list_repo_tree(repository.name, recursive=True, **(where | {"revision": commit})))
        files = [_stated_file(entry, repository) for entry in entries if isinstance(entry, RepoFile)]
    return Listing(repository, commit, {file.name: file for file in files})


def _stated_commit(commit: Any, repository: Repository) -> str:
    """Return what a server says is a commit; it becomes the name of a folder, and so must be nothing else."""
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _nonsense(repository, "a commit", commit)
    return commit


def _stated_file(entry: RepoFile, repository: Repository) -> HubFile:
    name, size = entry.path, entry.size
    checksum, form = (entry.blob_id, _COMMIT) if entry.lfs is None else (entry.lfs.sha256, _SHA256)
    if not isinstance(name, str) or not name:
        raise _nonsense(repository, "the name of a file", name)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _nonsense(repository, f"the size of {name[:_LONGEST_SHOWN]!r}", size)
    if not isinstance(checksum, str) or not form.fullmatch(checksum):
        raise _nonsense(repository, f"the checksum of {name[:_LONGEST_SHOWN]!r}", checksum)
    return HubFile(name, size, checksum)


def _nonsense(repository: Repository, what: str, value: Any) -> HubError:
    shown = repr(value)[:_LONGEST_SHOWN]
    return HubError(f"{_here()} states {shown} as {what} of {repository}; check HF_ENDPOINT, or name another one.")


# Fetching


def kept(repository: Repository, cache: Path) -> Path | None:
    """Return the folder of what was fetched before, all of it, for a revision; or ``None``."""
    place = repository.place(cache)
    mark = place / "whole" / repository.revision
    commit = mark.read_text(encoding="utf-8") if mark.is_file() else ""
    folder = place / "snapshots" / commit
    return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None


def kept_or_refused(repository: Repository, cache: Path, *, offline: bool | None) -> Path | None:
    """Return what need not or may not be fetched: a commit that is there, and anything while offline.

    Raises:
        HubError: it is not there, and nothing may be fetched.
    """
    found = kept(repository, cache)
    if is_offline(offline):
        if found is None:
            raise HubError(
                f"{repository} is not in {cache} and nothing may be fetched offline; unset {_OFFLINE} and fetch it "
                "once, or name another cache folder."
            )
        return found
    return found if _COMMIT.fullmatch(repository.revision) else None


def mark_as_whole(listed: Listing, cache: Path) -> None:
    """Remember that what was asked for of a commit is there, and has been looked at."""
    place = listed.repository.place(cache) / "whole"
    for revision in {listed.repository.revision, listed.commit}:
        write_text_atomic(place / revision, listed.commit)


def declared(
    files: Iterable[HubFile], listed: Listing, *, max_bytes: int | None, announce: Callable[[str], None] | None = None
) -> None:
    """Look at the sizes that the hub states, before anything is fetched.

    Args:
        files: what is to be fetched.
        listed: where from.
        max_bytes: the most that is taken.
        announce: is called with a sentence that has the size.

    Raises:
        HubError: it is more.
    """
    files = list(files)
    size = sum(file.bytes for file in files)
    if announce is not None:
        announce(
            f"{listed.repository} at {listed.commit[:12]}: {len(files)} file{'s'[: len(files) > 1]}, {size:,} bytes"
        )
    if max_bytes is not None and size > max_bytes:
        raise HubError(f"{listed.repository} takes {size:,} bytes, more than {max_bytes:,}; allow more by --max-bytes.")


def fetch(listed: Listing, names: Iterable[str], cache: Path) -> Path:
    """Fetch files of a repository into the cache folder, those that are not there, and compare each with its checksum.

    Args:
        listed: what :func:`listing` returned.
        names: of the files.
        cache: the cache folder.

    Returns:
        The folder of the commit, where the files lie under their names.

    Raises:
        HubError: they cannot be had, or what came is not what the hub states; that is deleted.
        WriteError: the disk is full.
    """
    _api()
    repository, files = listed.repository, [listed.files[name] for name in names]
    place = repository.place(cache)
    folder = place / "snapshots" / listed.commit
    _check_room(listed, files, cache)
    for file in files:
        path, blob = folder / file.name, place / "blobs" / file.checksum
        if path.is_file() and file.describes(path):
            continue
        if not (blob.is_file() and file.describes(blob)):
            _fetch_blob(listed, file, blob)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            try:
                path.symlink_to(os.path.relpath(blob, path.parent))
            except OSError:  # a system or a disk without links
                shutil.copyfile(blob, path)
    return folder


def _fetch_blob(listed: Listing, file: HubFile, blob: Path) -> None:
    """Fetch one file under the name of its checksum, from where an earlier attempt broke off.

    Not by ``huggingface_hub.snapshot_download``: it names files by what the server states in the header of each, which
    may be a path outside of the cache, and compares their sizes alone.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    repository = listed.repository
    where = {"repo_type": repository.kind, "revision": listed.commit, "endpoint": endpoint()}
    url = hf_hub_url(repository.name, file.name, **where)
    part = blob.with_name(f"{blob.name}.part")
    with writing(blob):
        blob.parent.mkdir(parents=True, exist_ok=True)
    with _told(repository, "fetched"), writing(blob), FileLock(f"{part}.lock"), part.open("ab") as stream:
        append_rest(url, stream, file.bytes, headers=build_hf_headers(), displayed_filename=file.name)
        stream.flush()
        arrived = file.describes(part)
        os.replace(part, blob) if arrived else remove(part)
    if not arrived:
        raise HubError(
            f"{repository}: {file.name} arrived with another size or checksum than the hub states and was deleted; "
            "fetch it again."
        )


def append_rest(url: str, stream: BinaryIO, size: int, **options: Any) -> None:
    """Fetch what a file lacks of ``size`` bytes and append it; one that is longer begins anew.

    Args:
        url: where the whole file is.
        stream: opened for appending.
        size: that was announced; no more than that is taken.
        **options: of huggingface_hub's ``http_get``.
    """
    from huggingface_hub.file_download import http_get

    if stream.tell() > size:
        stream.truncate(0)
        stream.seek(0)  # truncating leaves the position, from which the server would be asked to go on
    if stream.tell() < size:
        http_get(url, UpTo(stream, size), resume_size=stream.tell(), expected_size=size, **options)


class UpTo:
    """A file that takes no more than was announced: a server may send for ever.

    Args:
        stream: open for writing.
        limit: its largest size.
    """

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, content: bytes) -> int:
        """Write bytes.

        Raises:
            OSError: they are more than were announced.
        """
        if self._stream.tell() + len(content) > self._limit:
            raise OSError("the server sends more than it announced")
        return self._stream.write(content)


def _check_room(listed: Listing, files: Iterable[HubFile], cache: Path) -> None:
    there = listed.repository.place(cache) / "snapshots" / listed.commit
    size = sum(file.bytes for file in files if not (there / file.name).exists())
    if size > (free := free_bytes(cache)):
        raise HubError(
            f"{listed.repository} takes {size:,} bytes where {cache} has {free:,} free; free some space, or name "
            "another cache folder."
        )


# Writing


def check_login(repository: Repository) -> None:
    """Refuse to start what will not be let in.

    Raises:
        HubError: nobody is logged in, or the token is not known to the hub.
    """
    if is_offline():
        raise HubError(f"{repository} cannot be written to while {_OFFLINE} is set; unset it.")
    api = _api()
    from huggingface_hub import get_token

    if get_token() is None:
        raise HubError(f"Writing to {repository} needs a login; {_LOGIN} write.")
    with _told(repository, "written to"):
        api.whoami()


def push(
    repository: Repository,
    files: Mapping[str, bytes | Path],
    *,
    private: bool,
    message: str,
    is_ours: Callable[[str], bool] = lambda name: False,
) -> str:
    """Write files to a repository in one commit; the repository, and its branch, are made where they are not there.

    Args:
        repository: which.
        files: the content by name.
        private: whether a new repository is private.
        message: of the commit.
        is_ours: says of a file that is there already whether it goes, where it is not among ``files``.

    Returns:
        The address of the commit.

    Raises:
        HubError: it may not be written to, has files that no push wrote, is public where it should be private, or the
            hub cannot be reached.
    """
    api = _api()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name, kind, revision = repository.name, repository.kind, repository.revision
    with _told(repository, "written to"):
        api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
        if private and not api.repo_info(name, repo_type=kind).private:
            raise HubError(f"{name} is there and public; make it private in its settings, or name another one.")
        if revision != MAIN:
            api.create_branch(name, branch=revision, repo_type=kind, exist_ok=True)
    listed = listing(repository)
    _refuse_files_of_others(listed)
    stale = [there for there in listed.files if is_ours(there) and there not in files]
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    operations += [CommitOperationDelete(path) for path in stale]
    with _told(repository, "written to"):
        done = api.create_commit(
            name,
            operations,
            commit_message=message,
            repo_type=kind,
            revision=revision,
            parent_commit=listed.commit,  # what somebody else writes meanwhile has not been looked at
        )
    return without_password(str(done.commit_url))


def _refuse_files_of_others(listed: Listing) -> None:
    """Refuse a repository with files whose card is not one of ours; a card that the hub made has no text."""
    there = set(listed.files) - {_OF_THE_HUB}
    if README in there and listed.files[README].bytes <= _LARGEST_CARD:
        with tempfile.TemporaryDirectory() as folder:
            card = (fetch(listed, [README], Path(folder)) / README).read_text(encoding="utf-8", errors="replace")
        if MARK in card:
            return
        if _EMPTY_CARD.fullmatch(card):
            there -= {README}
    if there:
        shown, more = ", ".join(sorted(there)[:_MOST_NAMES]), len(there) - _MOST_NAMES
        shown += f" and {more} more" if more > 0 else ""
        raise HubError(
            f"{listed.repository} has files that torchrl-marl-offline did not write ({shown}); name another "
            "repository, or delete them there."
        )


_EMPTY_CARD = re.compile(r"\s*(---\r?\n(?:(?!---).*\n)*---)?\s*")


def front_matter(values: Mapping[str, Any]) -> str:
    """Return what stands at the top of a card: YAML of texts and lists of texts; what is ``None`` is left out.

    Texts are written as JSON's, which YAML reads, on one line: none of them ends its own field.

    Example:
        >>> print(front_matter({"license": "mit", "tags": ["torchrl"], "size": None}))
        ---
        license: "mit"
        tags:
        - "torchrl"
        ---
    """
    lines = ["---"]
    for name, value in values.items():
        if isinstance(value, list | tuple):
            lines += [f"{name}:", *(f"- {_quoted(word)}" for word in value)]
        elif value is not None:
            lines.append(f"{name}: {_quoted(value)}")
    return "\n".join([*lines, "---"])


def _quoted(value: Any) -> str:
    return json.dumps(_on_one_line(value), ensure_ascii=False)


def _on_one_line(value: Any) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())


_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "&#96;", "|": "&#124;"})


def escaped(value: Any) -> str:
    """Return a text for a heading, a paragraph or a cell of Markdown: one line, without markup, links or pictures.

    Example:
        >>> escaped("a|b  <img src=x>")
        'a&#124;b &lt;img src=x&gt;'
    """
    return _on_one_line(value).translate(_ESCAPES).replace("](", "]&#40;").replace("][", "]&#91;")


def markdown_table(rows: Iterable[tuple[Any, ...]], header: tuple[str, ...]) -> str:
    """Return a table in Markdown.

    Example:
        >>> print(markdown_table([("agents", 3)], ("", "dataset")))
        |  | dataset |
        |---|---|
        | agents | 3 |
    """
    lines = [header, *rows]
    cells = [[escaped(cell) for cell in line] for line in lines]
    text = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([text[0], "|" + "---|" * len(header), *text[1:]])


# Paths of this machine

_START = re.compile(
    r"""(?P<url>\b(?:https?|ftp|s3|gs|git|ssh|hf)://\S*)
    | file://
    | (?P<root>(?<![\w.)\]}/\\~]) /+(?=[^\s/]) | /(?=(?:home|Users)/))
    | (?<![\w~]) ~[\w.-]*[/\\]
    | (?<![\w.]) (?:\.\.[/\\])+
    | (?<![^\W\d_]) [A-Za-z]:[/\\]
    | \\\\(?=[\w?.])
    | \\(?=Users\\)""",
    re.VERBOSE,
)
_BETWEEN = " \t'\"`([{<>=:,;|"
"""What stands before a path that follows another one."""


def without_paths(value: Any) -> Any:
    """Return JSON-ready values in which of every path that is absolute, or has ``..``, the last name is left.

    What is published should not tell the names of users and folders of the machine where it was made. A path may have
    spaces and brackets, so it is taken to reach to the next path or address, or to the end of its line: of a sentence
    that goes on after a path with a slash in it, words can be lost.

    Example:
        >>> without_paths({"source": "pymarl:/home/me/my data/3m.h5", "task": "smac/3m", "steps": 5})
        {'source': 'pymarl:3m.h5', 'task': 'smac/3m', 'steps': 5}
    """
    if isinstance(value, dict):
        changed: dict[Any, Any] = {}
        for name, item in value.items():
            base = key = without_paths(name)
            number = 1
            while key in changed:
                key, number = f"{base} ({number + 1})", number + 1
            changed[key] = without_paths(item)
        return changed
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return "".join(map(_cut, value.splitlines(keepends=True))) if isinstance(value, str) else value


def _cut(line: str) -> str:
    pieces, at, in_path = [], 0, False
    for found in _START.finditer(line):
        start = found.start()
        before = line[start - 1] if in_path else ""
        if in_path and (before in "/\\" or (found["root"] and before not in _BETWEEN)):  # it goes on: /home/../x
            continue
        pieces.append(_last_name(line[at:start]) if in_path else line[at:start])
        in_path, at = found["url"] is None, start
    return "".join(pieces) + (_last_name(line[at:]) if in_path else line[at:])


def _last_name(path: str) -> str:
    bare = path.rstrip()
    return re.split(r"[/\\]", bare.rstrip("/\\"))[-1] + path[len(bare) :]


# Errors


def _api() -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(
            "The hub needs huggingface_hub; install it with pip install 'torchrl-marl-offline[hub]'."
        ) from error
    return HfApi(endpoint=endpoint(), library_name="torchrl-marl-offline")


@contextmanager
def _told(repository: Repository, doing: str) -> Iterator[None]:
    try:
        yield
    except (HubError, WriteError, MemoryError):
        raise
    except Exception as error:  # the client's own errors differ between its versions
        raise HubError(_sentence(error, repository, doing)) from error


def _sentence(error: Exception, repository: Repository, doing: str) -> str:
    from huggingface_hub import errors, get_token

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of one file of several
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    here, writes = _here(), doing == "written to"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repository} cannot be {doing} while {_OFFLINE} is set; unset it."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository.name} has no revision {repository.revision!r}; name one that {repository.address} shows."
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository.name} is open to whom its owner lets in; ask at {repository.address}, and {_LOGIN} read it."
        )
    if status == 404 or (isinstance(error, errors.RepositoryNotFoundError) and not writes):
        remedy = "its token must be let in" if get_token() else f"{_LOGIN} read it"
        return (
            f"There is no {repository.kind} repository {repository.name} at {here}, or it is private; check the name, "
            f"or, where it is private, {remedy}."
        )
    if status == 401:
        return f"{here} does not know the token (401); {_LOGIN} {'write' if writes else 'read'}."
    if status == 403:
        return (
            f"{repository.name} may not be {doing} with this token (403); {_LOGIN} {'write' if writes else 'read'} it."
        )
    reason = without_password(" ".join(str(error).split()))[:_LONGEST_REASON].rstrip(".") or type(error).__name__
    if status == 400 or (isinstance(error, ValueError) and status is None):
        return f"{here} refuses what is sent to {repository.name} ({reason}); correct what it names."
    return f"{repository} cannot be {doing} ({reason}); check the network and HF_ENDPOINT ({here}), or try again later."
