"""One bad episode: an error that names it, with its row; ``repair=True`` drops it and reads the rest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_toys import pymarl_episode_arrays, write_h5
from format_toys import d4rl_arrays, omiga_arrays, vault_arrays, write_minari, write_omar, write_vault

from torchrl_marl_offline.commands.data import main
from torchrl_marl_offline.data import DatasetError, OfflineDataset, convert_dataset, from_arrays, load_dataset

pytestmark = pytest.mark.fault("2.4")
pytest.importorskip("h5py")


def pymarl(folder, plant) -> tuple[str, dict]:
    arrays = pymarl_episode_arrays([3, 2, 3, 1, 2], longest=4)
    plant(arrays)
    return f"pymarl:{write_h5(folder / 'a.h5', arrays)}", {}


def pymarl_gap(folder):
    return pymarl(folder, lambda arrays: arrays["filled"].__setitem__((1, 1), 0))


def pymarl_early_end(folder):
    return pymarl(folder, lambda arrays: arrays["terminated"].__setitem__((1, 0), 1))


def pymarl_broken_index(folder):
    def plant(arrays):
        arrays["actions"] = arrays["actions"].astype(np.float32)
        arrays["actions"][1, 1, 0] = 0.5

    return pymarl(folder, plant)


def vault_broken_index(folder):
    arrays = vault_arrays([3, 2, 3, 1, 2])
    arrays["actions"] = arrays["actions"].astype(np.float32)
    arrays["actions"][0, 4, 0] = np.nan
    return f"vault:{write_vault(folder / 'v', arrays)}", {}


def vault_state(folder):
    arrays = vault_arrays([3, 2, 3, 1, 2])
    arrays["infos.state"] = np.repeat(arrays["infos.state"][:, :, None], 2, axis=2)
    arrays["infos.state"][0, 4, 1, 0] += 1
    return f"vault:{write_vault(folder / 'v', arrays)}", {}


def omiga_state(folder):
    arrays = omiga_arrays([3, 2, 3, 1, 2])
    arrays["s"][5, 1, 0] += 1  # episodes take one row more each: 0 to 3, 4 to 6
    return f"omiga_h5:{write_h5(folder / 'a.hdf5', arrays)}", {}


def omiga_last_state(folder):
    arrays = omiga_arrays([3, 2, 3, 1, 2])
    arrays["s"][6, 1, 0] += 1  # the last observation of episode 1
    return f"omiga_h5:{write_h5(folder / 'a.hdf5', arrays)}", {}


def omar_state(folder):
    path = write_omar(folder / "seed_0_data", episodes=5, length=4, states=True)
    states = np.load(path / "states_1.npy")
    states[6, 0] += 1
    np.save(path / "states_1.npy", states)
    return f"omar_npy:{path}", {"episode_length": 4}


def d4rl_broken_index(folder):
    arrays = d4rl_arrays() | {"actions": np.array([0, 1, 1, 0.5, 0, 1])}
    return f"d4rl:{write_h5(folder / 'a.hdf5', arrays)}", {"n_actions": 2}


BROKEN = {
    maker.__name__: (maker, row, transitions)
    for maker, row, transitions in (
        (pymarl_gap, 1, [3, 3, 1, 2]),
        (pymarl_early_end, 0, [3, 3, 1, 2]),
        (pymarl_broken_index, 1, [3, 3, 1, 2]),
        (vault_broken_index, 4, [3, 3, 1, 2]),
        (vault_state, 4, [3, 3, 1, 2]),
        (omiga_state, 5, [3, 3, 1, 2]),
        (omiga_last_state, 6, [3, 3, 1, 2]),
        (omar_state, 6, [4, 4, 4, 4]),
        (d4rl_broken_index, 3, [3, 1]),
    )
}


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_every_reader_names_the_episode_and_its_row_and_repair_drops_it(name, tmp_path):
    maker, row, left = BROKEN[name]
    if "vault" in name:
        pytest.importorskip("tensorstore")
    source, options = maker(tmp_path)
    with pytest.raises(DatasetError, match=rf"episode 1, row {row}: .*drop it with load_dataset\(\.\.\., repair=True"):
        load_dataset(source, **options)
    dataset = load_dataset(source, repair=True, **options)
    assert dataset.episode_lengths.tolist() == left
    assert any(
        f"bad_episode: dropped what cannot be read: episode 1, row {row}" in s for s in dataset.metadata["repairs"]
    )
    assert "bad_episodes" not in dataset.metadata
    assert dataset.data["collector", "traj_ids"].unique().tolist() == list(range(len(left)))
    with pytest.raises(DatasetError, match="episode 1, row"):
        convert_dataset(source, tmp_path / "not", **options)
    written = OfflineDataset.load(convert_dataset(source, tmp_path / "out", repair=True, **options))
    assert (written.data == dataset.data).all() and written.metadata["repairs"] == dataset.metadata["repairs"]
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_a_minari_episode_without_its_last_observation(tmp_path, monkeypatch):
    import h5py

    folder = write_minari(tmp_path, monkeypatch, [3, 2, 3])
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        observations = file["episode_1/observations"][:-1]
        del file["episode_1/observations"]
        file["episode_1/observations"] = observations
    with pytest.raises(DatasetError, match=r"episode 1, row 2: it has 2 observations, 2 actions .* drop it"):
        load_dataset(f"minari:{folder}")
    dataset = load_dataset(f"minari:{folder}", repair=True)
    assert dataset.episode_lengths.tolist() == [3, 3] and "episode 1, row 2" in dataset.metadata["repairs"][0]


def lists(**changes) -> dict:
    arrays = {
        "observations": [np.full((length, 2, 3), e) for e, length in enumerate((3, 2, 4))],
        "actions": [np.zeros((length, 2), int) for length in (3, 2, 4)],
        "rewards": [np.ones(length) for length in (3, 2, 4)],
        "terminals": [True, True, False],
        "n_actions": 2,
    }
    return arrays | changes


def test_arrays_and_lists_of_arrays():
    rewards = [np.ones(3), np.ones(3), np.ones(4)]
    for arrays, what in (
        (lists(rewards=rewards), "episode 1: it has 2 actions and 3 rewards"),
        (
            lists(actions=[np.zeros((3, 2)), np.full((2, 2), 0.5), np.zeros((4, 2))]),
            "episode 1, row 3: an action is no",
        ),
    ):
        with pytest.raises(DatasetError, match=what):
            from_arrays(**arrays)
        dataset = from_arrays(**arrays, repair=True)
        assert dataset.episode_lengths.tolist() == [3, 4] and what in dataset.metadata["repairs"][0]


def test_inspection_lists_what_it_would_drop(tmp_path, capsys):
    source, _ = pymarl_gap(tmp_path)
    assert main(["inspect", source, "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings[0]["code"] == "bad_episode" and "episode 1, row 1: filled has a gap" in findings[0]["what"]
    assert main(["convert", source, str(tmp_path / "out"), "--repair"]) == 0
    assert "repaired: bad_episode: dropped" in capsys.readouterr().out


def test_nothing_is_dropped_in_silence_where_all_is_bad(tmp_path):
    source, _ = pymarl(tmp_path, lambda arrays: arrays["filled"].__setitem__((slice(None), 0), 0))
    with pytest.raises(DatasetError, match="holds no transition"):
        load_dataset(source, repair=True)


def test_a_folder_with_bad_episodes_is_not_valid(tmp_path):
    from torchrl_marl_offline.data import inspect_source, validate

    dataset = inspect_source(pymarl_gap(tmp_path)[0])[1]
    with pytest.raises(DatasetError, match="episode 1, row 1: filled has a gap"):
        validate(dataset)
