from __future__ import annotations

import hashlib
import http.server
import re
import threading
import zipfile
from pathlib import Path

import processes
import pytest
import torch
from format_toys import vault_arrays, write_vault
from selection import thorough

from torchrl_marl_offline import OfflineDataset, collect, make_env
from torchrl_marl_offline.data import DatasetError, DatasetWarning, joint_saco, list_datasets, load_dataset, read_vault
from torchrl_marl_offline.data.published.cards import card_of
from torchrl_marl_offline.data.quality.card import describe

NAME = "og_marl:smac_v1/3m/Good"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "TORCHRL_MARL_OFFLINE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


# The cards


def test_the_93_sets(tmp_path):
    cards = list_datasets(cache=tmp_path)
    assert len(cards) == 93 and all(card.id == name for name, card in cards.items())
    counts = {source: len(list_datasets(source)) for source in ("og_marl", "omiga", "omar", "cfcql", "alberdice")}
    assert counts == {"og_marl": 31, "omiga": 24, "omar": 16, "cfcql": 16, "alberdice": 6}
    assert len(list_datasets(task="smac_v1/3m")) == 3 and len(list_datasets("omar", "mpe")) == 12
    with pytest.raises(ValueError, match="There is no published task 'smac_v1/3'"):
        list_datasets(task="smac_v1/3")
    with pytest.raises(ValueError, match="no source 'ogmarl'"):
        list_datasets("ogmarl")


def test_a_card():
    card = card_of("OMIGA:mamujoco/2ant/expert")
    assert card.id == "omiga:mamujoco/2ant/Expert" and card.archive == "prior_work/omiga/mamujoco/2ant.zip"
    assert (card.seeds, card.transitions, card.episodes) == (1, 1_001_000, 1000)
    assert (card.n_agents, card.observation_size, card.state_size, card.action_size) == (2, 113, 113, 4)
    assert card.returns == (2055.07, 22.07, 1994.03, 2124.15) and not card.discrete
    assert card.reference_returns == (895.37, 2124.15) and "2603.08399" in card.reference_source
    assert card.normalized_score == pytest.approx(100 * (2055.07 - 895.37) / (2124.15 - 895.37))
    assert card.env is None and "older MuJoCo physics" in card.why_no_env
    spread = card_of("omar:mpe/simple_spread/Medium")
    assert spread.env == "mpe/simple_spread" and spread.seeds == 5 and spread.time_limit == 25
    assert all((card.env is None) != (card.why_no_env is None) for card in list_datasets().values())
    with pytest.raises(DatasetError, match="did you mean 'og_marl:smac_v1/3m/Good'"):
        card_of("og_marl:smac_v1/3m/God")


def test_every_card_states_its_license_who_says_so_and_whom_to_cite():
    papers = {"og_marl": "2302.00521", "omiga": "2307.11620", "omar": "2111.11188"}
    papers |= {"cfcql": "2309.12696", "alberdice": "2311.02194"}
    for card in list_datasets().values():
        assert card.license == "Apache-2.0" and "huggingface.co/datasets/InstaDeepAI/og-marl" in card.license_source
        assert ("not stated by those who recorded" in card.license_source) == (card.source != "og_marl")
        assert re.fullmatch(rf"[A-Z].* and \w+ 20\d\d, .+, arXiv:{re.escape(papers[card.source])}", card.citation)
        assert card.paper == papers[card.source]
    assert card_of("omar:mpe/simple_spread/Expert").rights["citation"] == (
        "Pan, Huang, Ma and Xu 2022, Plan Better Amid Conservatism: Offline Multi-Agent Reinforcement Learning with "
        "Actor Rectification, arXiv:2111.11188; collected by Formanek, Beyers, Tilbury, Shock and Pretorius 2024, "
        "Putting Data at the Centre of Offline Multi-Agent Reinforcement Learning, arXiv:2409.12001"
    )


def test_coverage_of_random_play_is_the_published_one():
    """No recording of these tests is one of the published sets; random play in the same game is nearest."""
    card = card_of("omar:mpe/simple_spread/Random")
    dataset = collect(make_env("mpe/simple_spread", num_envs=40), episodes=200, seed=0)
    assert round(joint_saco(dataset), 2) == card.joint_saco == 1.0
    assert dataset.episode_returns().mean().item() == pytest.approx(card.returns[0], abs=4 * 60.7 / 200**0.5)


def test_every_environment_named_exists():
    from torchrl_marl_offline import list_tasks
    from torchrl_marl_offline.envs.starcraft_names import smac_names, smacv2_names

    starcraft = {f"smac/{name}" for name in smac_names()} | {f"smacv2/{name}" for name in smacv2_names()}
    assert {card.env for card in list_datasets().values()} - {None} <= set(list_tasks()) | starcraft


@pytest.mark.fault("5.7")
def test_the_sets_of_gymnasium_robotics_name_an_environment_of_their_sizes(tmp_path):
    pytest.importorskip("gymnasium_robotics")
    cards = list_datasets("og_marl", "gymnasium_mamujoco", cache=tmp_path)
    assert [card.task.partition("/")[2] for card in cards.values()] == [
        *("2ant", "2halfcheetah", "2walker", "3hopper", "4ant", "6halfcheetah")
    ]
    for card in cards.values():
        spec = make_env(card.env, **card.env_options).task_spec
        assert card.env_options == {"agent_obsk": 1} and card.quality == "Replay"
        for name in ("n_agents", "observation_size", "state_size", "action_size", "discrete"):
            assert getattr(card, name) == getattr(spec, name), (card.id, name)


@pytest.mark.fault("5.7")
def test_starcraft_cards_name_their_environment_or_say_why_another_one_does_not_fit():
    cards = [card for card in list_datasets().values() if card.task.startswith("smac_")]
    for card in cards:
        family, _, name = card.task.partition("/")
        env = f"{'smac' if family == 'smac_v1' else 'smacv2'}/{name}"
        assert card.env == env if card.source != "omiga" else f"than those of {env}" in card.why_no_env
    assert not any("no adapter" in str(card.why_no_env) for card in list_datasets().values())


HOPPER = "og_marl:gymnasium_mamujoco/3hopper/Replay"


def hopper_vault(folder: Path) -> Path:
    arrays = vault_arrays([3, 2], n=3, discrete=False, terminated=False)
    arrays["observations"] = arrays["observations"].repeat(3, -1)
    arrays["infos.state"] = arrays["infos.state"].repeat(6, -1)[..., :11]
    arrays["actions"] = arrays["actions"][..., :1]
    return write_vault(folder, arrays)


@pytest.mark.fault("5.7")
def test_a_set_without_a_published_card_says_so_and_fills_it_when_it_is_loaded(tmp_path, capsys, monkeypatch):
    from torchrl_marl_offline.commands.data import main
    from torchrl_marl_offline.evaluation import make_simulator

    pytest.importorskip("gymnasium_robotics")
    monkeypatch.setenv("TORCHRL_MARL_OFFLINE_CACHE", str(tmp_path))
    assert not card_of(HOPPER).is_known and card_of(HOPPER).normalized_score is None
    assert main(["list", "og_marl", "gymnasium_mamujoco"]) == 0
    assert capsys.readouterr().out.count("not fetched") == 6
    with pytest.raises(DatasetError, match=r"put https://.*/core/gymnasium_mamujoco/3hopper\.zip at"):
        load_dataset(HOPPER, offline=True)
    hopper_vault(tmp_path / "vaults/og_marl/gymnasium_mamujoco/3hopper.vlt/Replay")
    dataset = load_dataset(HOPPER, offline=True)
    card = card_of(HOPPER)
    assert (card.transitions, card.episodes, card.returns) == (5, 2, (4.5, 1.5, 3.0, 6.0))
    assert list_datasets("og_marl", "gymnasium_mamujoco/3hopper")[HOPPER] == card
    assert main(["list", "og_marl", "gymnasium_mamujoco"]) == 0
    assert capsys.readouterr().out.count("not fetched") == 5
    env = make_simulator(dataset, num_envs=1)  # linked to the environment of its physics
    assert env.task_spec.task == "mamujoco/3hopper" and "card_disagreements" not in dataset.metadata


@pytest.mark.fault("5.7")
def test_a_set_whose_qualities_are_not_published(tmp_path):
    folder = tmp_path / "vaults/og_marl/mamujoco/2ant.vlt"
    write_vault(folder / "Good", vault_arrays([3, 2], discrete=False))
    with pytest.warns(DatasetWarning, match="action_size is 2, its card says 4"):
        dataset = load_dataset("og_marl:mamujoco/2ant", cache=tmp_path, offline=True)
    assert dataset.metadata["source"] == "og_marl:mamujoco/2ant/Good"
    assert card_of("og_marl:mamujoco/2ant", cache=tmp_path).transitions == 5
    write_vault(folder / "Poor", vault_arrays([3, 2], discrete=False))
    with pytest.raises(DatasetError, match=r"2 qualities; load 'og_marl:mamujoco/2ant/Good' or .*2ant/Poor'"):
        load_dataset("og_marl:mamujoco/2ant", cache=tmp_path, offline=True)
    for name in ("og_marl:mamujoco/2ant/..", "og_marl:smac_v1/3m", "og_marl:flatland/40_trains"):
        with pytest.raises(DatasetError, match="did you mean"):
            load_dataset(name, cache=tmp_path, offline=True)


@pytest.mark.fault("5.7")
def test_the_qualities_of_an_archive_are_found_in_it(tmp_path):
    vault = write_vault(tmp_path / "2ant.vlt" / "Replay", vault_arrays([3], discrete=False))
    archive = tmp_path / "archives/core/mamujoco/2ant.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(vault.rglob("*")):
            file.write(path, path.relative_to(tmp_path))
    with pytest.warns(DatasetWarning):
        dataset = load_dataset("og_marl:mamujoco/2ant", cache=tmp_path, offline=True)
    assert dataset.metadata["quality"] == "Replay" and len(dataset) == 3


# The cache


def small_vault(cache: Path) -> Path:
    return write_vault(cache / "vaults/og_marl/smac_v1/3m.vlt/Good", vault_arrays([3, 2]))


def test_a_vault_put_in_the_cache_is_converted_once(tmp_path, monkeypatch):
    vault = small_vault(tmp_path)
    monkeypatch.setenv("TORCHRL_MARL_OFFLINE_CACHE", str(tmp_path))
    with pytest.warns(
        DatasetWarning, match=r"n_agents is 2, its card says 3; .*transitions is 5, its card says 996366"
    ):
        dataset = load_dataset(NAME, offline=True)
    assert (dataset.data == read_vault(vault).data).all()
    assert dataset.metadata["source"] == NAME and dataset.metadata["quality"] == "Good"
    assert dataset.metadata["env"] == "smac/3m"
    assert "the mean return is 3.25, its card says 16.49" in dataset.metadata["card_disagreements"]
    (vault / "manifest.ocdbt").unlink()  # no longer needed
    with pytest.warns(DatasetWarning):
        again = load_dataset(NAME, offline=True, device="cpu")
    assert (again.data == dataset.data).all()
    assert {name: again.metadata[name] for name in card_of(NAME).rights} == card_of(NAME).rights
    assert "license      Apache-2.0, stated by the publisher" in str(describe(again))
    folder = OfflineDataset.load(tmp_path / "datasets/og_marl/smac_v1/3m/Good")  # also where it is found by its path
    assert "arXiv:2302.00521" in describe(folder).facts["citation"]
    assert not (tmp_path / "unpacked").exists() or not any((tmp_path / "unpacked").rglob("*.ocdbt"))


def test_the_recorded_vault_disagrees_with_the_published_card(recordings, tmp_path):
    target = tmp_path / "vaults/og_marl/smac_v1"
    target.mkdir(parents=True)
    (target / "3m.vlt").symlink_to(recordings / "vaults/og_marl/smac_v1/3m.vlt")
    with pytest.warns(DatasetWarning) as caught:
        dataset = load_dataset("og_marl:smac_v1/3m/Medium", cache=tmp_path, offline=True)
    assert str(caught[0].message) == (
        "og_marl:smac_v1/3m/Medium is not what is published: transitions is 7614, its card says 995313; it has 300 "
        "episodes, its card says 41619; the mean return is 13.70, its card says 9.96."
    )
    assert dataset.metadata["time_limit"] == 60 and (~dataset.data["collector", "mask"]).sum() == 9


def test_without_network_one_sentence_says_what_to_put_where(tmp_path):
    with pytest.raises(DatasetError) as error:
        load_dataset(NAME, cache=tmp_path, offline=True)
    assert str(error.value) == (
        f"{NAME} is not in {tmp_path} and nothing may be fetched offline; put "
        f"https://huggingface.co/datasets/InstaDeepAI/og-marl/resolve/main/core/smac_v1/3m.zip at "
        f"{tmp_path}/archives/core/smac_v1/3m.zip, or its folder 3m.vlt/Good at {tmp_path}/vaults/og_marl/smac_v1/"
        "3m.vlt/Good, or name another cache folder."
    )


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
def test_a_set_with_an_illegal_action_loads_repaired_only(tmp_path):
    arrays = vault_arrays([3, 2] * 4)
    arrays["actions"][0, 13] = (arrays["actions"][0, 13] + 1) % 3
    write_vault(tmp_path / "vaults/og_marl/smac_v1/3m.vlt/Good", arrays)
    with pytest.raises(DatasetError, match=r"^og_marl:smac_v1/3m/Good: .* is illegal .* repair=True\) mend it\.$"):
        load_dataset(NAME, cache=tmp_path, offline=True)
    repaired = load_dataset(NAME, cache=tmp_path, offline=True, repair=True)
    assert len(repaired) == 20 and repaired.metadata["repairs"]
    with pytest.raises(DatasetError, match="is illegal"):  # it lies converted in the cache now, as it is
        load_dataset(NAME, cache=tmp_path, offline=True)


CONVERTS = """
import sys, warnings
warnings.simplefilter("ignore")
from torchrl_marl_offline.data import load_dataset
print(len(load_dataset("og_marl:smac_v1/3m/Good", cache=sys.argv[1], offline=True)))
"""


@pytest.mark.slow
def test_two_processes_may_convert_at_once(tmp_path):
    write_vault(tmp_path / "vaults/og_marl/smac_v1/3m.vlt/Good", vault_arrays([20] * 500), chunk_rows=1000)
    both = [processes.start("-c", CONVERTS, tmp_path) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == ["10000", "10000"]
    assert [entry.name for entry in (tmp_path / "datasets/og_marl/smac_v1/3m").iterdir()] == ["Good"]


# Fetching, from a server of the test's own


class Server:
    """Serves one archive as Hugging Face does; can lie about its checksum or break off in the middle."""

    def __init__(self, content: bytes, *, checksum: str | None = None, break_off: int = 0) -> None:
        self.ranges: list[str | None] = []
        etag = checksum or hashlib.sha256(content).hexdigest()
        breaks = [break_off] if break_off else []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, with_body: bool) -> None:
                if self.path != "/datasets/InstaDeepAI/og-marl/resolve/main/core/smac_v1/3m.zip":
                    self.send_error(404)
                    return
                asked = self.headers.get("Range") if with_body else None
                start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
                body = content[start:]
                self.send_response(206 if asked else 200)
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Accept-Ranges", "bytes")
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    server.ranges.append(asked)
                    self.wfile.write(body[: breaks.pop()] if breaks else body)
                    self.close_connection = True

            def do_HEAD(self) -> None:
                self.answer(False)

            def do_GET(self) -> None:
                self.answer(True)

            def log_message(self, *args) -> None:
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.httpd.server_address[1]}"

    def __enter__(self) -> Server:
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()


@pytest.fixture
def archive(tmp_path) -> bytes:
    pytest.importorskip("huggingface_hub")
    vault = write_vault(tmp_path / "made" / "3m.vlt" / "Good", vault_arrays([3, 2]))
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as file:
        for path in sorted(vault.rglob("*")):
            file.write(path, path.relative_to(tmp_path / "made"))
        file.writestr("3m.vlt/Poor/manifest.ocdbt", b"another quality, not unpacked")
    return (tmp_path / "made.zip").read_bytes()


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
def test_fetch_and_convert(tmp_path, archive, monkeypatch):
    cache = tmp_path / "cache"
    with Server(archive) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        dataset = load_dataset(NAME, cache=cache, progress=False)
    assert dataset.episode_lengths.tolist() == [3, 2] and server.ranges == [None]
    assert (cache / "archives/core/smac_v1/3m.zip").read_bytes() == archive
    assert len(load_dataset(NAME, cache=cache)) == 5  # the server is gone


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
def test_a_fetch_goes_on_where_it_stopped(tmp_path, archive):
    cache, half = tmp_path / "cache", len(archive) // 2
    part = cache / f"archives/core/smac_v1/.3m.zip.{hashlib.sha256(archive).hexdigest()[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(archive[:half])  # what a killed process left
    with Server(archive) as server:
        assert len(load_dataset(NAME, cache=cache, mirror=server.address)) == 5
    assert server.ranges == [f"bytes={half}-"] and not part.exists()
    with Server(archive, break_off=half) as server:  # the connection breaks
        assert len(load_dataset(NAME, cache=tmp_path / "other", mirror=server.address)) == 5
    assert len(server.ranges) == 2  # the client asks again


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
@pytest.mark.parametrize("left", ["longer", "whole"])
def test_what_is_left_of_a_fetch_may_be_longer_or_whole(tmp_path, archive, left):
    part = tmp_path / f"cache/archives/core/smac_v1/.3m.zip.{hashlib.sha256(archive).hexdigest()[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(archive + b"more" * (left == "longer"))
    with Server(archive) as server:
        assert len(load_dataset(NAME, cache=tmp_path / "cache", mirror=server.address)) == 5
    assert server.ranges == ([None] if left == "longer" else []) and not part.exists()


def test_what_arrives_is_checked(tmp_path, archive):
    with (
        Server(archive, checksum="0" * 64) as server,
        pytest.raises(DatasetError, match=r"instead of 0{64} and was deleted; fetch it again"),
    ):
        load_dataset(NAME, cache=tmp_path / "cache", mirror=server.address)
    with Server(archive, checksum="abc") as server, pytest.raises(DatasetError, match="states no SHA-256"):
        load_dataset(NAME, cache=tmp_path / "cache", mirror=server.address)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_server_without_the_file_or_no_server(tmp_path, archive):
    with Server(archive) as server, pytest.raises(DatasetError, match=r"cannot be fetched: .*8m\.zip.*; put https://"):
        load_dataset("og_marl:smac_v1/8m/Good", cache=tmp_path, mirror=server.address)
    with pytest.raises(DatasetError, match=r"cannot be fetched: .* cannot be reached .*; put https://huggingface"):
        load_dataset(NAME, cache=tmp_path, mirror=server.address)


def test_a_damaged_archive_put_there_by_hand(tmp_path, archive):
    target = tmp_path / "archives/core/smac_v1/3m.zip"
    target.parent.mkdir(parents=True)
    for content in (archive[:-200], archive.replace(b"3m.vlt", b"4m.vlt"), b"no zip"):
        target.write_bytes(content)
        with pytest.raises(DatasetError, match=r"3m\.zip (cannot be read|holds no 3m\.vlt/Good)"):
            load_dataset(NAME, cache=tmp_path, offline=True)
    assert not (tmp_path / "datasets").exists() and not any((tmp_path / "unpacked").rglob("manifest.ocdbt"))


# TorchRL's own load_dataset


def test_every_prefix_but_torchrls_own_is_registered():
    import torchrl_marl_offline.data.torchrl_datasets  # noqa: F401, I001 -- it hushes what TorchRL's collectors say
    from torchrl.data.datasets.utils import _DATASET_REGISTRY as registered
    from torchrl_marl_offline.data.hub import HUB
    from torchrl_marl_offline.data.published.cards import SOURCES
    from torchrl_marl_offline.data.formats.readers import READERS

    assert {*SOURCES, HUB, *READERS} <= registered.keys()
    ours = {prefix for prefix in registered if callable(registered[prefix])}
    assert ours == {*SOURCES, HUB, *READERS} - {"minari", "d4rl"}


@pytest.mark.parametrize("first", ["torchrl_marl_offline", thorough("torchrl.data.datasets")])
def test_torchrl_loads_our_sources(tmp_path, first):
    code = """
import sys
import FIRST
import torchrl_marl_offline
from torchrl.data.datasets import load_dataset
from torchrl.data.datasets.common import BaseDatasetExperienceReplay
buffer = load_dataset("vault:" + sys.argv[1], batch_size=8, seed=0, slice_len=2)
assert isinstance(buffer, BaseDatasetExperienceReplay)
print(buffer.sample()["agents", "observation"].shape, len(buffer), len(buffer.dataset))
""".replace("FIRST", first)
    vault = write_vault(tmp_path / "v", vault_arrays([3, 2]))
    result = processes.run_new(code, vault)
    assert result.stdout.strip() == "torch.Size([8, 2, 3]) 5 5", result.stderr


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
def test_the_buffer_of_a_published_set_knows_its_folder(tmp_path):
    import torchrl_marl_offline.data.torchrl_datasets as replay

    small_vault(tmp_path)
    buffer = replay.load_replay("og_marl", "smac_v1/3m/Good", cache=tmp_path, offline=True, batch_size=4, seed=1)
    assert buffer.data_path == tmp_path / "datasets/og_marl/smac_v1/3m/Good"
    assert buffer.data_path_root.name == "3m" and torch.is_tensor(buffer.sample()["state"])
