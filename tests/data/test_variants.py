"""Legal variants of the formats that people have, and files that a reader must not guess about."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from data_toys import pymarl_episode_arrays, write_h5
from format_toys import d4rl_arrays, omiga_arrays, vault_arrays, write_minari, write_omar, write_vault

from torchrl_marl_offline.data import DatasetError, from_arrays, load_dataset, read_pymarl, read_vault

pytest.importorskip("h5py")
COMPLEX = "holds complex"
TEXT = r"holds (text|\|S1)"


def same(left, right) -> bool:
    return set(left.data.keys(True, True)) == set(right.data.keys(True, True)) and bool((left.data == right.data).all())


# PyMARL


def pymarl(folder, change=lambda arrays: None, **options):
    arrays = pymarl_episode_arrays([3, 1], longest=4)
    change(arrays)
    return read_pymarl(write_h5(folder / "a.h5", arrays), **options)


def put(name, change):
    return lambda arrays: arrays.__setitem__(name, change(arrays[name]))


def one_hot(indices, width=3):
    return np.eye(width)[indices[..., 0]]


EQUAL = {
    "flags [E, L]": lambda arrays: [put(name, lambda a: a[..., 0])(arrays) for name in ("filled", "terminated")],
    "reward [E, L]": put("reward", lambda a: a[..., 0]),
    "actions [E, L, n]": put("actions", lambda a: a[..., 0]),
    "float indices": put("actions", lambda a: a.astype(np.float64)),
    "one-hot integers": put("actions", lambda a: one_hot(a).astype(np.int64)),
    "one-hot floats": put("actions", one_hot),
    "state of each agent": put("state", lambda a: np.repeat(a[:, :, None], 2, 2)),
    "bool flags": put("terminated", lambda a: a != 0),
    "big-endian": put("obs", lambda a: a.astype(">f8")),
}


@pytest.mark.fault("5.1")
@pytest.mark.parametrize("name", EQUAL)
def test_pymarl_files_that_hold_the_same_are_read_alike(name, tmp_path):
    (tmp_path / "whole").mkdir()
    assert same(pymarl(tmp_path, EQUAL[name]), pymarl(tmp_path / "whole"))


@pytest.mark.fault("5.1")
def test_pymarl_with_a_reward_for_each_agent(tmp_path):
    for shape in ((2, 5, 2), (2, 5, 2, 1)):
        dataset = pymarl(tmp_path, put("reward", lambda a, shape=shape: np.stack([a, 2 * a], 2).reshape(shape)))
        assert dataset.data["next", "agents", "reward"][:3, :, 0].tolist() == [[1, 2], [2, 4], [3, 6]]
        assert dataset.metadata["team_reward"] is False


@pytest.mark.fault("5.1")
def test_pymarl_without_state_or_masks(tmp_path):
    dataset = pymarl(tmp_path, lambda arrays: arrays.pop("state"))
    assert dataset.spec.state_size == 4 and dataset.metadata["state"] == "joint observation"
    assert dataset.data["next", "state"].tolist() == dataset.data["next", "agents", "observation"].flatten(1).tolist()
    with pytest.raises(DatasetError, match=r"nothing that counts them; pass n_actions="):
        pymarl(tmp_path, lambda arrays: arrays.pop("avail_actions"))
    dataset = pymarl(tmp_path, lambda arrays: arrays.pop("avail_actions"), n_actions=3)
    assert not dataset.spec.has_action_mask and dataset.spec.action_size == 3

    def with_onehot(arrays):
        arrays.pop("avail_actions")
        arrays["actions_onehot"] = one_hot(arrays["actions"])

    assert pymarl(tmp_path, with_onehot).spec.action_size == 3


@pytest.mark.fault("5.1")
def test_pymarl_with_continuous_actions(tmp_path):
    def continuous(arrays):
        arrays.pop("avail_actions")
        arrays["actions"] = arrays["actions"].repeat(2, -1) / 10 + 0.05

    dataset = pymarl(tmp_path, continuous)
    assert not dataset.spec.discrete and dataset.spec.action_size == 2
    assert dataset.data["agents", "action"][1].tolist() == pytest.approx(np.full((2, 2), 0.15))

    def whole(arrays):
        arrays.pop("avail_actions")
        arrays["actions"] = arrays["actions"].astype(np.float32)

    with pytest.raises(DatasetError, match="n_actions= if they are indices, action_bounds= if they are continuous"):
        pymarl(tmp_path, whole)
    assert pymarl(tmp_path, whole, n_actions=3).spec.discrete
    assert pymarl(tmp_path, whole, action_bounds=(0, 2)).spec.action_high == 2.0


@pytest.mark.fault("5.1")
def test_a_folder_of_pymarl_parts(tmp_path):
    whole = pymarl_episode_arrays([3, 1, 2], longest=4)
    for number, part in ((0, slice(0, 2)), (1, slice(2, 3))):
        write_h5(tmp_path / f"part_{number}.h5", {name: values[part] for name, values in whole.items()})
    (tmp_path / "other").mkdir()
    dataset = load_dataset(f"pymarl:{tmp_path}")
    assert same(dataset, read_pymarl(write_h5(tmp_path / "other" / "a.h5", whole)))
    (tmp_path / "part_1.h5").rename(tmp_path / "part_2.h5")
    with pytest.raises(DatasetError, match=r"lacks part_1\.h5"):
        load_dataset(f"pymarl:{tmp_path}")
    shutil.copy(tmp_path / "part_2.h5", tmp_path / "part_02.h5")
    with pytest.raises(DatasetError, match="two parts 2"):
        load_dataset(f"pymarl:{tmp_path}")


def without_final_row(arrays, *, marked=True):
    """Cut each episode's final observation off: its last filled step is its last transition."""
    for e, length in enumerate((3, 1)):
        arrays["filled"][e, length:] = 0
    arrays["terminated"][:] = arrays["terminated"] * marked


@pytest.mark.fault("3.8")
@pytest.mark.parametrize("marked", [True, False])
def test_pymarl_files_without_a_final_row_keep_their_last_transition(marked, tmp_path):
    dataset = pymarl(tmp_path, lambda arrays: without_final_row(arrays, marked=marked))
    assert dataset.episode_lengths.tolist() == [3, 1] and dataset.episode_returns().tolist() == [6.0, 1.0]
    assert dataset.data["next", "terminated"].sum() == 2 * marked
    assert dataset.data["collector", "mask"].tolist() == [True, True, marked, marked]
    assert "read as transitions" in dataset.metadata["findings"][0]
    forced = pymarl(tmp_path, lambda arrays: without_final_row(arrays, marked=False), final_row=True)
    assert forced.episode_lengths.tolist() == [2]


@pytest.mark.fault("3.8")
def test_pymarl_without_any_mark_or_reward_says_what_it_took_the_last_rows_for(tmp_path):
    def nothing(arrays):
        arrays["terminated"][:] = 0
        arrays["reward"][:] = 0

    findings = pymarl(tmp_path, nothing).metadata["findings"]
    assert "terminated is never set" in findings[0] and "final_row=False" in findings[0]


@pytest.mark.fault("3.8")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda arrays: arrays.__setitem__("global_state", arrays.pop("state")), "pass state='global_state'"),
        (
            lambda arrays: arrays.__setitem__("legal", arrays.pop("avail_actions")),
            "pass legals='legal'",
        ),
        (put("obs", lambda a: a.astype(np.complex64)), COMPLEX),
        (put("reward", lambda a: np.full(a.shape, b"1")), TEXT),
        (put("actions", lambda a: a.astype(np.uint64) + 2**63), "not whole numbers"),
        (put("terminated", lambda a: np.full(a.shape, np.nan)), "is NaN at row 0"),
        (put("terminated", lambda a: np.repeat(a, 2, -1)), "one mark for each agent"),
        (put("state", lambda a: a[:1]), r"state has shape \(1, 5, 3\)"),
        (lambda arrays: arrays.__setitem__("actions_onehot", np.zeros((2, 5, 2, 4))), "disagree"),
    ],
)
def test_the_pymarl_reader_does_not_guess(change, sentence, tmp_path):
    with pytest.raises(DatasetError, match=sentence):
        pymarl(tmp_path, change)


def test_the_remedies_for_other_names_work(tmp_path):
    renamed = lambda arrays: arrays.__setitem__("global_state", arrays.pop("state"))  # noqa: E731
    assert pymarl(tmp_path, renamed, state="global_state").spec.state_size == 3
    assert pymarl(tmp_path, renamed, state="obs").metadata["state"] == "joint observation"
    assert not pymarl(tmp_path, legals="", n_actions=3).spec.has_action_mask


# Vaults


def vault(folder, change=lambda arrays: None, *, discrete=True, **options):
    pytest.importorskip("tensorstore")
    arrays = vault_arrays([3, 1], discrete=discrete)
    change(arrays)
    shutil.rmtree(folder / "v", ignore_errors=True)
    return read_vault(write_vault(folder / "v", arrays), **options)


SAME_VAULTS = {
    "flags [B, T]": lambda a: [put(name, lambda v: v[..., 0])(a) for name in ("terminals", "truncations")],
    "flags [B, T, 1]": lambda a: [put(name, lambda v: v[..., :1])(a) for name in ("terminals", "truncations")],
    "rewards [B, T, n, 1]": put("rewards", lambda v: v[..., None]),
    "flags [B, T, n, 1]": lambda a: [put(name, lambda v: v[..., None])(a) for name in ("terminals", "truncations")],
    "no truncations": lambda a: a.pop("truncations"),
    "actions [B, T, n, 1]": put("actions", lambda v: v[..., None]),
    "float indices": put("actions", lambda v: v.astype(np.float32)),
    "one-hot": put("actions", lambda v: np.eye(3, dtype=np.int32)[v]),
}


@pytest.mark.fault("5.1")
@pytest.mark.parametrize("name", SAME_VAULTS)
def test_vaults_that_hold_the_same_are_read_alike(name, tmp_path):
    (tmp_path / "whole").mkdir()
    assert same(vault(tmp_path, SAME_VAULTS[name]), vault(tmp_path / "whole"))


@pytest.mark.fault("5.1")
def test_a_vault_with_a_team_reward(tmp_path):
    for shape in ((1, 4), (1, 4, 1)):
        data = vault(tmp_path, put("rewards", lambda v, shape=shape: v[..., 0].reshape(shape))).data
        assert data["next", "agents", "reward"][:, :, 0].tolist() == [[0, 0], [1, 1], [2, 2], [0, 0]]


def rename(old, new):
    return lambda arrays: arrays.__setitem__(new, arrays.pop(old))


@pytest.mark.fault("3.8")
@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (rename("infos.state", "infos.global_state"), {}, "pass state='infos.global_state'"),
        (rename("infos.state", "state"), {}, "pass state='state'"),
        (rename("infos.legals", "infos.avail_actions"), {}, "pass legals='infos.avail_actions'"),
        (put("observations", lambda v: v.astype(np.complex64)), {}, COMPLEX),
        (put("actions", lambda v: np.stack([v, v], -1)), {}, "one index per agent or one-hot rows"),
        (put("terminals", lambda v: np.full(v.shape, np.nan, np.float32)), {}, "is NaN at row 0"),
        (lambda a: None, {"state": "infos.nothing"}, "holds no 'infos.nothing' for state="),
        (lambda a: None, {"n_actions": 4}, "has 3 legal actions, not n_actions=4"),
    ],
)
def test_the_vault_reader_does_not_guess(change, options, sentence, tmp_path):
    with pytest.raises(DatasetError, match=sentence):
        vault(tmp_path, change, **options)


def test_the_remedies_for_other_names_in_vaults_work(tmp_path):
    renamed = rename("infos.state", "infos.global_state")
    assert vault(tmp_path, renamed, state="infos.global_state").spec.state_size == 2
    assert vault(tmp_path, renamed, state="observations").metadata["state"] == "joint observation"
    assert not vault(tmp_path, rename("infos.legals", "infos.avail"), legals="", n_actions=3).spec.has_action_mask


# OMAR, OMIGA, D4RL


@pytest.mark.fault("3.8")
def test_omar_files_that_are_missing_or_have_other_names(tmp_path):
    def refused(sentence):
        with pytest.raises(DatasetError, match=sentence):
            load_dataset(f"omar_npy:{tmp_path / 's'}")
        shutil.rmtree(tmp_path / "s")

    def fresh(**options):
        return write_omar(tmp_path / "s", episodes=2, length=25, n=3, **options)

    for name in ("obs_2", "obs_1", "acs_0", "next_obs_2", "dones_1"):
        (fresh() / f"{name}.npy").unlink()
        refused(rf"{name}\.npy is missing")
    (fresh() / "obs_0.npy").unlink()
    refused("holds neither obs_0")
    fresh()
    for name in ("obs", "acs", "rews", "next_obs", "dones"):
        (tmp_path / "s" / f"{name}_2.npy").rename(tmp_path / "s" / f"{name}_3.npy")
    refused(r"obs_2\.npy is missing, though other files are of 4 agents")
    (fresh(states=True) / "states_0.npy").unlink()
    refused(r"states_0\.npy is missing")
    (fresh(states=True) / "states_0.npy").rename(tmp_path / "s" / "state_0.npy")
    refused(r"state_0\.npy has a name that OMAR's files do not have")
    np.save(fresh() / "obs_01.npy", np.zeros((50, 3)))
    refused(r"obs_01\.npy has a name")
    for name, values, sentence in (
        ("rews_1", np.zeros((50, 2)), r"rews_1\.npy has shape \(50, 2\)"),
        ("acs_1", np.zeros((50, 3)), r"acs_1\.npy has shape \(50, 3\)"),
        ("acs_1", np.zeros((50, 2), int), "actions of type int64"),
        ("obs_1", np.zeros((50, 3), complex), COMPLEX),
        ("obs_1", np.full((50, 3), "a"), TEXT),
        ("dones_1", np.full(50, np.nan), "dones_1 is NaN at row 0"),
    ):
        np.save(fresh() / f"{name}.npy", values)
        refused(sentence)


@pytest.mark.fault("3.8")
def test_omar_seeds_that_do_not_belong_together(tmp_path):
    for seed in (0, 1):
        write_omar(tmp_path / f"seed_{seed}_data", episodes=1, length=25, seed=seed)
    narrow = np.load(tmp_path / "seed_1_data" / "obs_1.npy")[:, :2]
    for name in ("obs_1", "next_obs_1"):
        np.save(tmp_path / "seed_1_data" / f"{name}.npy", narrow)
    with pytest.raises(DatasetError, match=r"obs_1\.npy has rows of shape \(2,\), seed_0_data of \(3,\)"):
        load_dataset(f"omar_npy:{tmp_path}")
    write_omar(tmp_path / "seed_01_data", episodes=1, length=25)
    with pytest.raises(DatasetError, match="two folders of seed 1"):
        load_dataset(f"omar_npy:{tmp_path}")


@pytest.mark.fault("3.8")
def test_one_changed_number_does_not_make_an_omiga_state_twice_as_wide(tmp_path):
    arrays = omiga_arrays([3, 2, 3])
    arrays["s"][1, 1, 0] += 1
    path = write_h5(tmp_path / "a.hdf5", arrays)
    with pytest.raises(DatasetError, match="episode 0, row 1: the agents' copies of the state differ there"):
        load_dataset(f"omiga_h5:{path}")
    arrays["s"][:, 1] += 1  # a state of each agent's own
    assert load_dataset(f"omiga_h5:{write_h5(tmp_path / 'b.hdf5', arrays)}").spec.state_size == 6


@pytest.mark.fault("3.8")
@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("a", lambda v: v.astype(np.int64), "from_arrays"),
        ("o", lambda v: v.astype(complex), COMPLEX),
        ("d", lambda v: np.where(v, np.nan, 0), "d is NaN at row 3"),
        ("r", lambda v: np.full(v.shape, b"x"), TEXT),
    ],
)
def test_the_omiga_reader_does_not_guess(name, change, sentence, tmp_path):
    arrays = omiga_arrays([3, 2])
    arrays[name] = change(arrays[name])
    with pytest.raises(DatasetError, match=sentence):
        load_dataset(f"omiga_h5:{write_h5(tmp_path / 'a.hdf5', arrays)}")


@pytest.mark.fault("5.1")
def test_d4rl_columns_and_float_indices(tmp_path):
    def read(name, arrays, **options):
        return load_dataset(f"d4rl:{write_h5(tmp_path / name, arrays)}", **options)

    arrays = d4rl_arrays()
    columns = {name: arrays[name][:, None] for name in ("rewards", "terminals", "timeouts")}
    assert same(read("a.h5", arrays | columns), read("b.h5", arrays))
    assert same(read("c.h5", arrays | {"actions": arrays["actions"][:, 0]}), read("d.h5", arrays))
    index = np.array([0, 1, 1, 0, 0, 1])
    expected = read("e.h5", arrays | {"actions": index}, n_actions=2)
    assert expected.spec.discrete
    for number, actions in enumerate((index.astype(float), index[:, None], index[:, None] * 1.0, np.eye(2)[index])):
        assert same(read(f"f{number}.h5", arrays | {"actions": actions}, n_actions=2), expected)
    with pytest.raises(DatasetError, match="pass n_actions=2 if they are one-hot"):
        read("g.h5", arrays | {"actions": np.eye(2, dtype=int)[index]})
    with pytest.raises(DatasetError, match=r"next_observations has shape \(6, 1\)"):
        read("h.h5", arrays | {"next_observations": arrays["observations"][:, :1]})
    with pytest.raises(DatasetError, match=COMPLEX):
        read("i.h5", arrays | {"rewards": arrays["rewards"] * 1j})


# Minari


@pytest.mark.fault("5.1")
def test_minari_actions_of_several_spaces():
    spaces = pytest.importorskip("gymnasium").spaces
    from torchrl_marl_offline.data.formats.minari_actions import action_reader

    box, wide = spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-2.0, 2.0, (1,))
    steps = np.arange(6).reshape(3, 2) / 10
    reader = action_reader(spaces.Dict({"a": box, "b": spaces.Box(-1.0, 1.0)}), None, rescale=False)
    assert reader.read({"a": steps, "b": np.zeros((3, 1))}).shape == (3, 3)
    assert reader.options == {"action_bounds": (-1.0, 1.0)}
    assert action_reader(spaces.Tuple([box, box]), None, rescale=False).read((steps, steps)).shape == (3, 4)
    single = action_reader(spaces.Tuple([spaces.Discrete(3, start=2)]), None, rescale=False)
    assert single.read((np.array([2, 4]),)).tolist() == [[0], [2]] and single.options == {"n_actions": 3}
    assert action_reader(spaces.MultiDiscrete([4]), None, rescale=False).options == {"n_actions": 4}
    for space in (spaces.MultiDiscrete([2, 3]), spaces.Tuple([box, spaces.Discrete(2)]), spaces.MultiBinary(2)):
        with pytest.raises(DatasetError, match="one Discrete space or Boxes can be read"):
            action_reader(space, None, rescale=False)
    unequal = spaces.Tuple([box, wide])
    own = action_reader(unequal, None, rescale=False)
    assert own.options == {"action_bounds": ((-1.0, -1.0, -2.0), (1.0, 1.0, 2.0))}
    assert action_reader(unequal, (-2.0, 2.0), rescale=False).options == {"action_bounds": (-2.0, 2.0)}
    rescaled = action_reader(unequal, None, rescale=True)
    assert rescaled.read((np.ones((1, 2)), np.ones((1, 1)))).tolist() == [[1.0, 1.0, 0.5]]
    assert rescaled.notes["action_rescale"]["high"] == [1.0, 1.0, 2.0]
    with pytest.raises(DatasetError, match=r"without bounds; pass action_bounds="):
        action_reader(spaces.Box(-np.inf, np.inf, (2,)), None, rescale=False)


@pytest.mark.fault("3.8")
def test_minari_options_reach_the_reader(tmp_path, monkeypatch):
    folder = write_minari(tmp_path, monkeypatch, [3])
    assert load_dataset(f"minari:{folder}", action_bounds=(-3, 3)).spec.action_high == 3.0
    assert load_dataset(f"minari:{folder}", rescale_actions=True).data["agents", "action"][2, 0, 0] == pytest.approx(
        0.1
    )


# Arrays


def toy(**changes) -> dict:
    arrays = {
        "observations": np.zeros((3, 2, 4)),
        "actions": np.array([[0, 1], [1, 0], [1, 1]]),
        "rewards": np.ones(3),
        "terminals": np.array([0, 0, 1]),
        "n_actions": 2,
    }
    return arrays | changes


@pytest.mark.fault("3.8")
@pytest.mark.parametrize("kind", ["float", "column", "one-hot", "bool", "lists"])
def test_discrete_actions_of_any_type_are_indices_where_their_number_is_given(kind):
    index = toy()["actions"]
    actions = {
        "float": index.astype(np.float32),
        "column": torch.tensor(index)[..., None].double(),
        "one-hot": np.eye(2)[index],
        "bool": index == 1,
        "lists": index.tolist(),
    }[kind]
    dataset = from_arrays(**toy(actions=actions))
    assert dataset.spec.discrete and dataset.data["agents", "action"].tolist() == index.tolist()
    if kind == "float":
        assert from_arrays(**toy(actions=actions, n_actions=None, action_mask=np.ones((3, 2, 2)))).spec.discrete


@pytest.mark.fault("3.8")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"actions": np.full((3, 2), 0.5)}, "actions holds no indices"),
        ({"actions": np.zeros((3, 2, 3), int), "n_actions": None}, "pass n_actions=3 if they are one-hot"),
        ({"actions": np.full((3, 2), 2**40)}, "actions holds no indices"),
        ({"actions": np.full((3, 2), 2**63, np.uint64)}, "actions holds no indices"),
        ({"observations": np.zeros((3, 2, 4), complex)}, COMPLEX),
        ({"observations": torch.zeros(3, 2, 4, dtype=torch.complex64)}, COMPLEX),
        ({"rewards": np.full(3, "1")}, "rewards holds text"),
        ({"rewards": np.array([1, None, 2])}, "rewards holds objects"),
        ({"rewards": np.array(["2020", "2021", "2022"], "M8[Y]")}, "rewards holds dates"),
        ({"rewards": np.ma.masked_array(np.ones(3), [0, 1, 0])}, "hidden entries"),
        ({"terminals": np.array([0, np.nan, 1])}, "terminals is NaN at row 1"),
        ({"terminals": torch.tensor([0, torch.nan, 1])}, "terminals holds NaN"),
        (
            {"actions": np.zeros((3, 2, 1)), "n_actions": None, "action_bounds": ([-1, 0], [1, 1])},
            r"The lower one of action_bounds has the shape of \(-1, 0\); give one number, a list of 1, one for each",
        ),
        (
            {"actions": np.zeros((3, 2, 1)), "n_actions": None, "action_bounds": (1, -1)},
            "must lie below the upper one, got 1.0 and -1.0",
        ),
    ],
)
def test_from_arrays_does_not_guess(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_arrays(**toy(**changes))


@pytest.mark.fault("5.4")
def test_lists_of_unequal_episodes():
    lengths = (3, 1, 2)
    steps = [np.arange(8.0 * length).reshape(length, 2, 4) for length in lengths]
    lists = {
        "observations": steps,
        "actions": [np.zeros((length, 2), int) for length in lengths],
        "rewards": [np.ones(length) for length in lengths],
        "terminals": [[0, 0, 1], [1], [0, 0]],
        "n_actions": 2,
    }
    dataset = from_arrays(**lists)
    flat = {name: np.concatenate([np.asarray(part) for part in lists[name]]) for name in lists if name != "n_actions"}
    assert same(dataset, from_arrays(**flat, n_actions=2))
    assert "not marked as ended was taken as truncated" in dataset.metadata["findings"][0]
    tensors = {name: [torch.as_tensor(part) for part in lists[name]] for name in lists if name != "n_actions"}
    assert same(dataset, from_arrays(**tensors, n_actions=2))
    assert same(dataset, from_arrays(**lists | {"terminals": np.array([1, 1, 0])}))  # one flag for each episode
    final = [np.concatenate([part, part[-1:] + 1]) for part in steps]
    data = from_arrays(**lists | {"observations": final}).data
    assert data["collector", "mask"].all()
    assert (data["next", "agents", "observation"][[2, 3, 5]] == data["agents", "observation"][[2, 3, 5]] + 1).all()


@pytest.mark.fault("5.4")
def test_mappings_of_agents():
    agents = {"red": np.ones((3, 2)), "blue": np.full((3, 4), 2.0)}
    dataset = from_arrays(
        observations=agents,
        actions={"red": [0, 1, 1], "blue": [1, 0, 1]},
        rewards={"red": np.ones(3), "blue": np.zeros(3)},
        terminals=[0, 0, 1],
        action_mask={"red": np.ones((3, 2)), "blue": np.ones((3, 3))},
    )
    assert dataset.metadata["observation_sizes"] == [2, 4]
    assert dataset.data["agents", "observation"][0].tolist() == [[1, 1, 0, 0], [2, 2, 2, 2]]
    assert dataset.data["agents", "action"].tolist() == [[0, 1], [1, 0], [1, 1]]
    assert dataset.data["agents", "action_mask"][0].tolist() == [[True, True, False], [True, True, True]]
    assert dataset.data["next", "agents", "reward"][0, :, 0].tolist() == [1, 0]
    episodes = [agents, {"blue": np.zeros((2, 4)), "red": np.ones((2, 2))}]  # in another order
    listed = from_arrays(
        observations=episodes,
        actions=[np.zeros((3, 2), int), np.zeros((2, 2), int)],
        rewards=[np.ones(3), np.ones(2)],
        terminals=[True, True],
        n_actions=2,
    )
    assert listed.data["agents", "observation"][3].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.fault("5.4")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"observations": [np.zeros((3, 4)), np.zeros((3, 5))]}, "agents as a mapping"),
        ({"observations": [np.zeros((2, 2, 4)), np.zeros((1, 2, 4))]}, "actions must be a list"),
        ({"observations": {"a_0": np.zeros((3, 4)), "a_2": np.zeros((3, 4))}}, "a_1 is missing"),
        ({"observations": {"a_0": np.zeros((3, 4)), "a_00": np.zeros((3, 4))}}, "one number occurs twice"),
        ({"observations": {"a": np.zeros((3, 4)), "b": np.zeros((2, 4))}}, "differ in time between agents"),
        ({"observations": {"a": np.zeros((3, 4)), 0: np.zeros((3, 4)), "0": np.zeros((3, 4))}}, "twice|not a"),
        ({"actions": {"a": [0, 1, 1]}, "observations": {"b": np.zeros((3, 4))}}, "has the agents a, not b"),
        ({"observations": [[[1.0, 2.0], [1.0]], [[1.0], [2.0]]]}, "lists of unequal length"),
        (
            {"observations": {"arm": [np.zeros((2, 4)), np.zeros((1, 4))], "base": np.zeros((3, 6))}},
            r"of arm is a list of episodes; .*\[\{'arm': \[L, \.\.\.\], 'base': \[L, \.\.\.\]\}, \.\.\.\]",
        ),
        ({"observations": {"arm": np.zeros((3, 4)), "base": [np.zeros((2, 4))] * 2}}, "of base is a list of episodes"),
        ({"rewards": {"arm": [[1.0, 0.0], [1.0]], "base": [0.0, 1.0, 0.0]}}, "of arm is a list of episodes"),
        (
            {
                "observations": {"a": np.zeros((3, 4)), "b": np.zeros((3, 4))},
                "actions": {"a": np.zeros((3, 1)), "b": np.zeros((3, 2))},
            },
            "bring them to one width",
        ),
    ],
)
def test_what_lists_and_mappings_do_not_tell_is_asked_for(changes, sentence):
    with pytest.raises(DatasetError, match=sentence):
        from_arrays(**toy(**changes))


@pytest.mark.fault("5.4")
def test_episodes_of_other_agents_are_named():
    arrays = {
        "observations": [np.zeros((2, 3, 4)), np.zeros((2, 2, 4)), np.zeros((2, 3, 4))],
        "actions": [np.zeros((2, 3), int), np.zeros((2, 2), int), np.zeros((2, 3), int)],
        "rewards": [np.ones(2), np.ones(2), np.zeros(2)],
        "terminals": [1, 1, 1],
        "n_actions": 2,
    }
    found = from_arrays(**arrays)  # filled up to the largest team, and said
    assert found.episode_lengths.tolist() == [2, 2, 2] and found.spec.n_agents == 3
    assert found.data["agents", "mask"][2:4].tolist() == [[True, True, False]] * 2
    assert found.data["agents", "mask"][[0, 1, 4, 5]].all()
    arrays["observations"][1] = np.zeros((2, 3, 5))  # other observations are no smaller team
    with pytest.raises(DatasetError, match=r"episode 1"):
        from_arrays(**arrays)
