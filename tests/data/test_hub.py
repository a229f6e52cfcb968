"""Datasets on a hub that the tests serve themselves."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, Repo

from torchrl_marl_offline import convert_dataset, from_arrays, load_dataset, pull_dataset, push_dataset
from torchrl_marl_offline.commands.data import main
from torchrl_marl_offline.core import hub_client
from torchrl_marl_offline.core.hub_client import HubError, Repository, front_matter, without_paths
from torchrl_marl_offline.data import DatasetError, DatasetWarning
from torchrl_marl_offline.data.hub import _picture

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's client
pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def _quick_picture(monkeypatch):
    monkeypatch.setattr("torchrl_marl_offline.data.hub._picture", lambda dataset, inspection: b"a picture")


REWARD = "data/next/agents/reward.memmap"
"""A file of a content of its own: the state is that of the observations."""


def made(rows: int = 400, **metadata):
    generator = torch.Generator().manual_seed(rows)
    rewards = torch.rand(rows, generator=generator)
    ends = torch.rand(rows, generator=generator) < 0.1
    ends[-1] = True
    return from_arrays(
        observations=torch.randn(rows, 2, 3),
        actions=torch.rand(rows, 2, 1),
        rewards=rewards[:, None].repeat(1, 2) + torch.tensor([0.0, 0.5]),
        terminals=ends,
        task="toys/two",
        metadata={"source": "pymarl:/home/ada/data/3m.h5", "quality": "medium"} | metadata,
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    return made().save(tmp_path / "data" / "toy")


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def published(hub: HubServer) -> Repo:
    return hub.repos["dataset", "me/toy"]


# There and back


def test_push_and_pull(hub, folder, tmp_path, capsys):
    (folder / "secrets.txt").write_text("not of the dataset")
    arguments = ["push", str(folder), "me/toy", "--private", "--licence", "mit", "--message", "first"]
    assert main(arguments) == 0
    repo = published(hub)
    url = capsys.readouterr().out.strip()
    assert url == f"{hub.address}/datasets/me/toy/commit/{repo.branches['main']}"
    assert repo.private and repo.messages[-1] == "first"
    assert set(repo.files()) == files_of(folder) - {"secrets.txt"} | {"README.md", "card.png", ".gitattributes"}
    assert any(path.startswith("/upload/") for _, path in hub.asked)  # the large ones, by LFS

    assert main(["pull", "me/toy", str(tmp_path / "copy")]) == 0
    said = capsys.readouterr()
    size = sum(len(content) for name, content in repo.files().items() if name in files_of(tmp_path / "copy"))
    assert said.out.strip() == str(tmp_path / "copy") and f" {size:,} bytes" in said.err
    assert files_of(tmp_path / "copy") == files_of(folder) - {"secrets.txt"}
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    copied = load_dataset(tmp_path / "copy")
    assert (copied.data == load_dataset(folder).data).all()
    assert copied.metadata["source"] == "pymarl:3m.h5"


def test_one_line_loads_it_and_the_second_time_nothing_is_fetched(hub, folder, monkeypatch):
    push_dataset(folder, "me/toy")
    dataset = load_dataset("hf:me/toy")
    assert (dataset.data == load_dataset(folder).data).all() and dataset.inspection is not None
    commit = published(hub).branches["main"]
    assert set(hub.fetched()) <= files_of(folder)  # of equal files, one
    hub.asked.clear()
    load_dataset("hf:me/toy")
    assert hub.fetched() == [] and len(hub.asked) == 2  # which commit it is, and what lies there
    hub.asked.clear()
    load_dataset(f"hf:me/toy@{commit}")
    assert hub.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(load_dataset("hf:me/toy")) == 400
    with pytest.raises(HubError, match=r"^me/other is not in .* offline; unset HF_HUB_OFFLINE and fetch it once"):
        load_dataset("hf:me/other")


def test_the_other_functions_take_it_too(hub, folder, tmp_path, capsys):
    push_dataset(folder, "me/toy")
    assert load_dataset(convert_dataset("hf:me/toy", tmp_path / "there")).n_episodes > 20
    assert main(["inspect", "hf:me/toy"]) == 0 and "400 in " in capsys.readouterr().out
    assert main(["verify", "hf:me/toy"]) == 0 and "every check passed" in capsys.readouterr().out
    import torchrl_marl_offline.data.torchrl_datasets as replay

    assert len(replay.load_replay("hf", "me/toy", batch_size=4)) == 400


def test_a_branch_of_its_own(hub, folder, tmp_path):
    push_dataset(folder, "me/toy")
    push_dataset(made(40).save(tmp_path / "small"), "me/toy", revision="small")
    assert len(load_dataset("hf:me/toy@small")) == 40 == len(load_dataset("hf:me/toy", revision="small"))
    assert len(load_dataset("hf:me/toy")) == 400
    assert 'load_dataset("hf:me/toy@small")' in published(hub).files("small")["README.md"].decode()
    with pytest.raises(HubError, match="me/toy has no revision 'none'; name one that http"):
        load_dataset("hf:me/toy@none")


def test_another_push_replaces_what_an_earlier_one_left(hub, folder, tmp_path):
    published_before = made(40)
    published_before.data["extra"] = torch.zeros(40, 1)
    push_dataset(published_before.save(tmp_path / "before"), "me/toy")
    assert "data/extra.memmap" in published(hub).files()
    assert len(load_dataset("hf:me/toy")) == 40
    push_dataset(folder, "me/toy")
    assert "data/extra.memmap" not in published(hub).files()
    assert len(load_dataset("hf:me/toy")) == 400
    before = len(published(hub).messages)
    push_dataset(folder, "me/toy")
    assert len(published(hub).messages) == before + 1  # the server says of no file that it is the same


# The card


def test_the_card(hub, tmp_path, monkeypatch):
    import yaml

    monkeypatch.setattr("torchrl_marl_offline.data.hub._picture", _picture)
    arrays = made(citation="@misc{toy, title={Toy}}", env="mpe/simple_spread", license="cc-by-4.0")
    push_dataset(arrays.save(tmp_path / "toy"), "me/toy")
    assert published(hub).files()["card.png"].startswith(b"\x89PNG")
    card = published(hub).files()["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "cc-by-4.0" and facts["size_categories"] == ["n<1K"]
    assert {"offline-rl", "multi-agent", "torchrl"} <= set(facts["tags"])
    returns = arrays.episode_returns()
    for line in (
        "# toys/two, medium",
        "![returns, lengths, actions and rewards](card.png)",
        "| environment | mpe/simple_spread |",
        "| source | pymarl:3m.h5 |",
        "| transitions | 400 |",
        "| actions | continuous, 1 components in [-1, 1] |",
        f"| return of an episode | {returns.mean():.4g} ± {returns.std(correction=0):.4g} "
        f"({returns.min():.4g} to {returns.max():.4g}) |",
        'dataset = load_dataset("hf:me/toy")',
        "Inspection found nothing.",
        "```bibtex\n@misc{toy, title={Toy}}\n```",
    ):
        assert line in text, line
    assert re.search(r"Written by torchrl-marl-offline \d", text) and "/home/" not in card
    metadata = published(hub).files()["metadata.json"].decode()
    assert "/home/" not in metadata and json.loads(metadata)["metadata"]["source"] == "pymarl:3m.h5"


@pytest.mark.filterwarnings("ignore:.*following row:torchrl_marl_offline.data.DatasetWarning")
def test_the_card_of_a_set_with_defects_names_them(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl_marl_offline.data.hub._picture", _picture)
    dataset = made(40)
    dataset.data["agents", "observation"][3] = float("nan")
    folder = dataset.save(tmp_path / "bad")
    push_dataset(folder, "me/toy")
    files = published(hub).files()
    assert "- **error** `not_finite`: a value is NaN or infinite" in files["README.md"].decode()
    assert "card.png" not in files and "return of an episode" not in files["README.md"].decode()
    with pytest.warns(DatasetWarning, match="NaN"):
        load_dataset("hf:me/toy")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/ada/x.h5", "x.h5"),
        ("vault:/home/ada/My data/3m.vlt/Good", "vault:Good"),
        ("/home/my name/secret/x.h5", "x.h5"),
        ("pymarl:/home/me/a (1)/d.h5", "pymarl:d.h5"),
        (r"C:\Users\Jo Do\x", "x"),
        (r"pymarl:C:\Users\Jo Do\x, /tmp/y", "pymarl:x, y"),
        ("/home/me", "me"),
        ("/home/me:secret/x", "x"),
        ("//home/me/x", "x"),
        ("../../home/me/x", "x"),
        ("a/../../home/me/x", "a/x"),
        ("/home/../me//secret/../x", "x"),
        ("~me/a b/x", "x"),
        ("@/home/me/x\n+/data/x\n-I/home/me/x", "@x\n+x\n-Ix"),
        ("/mnt/home/me/a-/x", "x"),
        ("~/a, b/x", "x"),
        (r"\\host\share name\x", "x"),
        (r"\Users\Jo Do\x", "x"),
        ("see /home/me/x\nand https://a.b/c/d, 1/2", "see x\nand https://a.b/c/d, 1/2"),
        ("~/runs/a and ~ada/b", "a and b"),
        ("file:///home/ada/x", "x"),
        (r"C:\Users\ada\x.npy, (/tmp/y)", "x.npy, (y)"),
        ("--output=/scratch/ada/run/", "--output=run"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("smac_v1/3m/Good; 1/2; a / b; ./x", "smac_v1/3m/Good; 1/2; a / b; ./x"),
        (r"\alpha", r"\alpha"),
    ],
)
def test_paths_of_a_machine_are_not_published(text, left):
    assert without_paths({"a": [text, 1, None], text: text}) == {"a": [left, 1, None], left: left}


def test_names_that_are_equal_without_their_folders_are_kept_apart():
    assert without_paths({"/a/x": 1, "/b/x": 2, "/c/x": 3}) == {"x": 1, "x (2)": 2, "x (3)": 3}


def test_texts_of_a_dataset_change_nothing_of_its_card(hub, tmp_path):
    import yaml

    evil = "medium\n\n# Other\n\n<script>x</script> `a` | b ![p](http://evil/p.png)"
    push_dataset(made(quality=evil, behaviour=evil, citation=evil).save(tmp_path / "toy"), "me/toy")
    card = published(hub).files()["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front).keys() == {"task_categories", "tags", "size_categories"}
    assert "\n# Other" not in card and "<script>" not in card and "](http" not in card and "`a`" not in card
    assert "# toys/two, medium # Other &lt;script&gt;" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| behaviour |")]
    assert row.count("|") == 3


def test_values_at_the_top_of_a_card_stay_what_they_are():
    import yaml

    words = ["mit\n---\n# x", "a: b", "- x", 'say "x" \\', "no", "1", "\u2028é\x7f\U0001f600"]
    text = front_matter({"license": words[0], "tags": words, "none": None})
    assert text.split("\n").count("---") == 2
    facts = yaml.safe_load(text.removeprefix("---\n").removesuffix("\n---"))
    assert facts == {
        "license": "mit --- # x",
        "tags": ["mit --- # x", *words[1:-1], "é \U0001f600"],
    }


# Repositories of others


@pytest.mark.parametrize("card", [None, b"# Mine", b"---\nlicense: mit\n---\n# Mine\n", b"x" * (10**6 + 1)])
def test_files_of_others_are_not_replaced(hub, folder, card):
    there = {"data/mine.memmap": b"mine", "card.png": b"mine"} | ({} if card is None else {"README.md": card})
    repo = hub.add("dataset", "me/toy", there)
    shown = ", ".join(sorted(there))
    said = rf"^me/toy has files that torchrl-marl-offline did not write \({shown}\); name another repository, or"
    for revision in (None, "other"):
        with pytest.raises(HubError, match=said.replace("me/toy", f"me/toy{'@other' if revision else ''}")):
            push_dataset(folder, "me/toy", revision=revision)
    assert len(repo.messages) == 1 and repo.files() == {".gitattributes": b"", **there}


def test_a_card_alone_is_of_somebody_if_it_has_a_text(hub, folder):
    hub.add("dataset", "me/toy", {"README.md": b"---\nlicense: mit\n---\n"})
    push_dataset(folder, "me/toy")
    hub.add("dataset", "me/other", {"README.md": b"---\nlicense: mit\n---\nMine\n"})
    with pytest.raises(HubError, match=r"did not write \(README\.md\)"):
        push_dataset(folder, "me/other")


# What is fetched


def test_only_what_the_header_lists_is_fetched(hub, folder):
    push_dataset(folder, "me/toy")
    repo = published(hub)
    strange = ["run.py", "data/evil.pkl", "data/more.memmap", "data/agents/link", "../out.txt", "data/../../x.memmap"]
    repo.commit("main", repo.files() | dict.fromkeys(strange, b"strange"))
    place = pull_dataset("me/toy")
    assert set(hub.fetched()) <= files_of(folder) == files_of(place)
    assert (load_dataset("hf:me/toy").data == load_dataset(folder).data).all()


def test_a_header_that_lists_other_files_is_refused(hub, folder, tmp_path):
    for name in ("../../outside", "/etc/hostname", "data/../../x.memmap", "data/evil.pkl"):
        header = json.loads((folder / "metadata.json").read_text())
        header["files"][name] = {"bytes": 7, "blake2b": "0"}
        del header["header"]
        hub.add("dataset", "me/bad", {"metadata.json": json.dumps(header).encode(), name: b"strange"})
        with pytest.raises(DatasetError, match=re.escape(f"lists the file {name!r}, which is of no leaf")):
            pull_dataset("me/bad")
        assert hub.fetched() == ["metadata.json"]
        hub.asked.clear()


def test_the_size_is_looked_at_before(hub, folder):
    push_dataset(folder, "me/toy")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    told: list[str] = []
    with pytest.raises(HubError, match=r"^me/toy takes [\d,]+ bytes, more than 5,000; allow more by --max-bytes"):
        pull_dataset("me/toy", max_bytes=5000, announce=told.append)
    assert hub.fetched() == ["metadata.json"] and len(told) == 1
    assert abs(int(re.search(r"([\d,]+) bytes", told[0])[1].replace(",", "")) - total) < 100  # of the source's path
    pull_dataset("me/toy", max_bytes=total)


@pytest.mark.parametrize("commit", ["ABSOLUTE", "../../escaped", "0" * 39, "0" * 40 + "\n", "", None, 7, ["0" * 40]])
def test_a_commit_that_is_none_is_refused_before_it_names_a_folder(hub, folder, tmp_path, commit):
    push_dataset(folder, "me/toy")
    before = files_of(tmp_path)
    hub.commit_stated = lambda own: str(tmp_path / "abs") if commit == "ABSOLUTE" else commit
    with pytest.raises(HubError, match=r"^http\S* states .* as a commit of me/toy; check HF_ENDPOINT, or name another"):
        load_dataset("hf:me/toy")
    assert hub.fetched() == [] and files_of(tmp_path) == before


@pytest.mark.parametrize(
    "changed",
    [
        *({"size": size} for size in (None, "7", -1, 1.5, True, [])),
        *({"oid": oid} for oid in (None, 7, "../../x", "0" * 39)),
        *({"lfs": {"oid": oid, "size": 1, "pointerSize": 1}} for oid in (None, 7, "/tmp/x", "0" * 40)),
        *({"path": path} for path in (None, 7, "")),
        {"lfs": "text"},
    ],
)
def test_a_listing_of_wrong_types_is_refused(hub, folder, changed):
    push_dataset(folder, "me/toy")
    hub.stated = lambda entries: [{**entry, **({"lfs": None} | changed)} for entry in entries]
    with pytest.raises(
        HubError, match=r"^(http\S* states .* of me/toy; check|me/toy cannot be read .*; check)"
    ) as error:
        load_dataset("hf:me/toy")
    assert hub.fetched() == [] and "\n" not in str(error.value)


def test_the_password_of_a_server_is_not_told(hub, folder, monkeypatch):
    address = hub.address.replace("http://", "http://user:pa55@")
    monkeypatch.setenv("HF_ENDPOINT", address)
    hub.add("dataset", "me/toy", {})
    for status in (400, 401, 403, 404, 500):
        hub.refuses = lambda method, path, status=status: status
        with pytest.raises(HubError) as error:
            load_dataset("hf:me/toy")
        assert "pa55" not in str(error.value) and "user" not in str(error.value)
    hub.refuses = lambda method, path: None
    with pytest.raises(HubError, match="no revision 'none'; name one that http://127"):
        load_dataset("hf:me/toy@none")
    monkeypatch.setenv("HF_ENDPOINT", "http://user:pa55@127.0.0.1:9")
    with pytest.raises(HubError, match=r"HF_ENDPOINT \(http://127") as error:
        load_dataset("hf:me/toy")
    assert "pa55" not in str(error.value)


# What is damaged or broken off


@pytest.mark.parametrize("name", ["metadata.json", REWARD, "data/meta.json"])
def test_what_arrives_is_compared_with_what_the_hub_states(hub, folder, tmp_path, name):
    push_dataset(folder, "me/toy")

    def flipped(path: str, content: bytes) -> bytes:
        return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] if path == name else content

    hub.on_way = flipped
    with pytest.raises(HubError, match=rf"^me/toy: {name} arrived with another size or checksum .* fetch it again"):
        load_dataset("hf:me/toy")
    with pytest.raises(HubError):
        pull_dataset("me/toy", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    hub.on_way = lambda path, content: content
    assert len(load_dataset("hf:me/toy")) == 400


def test_a_set_that_somebody_changed_in_its_repository(hub, folder):
    push_dataset(folder, "me/toy")
    repo = published(hub)
    state = repo.files()["data/state.memmap"]
    repo.commit("main", repo.files() | {"data/state.memmap": state[::-1]})
    with pytest.raises(DatasetError, match=r"^me/toy: .*state\.memmap was changed after it was written"):
        load_dataset("hf:me/toy")
    for other, said in ((state[:-4], r"has [\d,]+ bytes; take another revision"), (None, "is not there; take")):
        files = repo.files() | {"data/state.memmap": other}
        repo.commit("main", {path: content for path, content in files.items() if content is not None})
        with pytest.raises(DatasetError, match=said):
            load_dataset("hf:me/toy")
    with pytest.raises(HubError, match="offline"):
        load_dataset("hf:me/toy", offline=True)


def test_a_fetch_that_broke_off_goes_on_with_what_is_missing(hub, folder):
    push_dataset(folder, "me/toy")
    hub.refuses = lambda method, path: 403 if method == "GET" and path.endswith(REWARD) else None
    with pytest.raises(HubError, match="me/toy"):
        load_dataset("hf:me/toy")
    with pytest.raises(HubError, match="offline"):  # a part is not the whole
        load_dataset("hf:me/toy", offline=True)
    hub.refuses = lambda method, path: None
    there = set(hub.fetched()) - {REWARD}
    hub.asked.clear()
    load_dataset("hf:me/toy")
    assert set(hub.fetched()).isdisjoint(there) and REWARD in hub.fetched()


def test_what_was_damaged_in_the_cache_is_found(hub, folder, tmp_path):
    push_dataset(folder, "me/toy")
    place = pull_dataset("me/toy")
    blob = (place / "data/state.memmap").resolve()
    blob.write_bytes(blob.read_bytes()[::-1])
    with pytest.raises(DatasetError, match=r"was changed after it was written.*; delete .*datasets--me--toy and fetch"):
        load_dataset("hf:me/toy", offline=True)
    shutil.rmtree(tmp_path / "cache")
    load_dataset("hf:me/toy")


def test_a_full_disk(hub, folder, monkeypatch):
    push_dataset(folder, "me/toy")
    monkeypatch.setattr(hub_client, "free_bytes", lambda place: 10)
    with pytest.raises(HubError, match=r"^me/toy takes [\d,]+ bytes where .* has 10 free; free some space"):
        load_dataset("hf:me/toy")

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(OSError, match="no space is left on its disk"):
        load_dataset("hf:me/toy", cache=folder.parent / "cache")


def test_what_a_server_states_in_headers_names_no_file(hub, folder):
    push_dataset(folder, "me/toy")
    hub.etag = str(folder.parent / "outside")
    assert len(load_dataset("hf:me/toy", cache=folder.parent / "cache")) == len(load_dataset(folder))
    assert not list(folder.parent.glob("outside*"))


def test_a_fetch_that_is_interrupted_within_a_file_goes_on_there(hub, folder, monkeypatch):
    push_dataset(folder, "me/toy")
    cache = folder.parent / "cache"
    write, fetched = hub_client.UpTo.write, []

    def breaking(self, content):
        fetched.append(len(content))
        write(self, content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(hub_client.UpTo, "write", breaking)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("hf:me/toy", cache=cache)
    monkeypatch.setattr(hub_client.UpTo, "write", write)
    (part,) = cache.rglob("*.part")
    assert part.stat().st_size == fetched[0] // 2 > 0
    assert len(load_dataset("hf:me/toy", cache=cache)) == len(load_dataset(folder))
    assert not list(cache.rglob("*.part"))


# Errors before any work


@pytest.mark.parametrize(
    "name", ["toy", "me/toy/more", "me//toy", "", "/toy", "me/../toy", "me/a--b", "me/toy.git", "é/x"]
)
def test_a_name_that_is_none(hub, folder, name):
    for act in (lambda: push_dataset(folder, name), lambda: load_dataset(f"hf:{name}"), lambda: pull_dataset(name)):
        with pytest.raises(HubError, match="names no repository of the hub; give OWNER/NAME"):
            act()
    assert hub.asked == []


def test_a_revision_that_is_none(hub):
    for revision in ("", "..", "a/../b", "-x", "a b", "/x"):
        with pytest.raises(HubError, match="names no revision of me/toy; give a branch, a tag or a commit"):
            Repository.named("dataset", "me/toy", revision)
    with pytest.raises(HubError, match="names a revision already"):
        load_dataset("hf:me/toy@a", revision="b")
    with pytest.raises(HubError, match="names no revision"):
        load_dataset("hf:me/toy@")


def test_a_folder_without_a_dataset(hub, tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(DatasetError, match=r"holds no dataset; give a folder that OfflineDataset\.save wrote"):
            push_dataset(place, "me/toy")
    assert hub.asked == []


def test_a_damaged_folder_is_not_published(hub, folder):
    state = folder / "data/state.memmap"
    state.write_bytes(state.read_bytes()[::-1])
    with pytest.raises(DatasetError, match="was changed after it was written"):
        push_dataset(folder, "me/toy")
    assert hub.repos == {}


def test_nobody_is_logged_in(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="needs a login; log in with: hf auth login, or set HF_TOKEN"):
        push_dataset(folder, "me/toy")
    assert hub.asked == []
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(HubError, match=r"does not know the token \(401\); log in with: hf auth login"):
        push_dataset(folder, "me/toy")
    assert hub.repos == {}


def test_a_repository_of_somebody_else(hub, folder):
    with pytest.raises(HubError, match=r"^you/toy may not be written to with this token \(403\); log in with"):
        push_dataset(folder, "you/toy")


def test_what_is_private_is_not_put_where_everybody_reads(hub, folder):
    push_dataset(folder, "me/toy")
    commits = len(published(hub).messages)
    with pytest.raises(HubError, match="me/toy is there and public; make it private in its settings"):
        push_dataset(folder, "me/toy", private=True)
    assert len(published(hub).messages) == commits


def test_a_repository_that_is_not_there_or_private(hub, folder, monkeypatch):
    with pytest.raises(HubError, match=r"^There is no dataset repository me/none at http.*, or it is private; check"):
        load_dataset("hf:me/none")
    push_dataset(folder, "me/toy", private=True)
    load_dataset("hf:me/toy")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="or it is private; check the name, or, where it is private, log in with"):
        load_dataset("hf:me/toy")


def test_a_repository_with_nothing_of_ours(hub):
    hub.add("dataset", "me/texts", {f"part-{number}.parquet": b"x" for number in range(9)})
    with pytest.raises(HubError) as error:
        load_dataset("hf:me/texts")
    shown = ", ".join([".gitattributes", *(f"part-{number}.parquet" for number in range(7))])
    assert str(error.value) == (
        f"me/texts holds no dataset of this library: there is no metadata.json, but {shown} and 2 more; name another "
        "one."
    )
    hub.add("dataset", "me/config", {"metadata.json": b"{}"})
    with pytest.raises(DatasetError, match="is damaged or not of a dataset"):
        load_dataset("hf:me/config")


def test_a_licence_that_the_hub_does_not_know(hub, folder):
    with pytest.raises(HubError, match=r"refuses what is sent to me/toy \(.*license.*\); correct what it names"):
        push_dataset(folder, "me/toy", licence="mine")


def test_offline_and_without_the_hub(hub, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="me/toy cannot be written to while HF_HUB_OFFLINE is set; unset it"):
        push_dataset(folder, "me/toy")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"^me/toy cannot be read \(.*\); check the network and HF_ENDPOINT"):
        load_dataset("hf:me/toy")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for act in (lambda: push_dataset(folder, "me/toy"), lambda: load_dataset("hf:me/toy")):
        with pytest.raises(ImportError, match=r"pip install 'torchrl-marl-offline\[hub\]'"):
            act()


def test_what_is_there_is_not_replaced_unasked(hub, folder, tmp_path, capsys):
    push_dataset(folder, "me/toy")
    hub.asked.clear()
    target = made(40).save(tmp_path / "there")
    assert main(["pull", "me/toy", str(target)]) == 1
    assert capsys.readouterr().err.endswith("pass overwrite=True or choose another folder.\n") and hub.asked == []
    assert main(["pull", "me/toy", str(target), "--overwrite"]) == 0
    assert len(load_dataset(target)) == 400


def test_commands_say_one_sentence(hub, tmp_path, capsys):
    for arguments in (["push", str(tmp_path), "me/toy"], ["pull", "toy"], ["pull", "me/none"], ["inspect", "hf:x"]):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
