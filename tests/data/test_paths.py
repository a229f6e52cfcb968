"""Where data lies: formats told by their content, ``~``, folders that may be read only."""

from __future__ import annotations

import os

import pytest
import torch
from data_toys import episodes, pymarl_episode_arrays, write_h5
from format_toys import d4rl_arrays, omiga_arrays, vault_arrays, write_minari, write_omar, write_vault

from torchrl_marl_offline.commands.data import main
from torchrl_marl_offline.data import DatasetError, OfflineDataset, convert_dataset, inspect_source, load_dataset

pytestmark = pytest.mark.fault("5.2")


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict:
    """A recording of each format, ``prefix: path``."""
    pytest.importorskip("tensorstore")
    for name in ("pymarl", "parts"):
        (tmp_path / name).mkdir()
    arrays = pymarl_episode_arrays([3, 1], longest=3)
    write_h5(tmp_path / "parts" / "part_0.h5", arrays)
    write_omar(tmp_path / "omar" / "seed_0_data", episodes=2, length=25)
    return {
        "pymarl": [write_h5(tmp_path / "pymarl" / "any.name", arrays), tmp_path / "parts"],
        "vault": [write_vault(tmp_path / "3m.vlt" / "Good", vault_arrays([3, 2]))],
        "omiga_h5": [write_h5(tmp_path / "o.hdf5", omiga_arrays([3, 1]))],
        "d4rl": [write_h5(tmp_path / "d.hdf5", d4rl_arrays())],
        "omar_npy": [tmp_path / "omar", tmp_path / "omar" / "seed_0_data"],
        "minari": [write_minari(tmp_path / "m", monkeypatch, [3])],
    }


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
def test_every_format_is_told_by_its_content(places, tmp_path, capsys):
    minari = places["minari"][0]
    places["minari"] += [minari / "data", minari / "data" / "main_data.hdf5"]
    for prefix, paths in places.items():
        whole = load_dataset(f"{prefix}:{paths[0]}")
        for path in paths:
            dataset = load_dataset(path)
            assert (dataset.data == whole.data).all(), path
            assert inspect_source(path)[1] is not None
            assert dataset.metadata["source"].startswith(f"{prefix}:")
        assert main(["inspect", str(paths[0])]) in (0, 1)  # the toys have defects of their own
        assert "transitions" in capsys.readouterr().out
        written = convert_dataset(paths[0], tmp_path / "out" / prefix)
        assert (OfflineDataset.load(written).data == whole.data).all()
        assert len(load_dataset(written)) == len(whole)


def test_what_is_not_recognized_is_said(places, tmp_path):
    write_h5(tmp_path / "some.h5", {"obs": torch.zeros(3).numpy(), "actions": torch.zeros(3).numpy()})
    (tmp_path / "notes.txt").write_text("nothing of the kind")
    (tmp_path / "empty").mkdir()
    for name, sentence in {
        "some.h5": r"no format that is known by its arrays \(actions, obs\); it lacks filled, reward for pymarl",
        "notes.txt": "is not an HDF5 file",
        "empty": "is no dataset folder; give 'table:PATH', 'pymarl:PATH'",
        "nowhere": "does not exist",
        "3m.vlt": "holds the vaults Good; name one of them",
    }.items():
        with pytest.raises(DatasetError, match=sentence):
            load_dataset(tmp_path / name)


def test_the_home_folder_is_written_as_a_tilde(tmp_path, monkeypatch, capsys):
    from torchrl_marl_offline import load_policy, make_actor, save_policy
    from torchrl_marl_offline.data import repair
    from torchrl_marl_offline.recording import record_mixed_skill
    from torchrl_marl_offline.study.settings import read_study
    from torchrl_marl_offline.training.run.logging import RunLogger

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    dataset = episodes([3, 2])
    assert dataset.save("~/a") == home / "a"
    assert len(load_dataset("~/a")) == len(OfflineDataset.load("~/a")) == 5
    assert convert_dataset("~/a", "~/b") == home / "b"
    assert len(repair(dataset, path="~/c")) == 5 and (home / "c").is_dir()
    write_h5(home / "d.h5", d4rl_arrays())
    assert len(load_dataset("d4rl:~/d.h5")) == len(load_dataset("~/d.h5")) == 6
    assert main(["inspect", "~/a"]) == 0
    assert main(["convert", "d4rl:~/d.h5", "~/e"]) == 0 and (home / "e").is_dir()
    save_policy("~/p.pt", make_actor(dataset.spec, hidden=(4,)))
    assert load_policy("~/p.pt").spec == dataset.spec and (home / "p.pt").is_file()
    RunLogger("~/run")
    record_mixed_skill("games/two_step", "~/recorded", episodes=2, num_envs=2)
    assert (home / "recorded").is_dir()
    study = home / "s.toml"
    study.write_text('[study]\noutput = "~/out"\nsteps = 1\n[methods.bc]\n[datasets.a]\nsource = "~/a"\n')
    read = read_study("~/s.toml")
    assert read.settings.output == home / "out" and read.datasets[0].source == str(home / "a")
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]  # no folder of the name ~
    with pytest.raises(ValueError, match="names a home folder that is not known here"):
        load_dataset("~nobody-of-this-name/a")


def test_a_folder_that_may_only_be_read_opens(tmp_path):
    path = episodes([3, 2]).save(tmp_path / "a")
    for entry in [*path.rglob("*"), path]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:  # another user has to come this far
        if parent.stat().st_uid == os.getuid() and parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        if os.access(path, os.W_OK, effective_ids=True):
            pytest.skip("this user may write everywhere")
        dataset = load_dataset(path)
        assert dataset.data["agents", "observation"][4, 0].tolist() == [1.0, 1.0]
        assert load_dataset(path, device="cpu").episode_lengths.tolist() == [3, 2]
    finally:
        if user == 0:
            os.seteuid(0)
    assert len(dataset.replay_buffer(batch_size=2, seed=0).sample()) == 2
    assert (OfflineDataset.load(path).data == episodes([3, 2]).data).all()  # nothing of it was changed
