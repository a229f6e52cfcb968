"""Files of every format that lead elsewhere, wait for ever, or declare more than they hold."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_toys import episodes, pymarl_episode_arrays, write_h5
from format_toys import d4rl_arrays, omiga_arrays, vault_arrays, write_minari, write_omar, write_vault
from payloads import payload_bytes

from torchrl_marl_offline.core.hub_client import UpTo
from torchrl_marl_offline.data import DatasetError, DatasetWarning, convert_dataset, load_dataset
from torchrl_marl_offline.data.published.cards import card_of
from torchrl_marl_offline.data.published.fetching import unpack_quality

READERS = {
    "pymarl:": ("a.h5", lambda file: write_h5(file, pymarl_episode_arrays([3, 1, 4], longest=4)), ("obs", "reward")),
    "omiga_h5:": ("b.h5", lambda file: write_h5(file, omiga_arrays([3, 1, 4])), ("o", "d")),
    "d4rl:": ("c.h5", lambda file: write_h5(file, d4rl_arrays()), ("observations", "timeouts")),
}
FOLDERS = ("omar_npy:", "vault:", "minari:", "")


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


def folder_of(prefix, tmp_path, monkeypatch):
    return {
        "omar_npy:": lambda: write_omar(tmp_path / "seed_0_data", episodes=2, length=25),
        "vault:": lambda: write_vault(tmp_path / "vault", vault_arrays([3, 1, 4])),
        "minari:": lambda: write_minari(tmp_path, monkeypatch, [3, 2, 4]),
        "": lambda: episodes([3, 1, 4]).save(tmp_path / "ours"),
    }[prefix]()


def refused(source, mark=None, match=None) -> str:
    with pytest.raises(DatasetError, match=match) as caught:
        load_dataset(source)
    assert "\n" not in str(caught.value) and (mark is None or not mark.exists())
    return str(caught.value)


def external_link(file, name, values, elsewhere):
    import h5py

    file[name] = h5py.ExternalLink(elsewhere, name)


def soft_link_through_an_external_one(file, name, values, elsewhere):
    import h5py

    file["door"] = h5py.ExternalLink(elsewhere, "/")
    file[name] = h5py.SoftLink(f"/door/{name}")


def virtual_dataset(file, name, values, elsewhere):
    import h5py

    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource(elsewhere, name, values.shape)
    file.create_virtual_dataset(name, layout)


def external_storage(file, name, values, elsewhere):
    raw = elsewhere.with_suffix(".raw")
    raw.write_bytes(values.tobytes())
    file.create_dataset(name, values.shape, values.dtype, external=[(str(raw), 0, values.nbytes)])


def link_that_leads_to_itself(file, name, values, elsewhere):
    import h5py

    file[name] = h5py.SoftLink(f"/{name}")


@pytest.mark.fault("1.3")
@pytest.mark.parametrize("prefix", [*READERS, "minari:"])
@pytest.mark.parametrize(
    "lead",
    [external_link, soft_link_through_an_external_one, virtual_dataset, external_storage, link_that_leads_to_itself],
)
def test_an_array_of_another_file_is_not_read(tmp_path, monkeypatch, prefix, lead):
    h5py = pytest.importorskip("h5py")
    if prefix == "minari:":
        source = folder_of(prefix, tmp_path, monkeypatch)
        file, names = source / "data" / "main_data.hdf5", ("episode_1/observations", "episode_2/rewards", "episode_0")
    else:
        name, write, names = READERS[prefix]
        source = file = write(tmp_path / name)
    elsewhere = shutil.copy(file, tmp_path / "elsewhere.h5")
    for number, name in enumerate(names):
        if prefix != "minari:":
            source = file = tmp_path / f"{number}.h5"
        shutil.copy(elsewhere, file)
        with h5py.File(file, "r+") as content:
            if isinstance(content[name], h5py.Group) and "link" not in lead.__name__:
                continue
            values = content[name][()] if isinstance(content[name], h5py.Dataset) else None
            del content[name]
            lead(content, name, values, elsewhere)
        refused(f"{prefix}{source}")


@pytest.mark.fault("1.3")
def test_a_link_within_the_file_is_followed(tmp_path):
    h5py = pytest.importorskip("h5py")
    file = write_h5(tmp_path / "d.h5", d4rl_arrays())
    with h5py.File(file, "r+") as content:
        content.move("observations", "raw/seen")
        content["observations"] = h5py.SoftLink("/raw/seen")
    assert len(load_dataset(f"d4rl:{file}")) == 6


def linked_twice_per_level(file, depth):
    """Groups ``q_i`` of two hard links each: the array at the bottom would be read ``2 ** depth`` times."""
    import h5py

    with h5py.File(file, "r+") as content:
        below = content["episode_0/observations"]
        for level in range(depth):
            group = content.create_group(f"q_{level}")
            group["a"] = group["b"] = below
            below = group
        del content["episode_0/observations"]
        content["episode_0/observations"] = below


def episodes_that_are_one_group(file, depth):
    import h5py

    with h5py.File(file, "r+") as content:
        for number in (1, 2):
            del content[f"episode_{number}"]
            content[f"episode_{number}"] = content["episode_0"]


def group_within_itself(file, depth):
    import h5py

    with h5py.File(file, "r+") as content:
        del content["episode_0/observations"]
        content["episode_0/observations"] = content["episode_0"]


@pytest.mark.fault("5.6")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("plant", [linked_twice_per_level, episodes_that_are_one_group, group_within_itself])
def test_what_is_reached_under_two_names_is_not_read_twice(tmp_path, monkeypatch, plant):
    folder = folder_of("minari:", tmp_path, monkeypatch)
    plant(folder / "data" / "main_data.hdf5", 40)
    assert "is a link to" in refused(f"minari:{folder}")


@pytest.mark.fault("5.6")
@pytest.mark.parametrize("prefix", READERS)
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_an_array_under_the_names_of_two_is_refused(tmp_path, prefix, kind):
    h5py = pytest.importorskip("h5py")
    names = {"pymarl:": ("filled", "terminated"), "omiga_h5:": ("d", "r"), "d4rl:": ("timeouts", "terminals")}[prefix]
    name, write, _ = READERS[prefix]
    file = write(tmp_path / name)
    with h5py.File(file, "r+") as content:
        del content[names[1]]
        content[names[1]] = content[names[0]] if kind == "hard" else h5py.SoftLink(f"/{names[0]}")
    assert "is a link to" in refused(f"{prefix}{file}")


@pytest.mark.fault("1.3")
@pytest.mark.parametrize("prefix", ["omar_npy:", "minari:", "pymarl:", "vault:", ""])
def test_no_format_follows_a_link_out_of_its_folder(tmp_path, monkeypatch, prefix):
    """Also where the link is the part by which the format is told; the folder that is named may be a link."""
    if prefix == "pymarl:":
        folder, linked = tmp_path / "in", "part_0.h5"
        folder.mkdir()
        READERS[prefix][1](folder / linked)
    else:
        folder = folder_of(prefix, tmp_path / "in", monkeypatch)
        folder = folder.parent if prefix == "omar_npy:" else folder
        linked = {"omar_npy:": "seed_0_data", "minari:": "data", "vault:": "d", "": "data"}[prefix]
    if not (folder / linked).exists():
        pytest.skip("all is in one file")
    (tmp_path / "named").symlink_to(folder)
    load_dataset(tmp_path / "named")
    shutil.move(folder / linked, tmp_path / "outside")
    (folder / linked).symlink_to(tmp_path / "outside")
    for source in (folder, f"{prefix}{folder}"):
        assert linked in refused(source, match="link")


@pytest.mark.fault("1.3")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("prefix", [*FOLDERS, "pymarl:"])
def test_a_pipe_by_which_a_format_is_told_is_called_a_pipe(tmp_path, monkeypatch, prefix):
    names = {
        "omar_npy:": "obs_0.npy",
        "vault:": "manifest.ocdbt",
        "minari:": "data/main_data.hdf5",
        "": "metadata.json",
    }
    if prefix == "pymarl:":
        folder, names[prefix] = tmp_path / "in", "part_0.h5"
        folder.mkdir()
    else:
        folder = folder_of(prefix, tmp_path / "in", monkeypatch)
        (folder / names[prefix]).unlink()
    os.mkfifo(folder / names[prefix])
    for source in (folder, f"{prefix}{folder}"):
        assert names[prefix] in refused(source, match="named pipe")


@pytest.mark.parametrize("prefix", READERS)
def test_a_group_or_an_empty_array_in_the_place_of_an_array_is_named(tmp_path, prefix):
    h5py = pytest.importorskip("h5py")
    name, write, arrays = READERS[prefix]
    for kind, told in (("group", "group of arrays"), ("empty", "without a shape")):
        file = write(tmp_path / f"{kind}-{name}")
        with h5py.File(file, "r+") as content:
            del content[arrays[1]]
            if kind == "group":
                content[f"{arrays[1]}/x"] = 1
            else:
                content[arrays[1]] = h5py.Empty("f4")
        assert f"{arrays[1]} is" in refused(f"{prefix}{file}", match=told)


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"type": "Graph"}, "'Graph', where Box"),
        ({"type": "os.system"}, "'os.system', where Box"),
        ({"type": "Tuple", "subspaces": [{"type": "Text", "max_length": 10**9}]}, "'Text', where Box"),
        ([1], "where Box"),
        (7, "'7', where Box"),
        *(
            ({"type": "Box", "dtype": dtype, "shape": [1], "low": ["-1"], "high": ["1"]}, "the type")
            for dtype in ("U500000000", "V1000000000", "O", "M8[s]", "S9", "complex128", 5, ["f4"])
        ),
        ({"type": "MultiDiscrete", "dtype": "U500000000", "nvec": ["3"], "start": ["0"]}, "the type"),
        ({"type": "Box", "dtype": "float32", "shape": [-1, -5], "low": [-1], "high": [1]}, "shape is"),
        ({"type": "Box", "dtype": "float32", "shape": ["x"], "low": [-1], "high": [1]}, "shape is"),
        ({"type": "MultiBinary", "n": [2.5]}, "n is"),
    ],
)
def test_a_space_is_looked_at_before_numpy_makes_arrays_of_it(tmp_path, monkeypatch, space, told):
    folder = folder_of("minari:", tmp_path, monkeypatch)
    file = folder / "data" / "metadata.json"
    whole, before = json.loads(file.read_text()), peak_bytes()
    for kind in ("observation_space", "action_space"):
        file.write_text(json.dumps(whole | {kind: json.dumps(space)}))
        assert kind in refused(f"minari:{folder}", match=told)
    assert peak_bytes() - before < 64 * 2**20


@pytest.mark.parametrize("stated", [2, 4, 0, -1, 2.0, None])
def test_minari_episodes_are_as_many_as_stated(tmp_path, monkeypatch, stated):
    folder = folder_of("minari:", tmp_path, monkeypatch)
    file = folder / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"total_episodes": stated}))
    assert "fetch it again" in refused(f"minari:{folder}", match=f"states {stated} episodes")


@pytest.mark.fault("1.3")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "device", "link out", "dangling"])
@pytest.mark.parametrize("prefix", FOLDERS)
def test_something_else_in_the_place_of_a_file_is_refused_at_once(tmp_path, monkeypatch, prefix, kind):
    for library in ("tensorstore", "minari"):
        pytest.importorskip(library)
    folder = folder_of(prefix, tmp_path / "in", monkeypatch)
    outside = tmp_path / "outside"
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        shutil.move(file, outside)
        if kind == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to({"device": "/dev/zero", "link out": outside, "dangling": tmp_path / "nowhere"}[kind])
        refused(f"{prefix}{folder}")
        file.unlink()
        shutil.move(outside, file)
    load_dataset(f"{prefix}{folder}")


@pytest.mark.fault("1.3")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("prefix", [*READERS, *FOLDERS])
def test_a_pipe_or_a_device_is_no_dataset(tmp_path, prefix):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        refused(f"{prefix}{path}")


@pytest.mark.fault("1.3")
def test_minari_does_not_make_the_environment_that_a_dataset_names(tmp_path, monkeypatch, mark):
    folder = folder_of("minari:", tmp_path, monkeypatch)
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    payload = {"id": "Evil-v0", "entry_point": "os:mknod", "kwargs": {"path": str(mark)}, "additional_wrappers": []}
    for space in ("observation_space", "action_space"):
        named = {"env_spec": json.dumps(payload), "eval_env_spec": json.dumps(payload)}
        file.write_text(json.dumps({name: value for name, value in metadata.items() if name != space} | named))
        refused(f"minari:{folder}", mark, match=space)
    file.write_text(json.dumps(metadata | {"data_format": "arrow"}))
    refused(f"minari:{folder}", mark, match="arrow")


@pytest.mark.fault("1.3")
def test_a_pickle_in_the_place_of_an_array_is_not_executed(tmp_path, mark, monkeypatch):
    folder = write_omar(tmp_path / "seed_0_data", episodes=2, length=25)
    objects = io.BytesIO()
    np.save(objects, np.array([None]), allow_pickle=True)
    headed = objects.getvalue()[:-4] + payload_bytes(mark)
    archive = io.BytesIO()
    np.savez(archive, np.zeros(3))
    for content in (payload_bytes(mark), headed, archive.getvalue()):
        (folder / "obs_0.npy").write_bytes(content)
        refused(f"omar_npy:{folder}", mark)
    for name, write, _ in READERS.values():
        file = write(tmp_path / name)
        file.write_bytes(payload_bytes(mark))
        for prefix in READERS:
            refused(f"{prefix}{file}", mark)


# Sizes


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


DECLARED = {
    "pymarl:": lambda n: {
        "obs": (n, 4, 2, 3),
        "state": (n, 4, 5),
        "actions": (n, 4, 2, 1),
        "avail_actions": (n, 4, 2, 3),
        "reward": (n, 4, 1),
        "terminated": (n, 4, 1),
        "filled": (n, 4, 1),
    },
    "omiga_h5:": lambda n: {"o": (n, 2, 2), "s": (n, 2, 3), "a": (n, 2, 1), "r": (n, 1), "d": (n, 1)},
    "d4rl:": lambda n: {"observations": (n, 2), "actions": (n, 1), "rewards": (n,), "terminals": (n,)},
}


@pytest.mark.fault("5.6")
@pytest.mark.parametrize("stored", ["chunks", "contiguous", "one huge chunk"])
@pytest.mark.parametrize("prefix", DECLARED)
def test_declared_rows_that_are_not_there_cost_nothing(tmp_path, prefix, stored):
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "declared.h5"
    rows = 10**8
    with h5py.File(file, "w") as content:
        for name, shape in DECLARED[prefix](rows).items():
            chunks = {"chunks": (1000, *shape[1:]), "contiguous": None, "one huge chunk": (10**7, *shape[1:])}[stored]
            data = content.create_dataset(name, shape, "f4", chunks=chunks)
            if stored == "chunks":
                data[:4] = 1
    before = peak_bytes()
    message = refused(f"{prefix}{file}")
    assert "does not hold" in message or "would become" in message
    assert peak_bytes() - before < 64 * 2**20  # of 1.6 GB and more


@pytest.mark.fault("5.6")
def test_compressed_zeros_are_not_unpacked(tmp_path):
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "zeros.h5"
    with h5py.File(file, "w") as content:
        for name, shape in DECLARED["d4rl:"](2**21).items():
            options = {"chunks": (2**18, *shape[1:]), "compression": "gzip", "compression_opts": 9}
            content.create_dataset(name, data=np.zeros(shape, np.float32), **options)
    assert "h5repack" in refused(f"d4rl:{file}")


@pytest.mark.fault("5.6")
def test_a_recording_of_padded_episodes_is_no_bomb(tmp_path):
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "padded.h5"
    arrays = pymarl_episode_arrays([3, 1, 4] * 100, longest=200)
    with h5py.File(file, "w") as content:
        for name, values in arrays.items():
            content.create_dataset(name, data=values, compression="gzip")
    declared = sum(values.nbytes for values in arrays.values())
    assert declared > 40 * file.stat().st_size
    assert len(load_dataset(f"pymarl:{file}")) == 800


@pytest.mark.fault("5.6")
@pytest.mark.parametrize("prefix", ["minari:", "vault:", "omar_npy:"])
def test_sizes_of_the_other_formats_are_looked_at_first(tmp_path, monkeypatch, prefix):
    folder = folder_of(prefix, tmp_path, monkeypatch)
    before = peak_bytes()
    if prefix == "minari:":
        file = folder / "data" / "metadata.json"
        metadata = json.loads(file.read_text())
        box = {"type": "Box", "dtype": "float32", "shape": [10**9], "low": 0.0, "high": 1.0}
        bits = {"type": "MultiBinary", "n": 10**11}
        changes = [{"total_episodes": 10**9}, {"total_episodes": "3"}, {"observation_space": json.dumps(box)}]
        for change in (*changes, {"action_space": json.dumps(bits)}):
            file.write_text(json.dumps(metadata | change))
            refused(f"{prefix}{folder}")
    elif prefix == "vault:":
        for other in (
            write_vault(tmp_path / "long", vault_arrays([3]), rows=10**9),
            wide_chunks(tmp_path / "wide", 10**8),
            wide_chunks(tmp_path / "wide_index", 2**29, "vault_index"),
        ):
            assert "cannot hold" in refused(f"{prefix}{other}")
    else:
        file = folder / "obs_0.npy"
        file.write_bytes(headed(file, 10**9))
        refused(f"{prefix}{folder}")
    assert peak_bytes() - before < 64 * 2**20


def headed(file, rows: int) -> bytes:
    """The array's bytes under a header that declares more rows."""
    values = np.load(file)
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (rows, *values.shape[1:])}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + values.tobytes()


def wide_chunks(folder, chunk_rows, name="observations."):
    """A vault one of whose arrays comes in chunks of gigabytes."""
    import tensorstore

    folder = write_vault(folder, vault_arrays([3]))
    is_index = name == "vault_index"
    store = {"driver": "ocdbt", "base": folder.as_uri(), "path": name}
    layout = {"compressor": {"id": "gzip", "level": 1}, "chunks": [chunk_rows] if is_index else [1, chunk_rows, 2, 3]}
    spec = {"driver": "zarr", "kvstore": store, "metadata": layout}
    shape, dtype = ((1,), "int32") if is_index else ((1, 10**13, 2, 3), "float32")
    tensorstore.open(spec, shape=shape, dtype=dtype, create=True, delete_existing=True).result()
    return folder


# Archives


def archive_of(tmp_path, members, **options):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", **options) as archive:
        for info, content in members:
            archive.writestr(info, content)
    return path


def special(name, kind):
    info = zipfile.ZipInfo(name)
    info.external_attr = kind << 16
    return info


@pytest.mark.fault("1.3")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("3m.vlt/Good/../../../evil", "leads out"),
        ("../3m.vlt/Good/evil", "leads out"),
        ("/3m.vlt/Good/evil", "leads out"),
        ("C:/3m.vlt/Good/evil", "leads out"),
        ("3m.vlt/Good/..\\..\\evil", "leads out"),
        (special("3m.vlt/Good/link", 0o120777), "a link or a device"),
        (special("3m.vlt/Good/pipe", 0o010666), "a link or a device"),
        ("3m.vlt/Good/manifest.ocdbt/below", "below another file"),
        ("other/3m.vlt/Good/manifest.ocdbt/../x", "leads out"),
    ],
)
def test_an_archive_unpacks_nothing_outside_its_folder(tmp_path, name, reason):
    path = archive_of(tmp_path, [("3m.vlt/Good/manifest.ocdbt", b"x"), (name, b"evil")])
    with pytest.raises(DatasetError, match=reason):
        unpack_quality(path, card_of("og_marl:smac_v1/3m/Good"), tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists() and not (tmp_path / "evil").exists()


@pytest.mark.fault("1.3")
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_becomes_no_more_than_a_vault_can_hold(tmp_path, monkeypatch):
    card, target = card_of("og_marl:smac_v1/3m/Good"), tmp_path / "unpacked"
    zeros = [(f"3m.vlt/Good/{i}", bytes(2**22)) for i in range(4)]
    path = archive_of(tmp_path, zeros, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DatasetError, match="would become 16,777,216 bytes"):
        unpack_quality(path, card, target)
    path = archive_of(tmp_path, [("3m.vlt/Good/a", b"1"), ("3m.vlt/Good/a", b"2")])
    with pytest.raises(DatasetError, match="twice"):
        unpack_quality(path, card, target)
    path = archive_of(tmp_path, [("3m.vlt/Good/a", b"1")])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 0))
    with pytest.raises(DatasetError, match="0 free"):
        unpack_quality(path, card, target)
    assert not target.exists()


@pytest.mark.fault("1.3")
def test_a_server_sends_no_more_than_it_announced(tmp_path):
    with (tmp_path / "part").open("ab") as stream:
        sink = UpTo(stream, 10)
        sink.write(b"12345")
        assert sink.tell() == 5
        with pytest.raises(OSError, match="more than it announced"):
            sink.write(b"678901")
    assert (tmp_path / "part").read_bytes() == b"12345"


ROUNDED = {
    "pymarl:": lambda path: write_h5(path / "a.h5", later(pymarl_episode_arrays([9] * 9, longest=10), "obs")),
    "omiga_h5:": lambda path: write_h5(path / "b.h5", later(omiga_arrays([9] * 9), "o")),
    "d4rl:": lambda path: write_h5(path / "c.h5", later(d4rl_arrays(), "observations")),
}


def later(arrays, name):
    return arrays | {name: 1.7e9 + 0.1 * np.arange(arrays[name].size).reshape(arrays[name].shape)}


def later_folder(prefix, tmp_path, monkeypatch):
    if prefix == "vault:":
        return write_vault(tmp_path / "vault", later(vault_arrays([9] * 9), "observations"))
    folder = folder_of(prefix, tmp_path, monkeypatch)
    if prefix == "minari:":
        import h5py

        with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
            for number, values in enumerate([file[f"episode_{i}/observations"][()] for i in range(3)]):
                del file[f"episode_{number}/observations"]
                file[f"episode_{number}/observations"] = 1.7e9 + 0.1 * values.astype(np.float64)
    else:
        for name in ("obs_0.npy", "next_obs_0.npy"):
            np.save(folder / name, 1.7e9 + 0.1 * np.load(folder / name))
    return folder


@pytest.mark.parametrize("prefix", [*ROUNDED, "omar_npy:", "vault:", "minari:"])
def test_every_reader_tells_of_values_that_float32_cannot_tell_apart(tmp_path, monkeypatch, prefix):
    source = ROUNDED[prefix](tmp_path) if prefix in ROUNDED else later_folder(prefix, tmp_path, monkeypatch)
    with pytest.warns(DatasetWarning, match="float32 can tell.*subtract an offset"):
        load_dataset(f"{prefix}{source}")
    if prefix in ("omiga_h5:", "omar_npy:", "vault:"):
        with pytest.warns(DatasetWarning, match="float32 can tell"):
            load_dataset(convert_dataset(f"{prefix}{source}", tmp_path / "converted", progress=False))


@pytest.mark.fault("5.6")
def test_reading_pymarl_takes_a_small_multiple_of_what_is_declared(tmp_path):
    """Nothing is held twice over: 2.5 times the arrays were measured, of which 1.7 are the transitions."""
    episodes_, steps = 4000, 51
    sizes = {"obs": (2, 8), "state": (8,), "avail_actions": (2, 5), "actions": (2, 1), "reward": (1,)}
    kinds = {"avail_actions": np.int32, "actions": np.int64, "filled": np.int64, "terminated": np.uint8}
    arrays = {
        name: np.ones((episodes_, steps, *sizes.get(name, (1,))), kinds.get(name, np.float32))
        for name in (*sizes, "filled", "terminated")
    }
    arrays["terminated"][:, :-2] = arrays["terminated"][:, -1] = 0
    file = write_h5(tmp_path / "a.h5", arrays)
    declared = sum(values.nbytes for values in arrays.values())
    del arrays
    load_dataset(write_h5(tmp_path / "small.h5", pymarl_episode_arrays([3, 1, 4], longest=4)))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        pytest.skip("this system does not measure a part of a process")
    before = _status("VmRSS")
    load_dataset(file, inspect=False)
    assert _status("VmHWM") - before < 2.7 * declared


def _status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
