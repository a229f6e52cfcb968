"""A hub on this machine: the endpoints that ``huggingface_hub`` uses to log in, list, fetch, upload and commit.

Repositories live in memory: every branch is a dictionary of contents, every commit a copy of one. Files from
``LARGE`` bytes on are uploaded by the LFS protocol, the others within the commit.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = 2000
TOKEN = "hf_of_the_tests"
_LICENSES = ("mit", "apache-2.0", "cc-by-4.0", "other")


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Start a hub and let the library use it alone, as somebody who is logged in, with a cache folder of its own."""
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("TORCHRL_MARL_OFFLINE_CACHE", str(tmp_path / "cache"))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Repo:
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "first") -> str:
        self.messages.append(message)
        oid = hashlib.sha1(f"{len(self.messages)}{sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class HubServer:
    """Answers as the hub does; ``asked`` is the list of requests.

    Attributes:
        repos: by kind and name, ``("dataset", "me/toy")``.
        on_way: changes the content of a file as it is sent; given its name and content.
        refuses: answers a request with a status, where it returns one; given the method and the path.
        stated: changes the listing of a repository.
        commit_stated: changes what is said of a commit.
        etag: what the header of every file states, in the place of its checksum.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.on_way: Callable[[str, bytes], bytes] = lambda name, content: content
        self.refuses: Callable[[str, str], int | None] = lambda method, path: None
        self.stated: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda entries: entries
        self.commit_stated: Callable[[str], Any] = lambda commit: commit
        self.etag: str | None = None
        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self.httpd.server_address[1]}"

    def __enter__(self) -> HubServer:
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()

    def fetched(self) -> list[str]:
        """The names of the files whose content was sent."""
        return [path.partition("/resolve/")[2].partition("/")[2] for how, path in self.asked if how == "GET file"]

    def add(self, kind: str, name: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        repo = self.repos[kind, name] = Repo(private)
        repo.commit("main", {".gitattributes": b"", **files})
        return repo

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or a client waits 40 ms for the body

            def do_GET(self) -> None:
                server._answer(self)

            do_HEAD = do_POST = do_PUT = do_GET

            def log_message(self, *args: object) -> None:
                pass

            def send(self, status: int, content: bytes | Any = b"", **headers: str) -> None:
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        return Handler

    # What is answered

    def _answer(self, ask: Any) -> None:
        path = unquote(urlsplit(ask.path).path)
        body = ask.rfile.read(int(ask.headers.get("Content-Length", 0)))
        status = self.refuses(ask.command, path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        self.asked.append((f"{ask.command} file" if file else ask.command, path))
        if status is not None:
            return ask.send(status, {"error": "refused"})
        if file:
            return self._file(ask, *file.groups())
        if path.startswith("/upload/"):
            self.large[path.removeprefix("/upload/")] = body
            return ask.send(200)
        if re.fullmatch(r"/(datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            return self._batch(ask, json.loads(body))
        told = ask.headers.get("Authorization", "")
        is_known = told == f"Bearer {TOKEN}"
        if path == "/api/whoami-v2":
            return ask.send(200, {"type": "user", "name": "me"}) if is_known else ask.send(401, {"error": "no"})
        if path == "/api/validate-yaml":
            return self._validate(ask, json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(ask, json.loads(body), is_known)
        match = re.fullmatch(r"/api/(dataset|model)s/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path)
        repo = self.repos.get(match.groups()[:2]) if match else None
        if repo is None or (repo.private and not is_known):
            return ask.send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return self._of_repository(ask, repo, *match.groups(), body=body)

    def _of_repository(
        self, ask: Any, repo: Repo, kind: str, name: str, what: str | None, revision: str | None, *, body: bytes
    ) -> None:
        if what == "branch":
            if revision in repo.branches:
                return ask.send(409, {"error": "exists"})
            repo.branches[revision] = repo.branches["main"]
            return ask.send(200)
        commit = repo.branches.get(revision or "main", revision)
        if commit not in repo.commits:
            return ask.send(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
        files = repo.commits[commit]
        if what in (None, "revision"):
            return ask.send(
                200,
                {"id": name, "sha": self.commit_stated(commit), "private": repo.private, "siblings": [], "tags": []},
            )
        if what == "tree":
            return ask.send(200, self.stated([self._entry(path, content) for path, content in files.items()]))
        if what == "preupload":
            asked = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular"} for f in asked]
            return ask.send(200, {"files": [mode | {"shouldIgnore": False} for mode in modes]})
        assert what == "commit", what
        oid = repo.commit(revision, *self._changed(files, [json.loads(line) for line in body.splitlines()]))
        prefix = "datasets/" if kind == "dataset" else ""
        return ask.send(200, {"commitUrl": f"{self.address}/{prefix}{name}/commit/{oid}", "commitOid": oid})

    def _changed(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> tuple[dict[str, bytes], str]:
        files, message = dict(files), ""
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                assert key == "deletedFile", key
                del files[value["path"]]
        return files, message

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if len(content) < LARGE:
            return entry
        oid = hashlib.sha256(content).hexdigest()
        return entry | {"lfs": {"oid": oid, "size": len(content), "pointerSize": 130}}

    def _file(self, ask: Any, prefix: str | None, name: str, revision: str, path: str) -> None:
        repo = self.repos["dataset" if prefix else "model", name]
        commit = repo.branches.get(revision, revision)
        content = repo.commits[commit].get(path)
        if content is None:
            return ask.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        etag = self.etag or (git_oid(content) if len(content) < LARGE else hashlib.sha256(content).hexdigest())
        sent = self.on_way(path, content) if ask.command == "GET" else content
        return ask.send(200, sent, ETag=f'"{etag}"', X_Repo_Commit=commit)

    def _batch(self, ask: Any, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.address}/upload/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        ask.send(200, {"transfer": "basic", "objects": objects})

    def _validate(self, ask: Any, content: str) -> None:
        import yaml

        facts = yaml.safe_load(content.split("---\n")[1])
        if facts.get("license") not in (None, *_LICENSES):
            return ask.send(400, {"errors": [{"message": '"license" must be one of a list'}], "warnings": []})
        return ask.send(200, {"errors": [], "warnings": []})

    def _create(self, ask: Any, asked: dict[str, Any], is_known: bool) -> None:
        if not is_known:
            return ask.send(401, {"error": "no token"})
        kind, name = asked["type"], f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "me":
            return ask.send(403, {"error": "not yours"})
        url = {"url": f"{self.address}/{'datasets/' if kind == 'dataset' else ''}{name}"}
        if (kind, name) in self.repos:
            return ask.send(409, url)
        self.add(kind, name, {}, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return ask.send(200, url)
