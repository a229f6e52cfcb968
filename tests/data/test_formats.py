"""OMIGA's HDF5 files, OMAR's NumPy folders, Minari's datasets and D4RL's files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_toys import write_h5
from format_toys import d4rl_arrays, omiga_arrays, write_minari, write_omar

from torchrl_marl_offline.data import DatasetError, DatasetWarning, OfflineDataset, convert_dataset, load_dataset
from torchrl_marl_offline.data.formats.omar_npy import open_omar_npy
from torchrl_marl_offline.data.formats.omiga_h5 import open_omiga_h5


class TestOmiga:
    def test_rows_with_d_set_hold_the_last_observation(self, tmp_path):
        path = write_h5(tmp_path / "a.hdf5", omiga_arrays([3, 1]))
        dataset = load_dataset(f"omiga_h5:{path}", time_limit=3)
        data = dataset.data
        assert dataset.episode_lengths.tolist() == [3, 1]
        assert data["agents", "observation"][:, 0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
        assert data["next", "agents", "observation"][:, 1].tolist() == [[0, 1], [0, 2], [0, 3], [1, 1]]
        assert data["next", "state"].tolist() == [[0, 1, 0], [0, 2, 0], [0, 3, 0], [1, 1, 1]]
        assert data["next", "agents", "reward"][:, :, 0].tolist() == [[1, 1], [2, 2], [3, 3], [1, 1]]
        assert data["next", "truncated"].flatten().tolist() == [False, False, True, False]
        assert data["next", "terminated"].flatten().tolist() == [False, False, False, True]
        assert data["collector", "mask"].all()
        assert data["collector", "has_next_action"].tolist() == [True, True, False, False]
        assert "recorded 2 times over" in dataset.metadata["findings"][1]
        assert dataset.metadata["team_reward"] is True

    def test_a_file_that_ends_within_an_episode(self, tmp_path):
        arrays = omiga_arrays([3, 4])
        path = write_h5(tmp_path / "a.hdf5", {name: values[:-2] for name, values in arrays.items()})
        dataset = load_dataset(f"omiga_h5:{path}")
        assert dataset.episode_lengths.tolist() == [3, 2]
        assert dataset.data["next", "agents", "observation"][-1, 0].tolist() == [1, 2]
        assert dataset.data["next", "truncated"][-1] and "ends within an episode" in dataset.metadata["findings"][0]

    def test_blocks_of_any_size_are_the_whole(self, tmp_path):
        path = write_h5(tmp_path / "a.hdf5", omiga_arrays([3, 1, 2, 5]))
        whole = load_dataset(f"omiga_h5:{path}")
        for rows in (1, 2, 4, 5, 50):
            assert (torch.cat(list(open_omiga_h5(path).chunks(rows))) == whole.data).all(), rows
        convert_dataset(f"omiga_h5:{path}", tmp_path / "out")
        assert (load_dataset(tmp_path / "out").data == whole.data).all()

    def test_what_is_wrong_is_said(self, tmp_path):
        arrays = omiga_arrays([3, 1])
        cases = {
            "lacks d": {name: values for name, values in arrays.items() if name != "d"},
            "do not fit together": arrays | {"a": arrays["a"][:-1]},
            "d is set on every row": arrays | {"d": np.ones_like(arrays["d"])},
            "outside its bounds": arrays | {"a": arrays["a"] + 2},
            "NaN": arrays | {"r": arrays["r"] * np.nan},
        }
        for sentence, content in cases.items():
            with pytest.raises(DatasetError, match=sentence):
                load_dataset(f"omiga_h5:{write_h5(tmp_path / 'b.hdf5', content)}")
        with pytest.raises(DatasetError, match="does not exist"):
            load_dataset(f"omiga_h5:{tmp_path / 'no.hdf5'}")


class TestOmar:
    def test_episodes_of_25_with_true_ends(self, tmp_path):
        folder = write_omar(tmp_path / "seed_0_data", episodes=2, length=25)
        dataset = load_dataset(f"omar_npy:{folder}")
        data = dataset.data
        assert dataset.episode_lengths.tolist() == [25, 25]
        assert data["agents", "observation"][26].tolist() == [[1, 1, 0], [0, 1, 1]]  # agent 0 is filled up with a zero
        assert data["next", "agents", "observation"][24].tolist() == [[0, 25, 0], [0, 0, 25]]
        assert data["next", "truncated"].sum() == 2 and not data["next", "terminated"].any()
        assert data["collector", "mask"].all()
        assert data["next", "agents", "reward"][3, :, 0].tolist() == [3, 4]
        assert dataset.metadata["observation_sizes"] == [2, 3]
        assert dataset.metadata["findings"] == []

    def test_seeds_states_and_long_episodes(self, tmp_path):
        for seed in (0, 10, 2):
            write_omar(tmp_path / f"seed_{seed}_data", episodes=1, length=1000, seed=seed, states=True)
        dataset = load_dataset(f"omar_npy:{tmp_path}")
        assert dataset.episode_lengths.tolist() == [1000] * 3 and dataset.spec.state_size == 2
        assert dataset.data["agents", "observation"][::1000, 1, 0].tolist() == [0, 2, 10]
        assert dataset.data["next", "state"][999].tolist() == [0, 1000]
        for rows in (400, 1000, 2999):
            assert (torch.cat(list(open_omar_npy(tmp_path).chunks(rows))) == dataset.data).all()

    def test_a_wrong_length_is_noticed(self, tmp_path):
        folder = write_omar(tmp_path / "seed_0_data", episodes=3, length=20)
        with pytest.warns(DatasetWarning) as caught:
            findings = load_dataset(f"omar_npy:{folder}").metadata["findings"]
        crosses, broken = (str(warning.message) for warning in caught)
        assert "next episode's first observation (2 rows); repair masks" in crosses and "(2 rows)" in broken
        assert "no whole number of episodes of 25" in findings[1] and "at 2 of 2 cuts" in findings[0]
        assert load_dataset(f"omar_npy:{folder}", episode_length=20).metadata["findings"] == []

    def test_what_is_wrong_is_said(self, tmp_path):
        folder = write_omar(tmp_path / "seed_0_data", episodes=2, length=25)
        np.save(folder / "rews_1.npy", np.zeros(7))
        with pytest.raises(DatasetError, match=r"rews_1\.npy has shape \(7,\) beside 50 rows"):
            load_dataset(f"omar_npy:{folder}")
        np.save(folder / "rews_1.npy", np.array([object()] * 50), allow_pickle=True)
        with pytest.raises(DatasetError, match=r"rews_1\.npy cannot be read"):
            load_dataset(f"omar_npy:{folder}")
        (folder / "rews_1.npy").unlink()
        with pytest.raises(DatasetError, match=r"rews_1\.npy is missing"):
            load_dataset(f"omar_npy:{folder}")
        with pytest.raises(DatasetError, match="seed_<k>_data"):
            load_dataset(f"omar_npy:{tmp_path / 'nowhere'}")


class TestMinari:
    def test_one_agent(self, tmp_path, monkeypatch):
        folder = write_minari(tmp_path, monkeypatch, [3, 2])
        for source in (folder, "toy/chain-v0"):
            dataset = load_dataset(f"minari:{source}")
            data = dataset.data
            assert dataset.spec.n_agents == 1 and (dataset.spec.action_low, dataset.spec.action_high) == (-2.0, 2.0)
            assert data["agents", "observation"][:, 0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
            assert data["next", "agents", "observation"][:, 0].tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2]]
            assert data["next", "terminated"].flatten().tolist() == [False, False, True, False, False]
            assert data["next", "truncated"].flatten().tolist() == [False, False, False, False, True]
            assert data["collector", "mask"].all()
            assert dataset.episode_returns().tolist() == [3.0, 1.0]

    def test_discrete_actions_start_at_0(self, tmp_path, monkeypatch):
        dataset = load_dataset(f"minari:{write_minari(tmp_path, monkeypatch, [4], discrete=True)}")
        assert dataset.data["agents", "action"].flatten().tolist() == [0, 1, 2, 0]
        assert dataset.spec.action_size == 3

    def test_what_is_not_there(self, tmp_path, monkeypatch):
        folder = write_minari(tmp_path, monkeypatch, [3])
        with pytest.raises(DatasetError, match="minari download toy/other-v0"):
            load_dataset("minari:toy/other-v0")
        with pytest.raises(DatasetError, match=r"holds no data/main_data\.hdf5"):
            load_dataset(f"minari:{tmp_path}")
        (folder / "data" / "main_data.hdf5").write_bytes(b"nothing")
        with pytest.raises(DatasetError, match="is not an HDF5 file"):
            load_dataset(f"minari:{folder}")


class TestD4RL:
    def test_one_agent(self, tmp_path):
        dataset = load_dataset(f"d4rl:{write_h5(tmp_path / 'a.hdf5', d4rl_arrays())}")
        assert dataset.episode_lengths.tolist() == [3, 2, 1] and dataset.spec.n_agents == 1
        assert dataset.data["collector", "mask"].tolist() == [True, True, True, True, False, False]
        assert dataset.data["next", "agents", "observation"][0, 0].tolist() == [2, 3]
        arrays = d4rl_arrays() | {"next_observations": d4rl_arrays()["observations"] + 2}
        source = f"d4rl:{write_h5(tmp_path / 'b.hdf5', arrays)}"
        with pytest.warns(DatasetWarning, match=r"next episode's first observation \(1 rows\)"):  # so the toy has it
            dataset = load_dataset(source)
        assert dataset.data["collector", "mask"].all()
        assert dataset.data["next", "agents", "observation"][5, 0].tolist() == [12, 13]

    def test_what_is_wrong_is_said(self, tmp_path):
        arrays = d4rl_arrays() | {"rewards": np.zeros((6, 2))}
        with pytest.raises(DatasetError, match="rewards has shape"):
            load_dataset(f"d4rl:{write_h5(tmp_path / 'a.hdf5', arrays)}")
        del arrays["rewards"]
        with pytest.raises(DatasetError, match="lacks rewards"):
            load_dataset(f"d4rl:{write_h5(tmp_path / 'b.hdf5', arrays)}")


def test_converted_formats_keep_their_source(tmp_path, monkeypatch):
    convert_dataset(f"minari:{write_minari(tmp_path / 'm', monkeypatch, [3])}", tmp_path / "out")
    assert OfflineDataset.load(tmp_path / "out").metadata["task"] == "chain-v0"
