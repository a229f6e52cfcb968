"""Agents that end before their team: in every reader that has a flag of each agent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_toys import write_h5
from format_toys import omiga_arrays, vault_arrays, write_omar, write_vault

from torchrl_marl_offline.core.layout import AGENT_MASK, MASK, next_key
from torchrl_marl_offline.data import OfflineDataset, from_arrays
from torchrl_marl_offline.data.formats.omar_npy import read_omar_npy
from torchrl_marl_offline.data.formats.omiga_h5 import read_omiga_h5
from torchrl_marl_offline.data.formats.vault import open_vault, read_vault
from torchrl_marl_offline.data.transitions.agent_ends import AgentEnds

EPISODES, LENGTH = 4, 5
ROWS = EPISODES * LENGTH
DEATH = 2
"""Row of an episode at which agent 1 dies, in the second and the fourth."""


def flags(*, sticky: bool = False) -> np.ndarray:
    """Return ``[T, 2]``: everybody ends at row 4; in every other episode agent 1 ends at row 2 already."""
    found = np.zeros((EPISODES, LENGTH, 2), bool)
    found[:, -1] = True
    found[1::2, DEATH:, 1] = sticky
    found[1::2, DEATH, 1] = True
    return found.reshape(ROWS, 2)


def living() -> np.ndarray:
    """Return ``[T, 2]``, false for agent 1 after its death."""
    found = np.ones((EPISODES, LENGTH, 2), bool)
    found[1::2, DEATH + 1 :, 1] = False
    return found.reshape(ROWS, 2)


def dataset(terminals, truncations=None, agent_mask=None) -> OfflineDataset:
    e, t = np.divmod(np.arange(len(terminals)), LENGTH)
    return from_arrays(
        observations=np.stack([e, t], -1)[:, None].repeat(2, 1).astype(np.float32),
        actions=np.zeros((len(terminals), 2, 1), np.float32),
        rewards=np.ones((len(terminals), 2), np.float32),
        terminals=terminals,
        truncations=truncations,
        agent_mask=agent_mask,
    )


def lengths(found: OfflineDataset) -> list[int]:
    return found.episode_lengths.tolist()


@pytest.mark.fault("3.2")
@pytest.mark.parametrize("mask", [None, "deaths", "ones"])
@pytest.mark.parametrize("kind", ["once", "sticky", "only the living", "truncated at death"])
def test_a_dead_agent_does_not_merge_its_episode_with_the_next(kind, mask):
    terminals, truncations = flags(sticky=kind == "sticky"), None
    if kind == "once":
        terminals[LENGTH * 2 - 1, 1] = terminals[LENGTH * 4 - 1, 1] = False  # the dead agent's flag is not set again
    if kind == "only the living":
        terminals &= living()
    if kind == "truncated at death":
        truncations = flags() & np.roll(~living(), -1, 0) & living()
        terminals &= ~truncations
    agent_mask = {None: None, "deaths": living(), "ones": np.ones((ROWS, 2), bool)}[mask]
    found = dataset(terminals, truncations, agent_mask)
    assert lengths(found) == [LENGTH] * EPISODES
    assert found.data["next", "terminated"].sum() == EPISODES
    assert not found.data["next", "truncated"].any()
    assert torch.equal(found.data[AGENT_MASK], torch.from_numpy(living()))
    ahead = found.data[next_key(AGENT_MASK)][:, 1].reshape(EPISODES, LENGTH)
    assert ahead[1].tolist() == [True, True, False, False, False] and ahead[0].all()
    told = "4 rows of agents whose own episode had ended earlier than their team's do not count"
    assert (told in found.metadata["findings"]) == (mask != "deaths")


@pytest.mark.fault("3.2")
def test_nobody_waits_for_an_agent_whose_death_only_the_mask_shows():
    terminals = flags() & living()
    terminals[[LENGTH + DEATH, 3 * LENGTH + DEATH], 1] = False
    assert lengths(dataset(terminals, agent_mask=living())) == [LENGTH] * EPISODES
    padded = np.ones((ROWS, 2), bool)
    padded[:, 1] = False  # an agent that is never there
    assert lengths(dataset(flags() & padded, agent_mask=padded)) == [LENGTH] * EPISODES


@pytest.mark.fault("3.2")
def test_an_agent_that_comes_back_lives_again():
    terminals, mask = np.zeros((10, 2), bool), np.ones((10, 2), bool)
    terminals[2, 1] = True  # agent 1 dies, is away for two rows, and then outlives agent 0
    mask[3:5, 1] = False
    terminals[7, 0] = terminals[9] = True
    mask[8:, 0] = False
    found = dataset(terminals, agent_mask=mask)
    assert lengths(found) == [10]
    assert torch.equal(found.data[AGENT_MASK], torch.from_numpy(mask))


@pytest.mark.fault("3.2")
def test_who_ends_last_decides_how_the_episode_ends():
    first, last = np.zeros((5, 2), bool), np.zeros((5, 2), bool)
    first[2, 1] = last[4, 0] = True
    ends = [dataset(*pair).data["next", "terminated"][-1].item() for pair in ((last, first), (first, last))]
    assert ends == [True, False]
    assert dataset(first, last).data[MASK].tolist() == [True] * 4 + [False]  # no successor after a truncation
    both = dataset(first | last, first | last)  # both flags of an agent: the task ended
    assert both.data["next", "terminated"][-1] and lengths(both) == [5]


@pytest.mark.fault("3.3")
def test_an_agent_that_terminates_in_the_row_at_which_the_others_are_cut_off_has_no_next_value():
    terminals, truncations = np.zeros((2, 5, 2), bool)
    terminals[4, 1] = truncations[4, 0] = True
    found = dataset(terminals, truncations).data
    assert found["next", "truncated"][-1] and not found["next", "terminated"][-1]
    assert found[next_key(AGENT_MASK)].tolist() == [[True, True]] * 4 + [[True, False]]


@pytest.mark.fault("3.2")
def test_the_vault_reader_holds_a_dead_agents_flag(tmp_path):
    arrays = vault_arrays([LENGTH] * EPISODES, seeds=2)
    arrays["terminals"] = np.stack([flags() & living()] * 2).astype(np.float32)
    folder = write_vault(tmp_path / "vault", arrays)
    found = read_vault(folder)
    assert lengths(found) == [LENGTH] * EPISODES * 2
    assert torch.equal(found.data[AGENT_MASK], torch.from_numpy(living()).repeat(2, 1))
    blocks = torch.cat(list(open_vault(folder).chunks(3)))
    assert torch.equal(blocks[next_key(AGENT_MASK)], found.data[next_key(AGENT_MASK)])
    written = OfflineDataset.load(open_vault(folder).write(tmp_path / "set"))
    assert torch.equal(written.data[next_key(AGENT_MASK)], found.data[next_key(AGENT_MASK)])
    assert AGENT_MASK not in read_vault(write_vault(tmp_path / "plain", vault_arrays([2, 3]))).data.keys(True, True)


@pytest.mark.fault("3.2")
def test_the_omar_reader_holds_a_dead_agents_flag(tmp_path):
    folder = write_omar(tmp_path / "seed_0_data", episodes=EPISODES, length=LENGTH)
    for agent, done in enumerate((flags() & living()).T):
        np.save(folder / f"dones_{agent}.npy", done.astype(np.float64))
    found = read_omar_npy(folder, episode_length=LENGTH)
    assert lengths(found) == [LENGTH] * EPISODES
    assert found.data["next", "terminated"].sum() == EPISODES and not found.data["next", "truncated"].any()
    assert torch.equal(found.data[AGENT_MASK], torch.from_numpy(living()))


@pytest.mark.fault("3.2")
def test_the_omiga_reader_holds_a_dead_agents_flag(tmp_path):
    arrays = omiga_arrays([LENGTH] * EPISODES)
    done = np.zeros((EPISODES, LENGTH + 1, 2))
    done[:, -1] = 1
    done[1::2, DEATH + 1, 1] = 1  # on the row of its last observation
    done[1::2, -1, 1] = 0
    arrays["d"] = done.reshape(-1, 2)
    found = read_omiga_h5(write_h5(tmp_path / "omiga.h5", arrays))
    assert lengths(found) == [LENGTH] * EPISODES
    assert found.data["next", "terminated"].sum() == EPISODES
    assert torch.equal(found.data[AGENT_MASK], torch.from_numpy(living()))
    ahead = found.data[next_key(AGENT_MASK)][:, 1].reshape(EPISODES, LENGTH)
    assert ahead[1].tolist() == [True, True, False, False, False]


@pytest.mark.fault("3.2")
def test_blocks_are_the_whole():
    rng = np.random.default_rng(0)
    terminal, truncation, there = rng.random((3, 200, 3)) < np.array([0.05, 0.03, 0.9])[:, None, None]
    for mask in (None, there):
        whole = AgentEnds(3).add(terminal, truncation, mask)
        blocks = AgentEnds(3)
        parts = [
            blocks.add(*(None if x is None else x[start : start + 7] for x in (terminal, truncation, mask)))
            for start in range(0, 200, 7)
        ]
        assert whole.terminated.any() and whole.truncated.any() and whole.dead.any()
        for name, column in zip(whole._fields, zip(*parts)):
            assert np.array_equal(getattr(whole, name), np.concatenate(column)), name
