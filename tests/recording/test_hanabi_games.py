"""Recorded games of Hanabi become datasets, and what is no game of Hanabi is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_hanabi import PlainHanabi

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK
from torchrl_marl_offline.data import DatasetError
from torchrl_marl_offline.evaluation import make_simulator
from torchrl_marl_offline.recording import read_hanabi_games

SORTED = [5 * c + r for c in range(5) for r, copies in enumerate((3, 2, 2, 2, 1)) for _ in range(copies)]


def write(path, games=3, agents=2, **changes):
    """Record games of the last legal action each time, which is a hint or a play; return what was written."""
    decks, actions, lengths, scores = [], [], [], []
    for seed in range(games):
        deck = torch.tensor(SORTED)[torch.randperm(50, generator=torch.Generator().manual_seed(seed))].tolist()
        game, count = PlainHanabi(deck, agents), 0
        while not game.over:
            number = max(n for n in range(2 * game.size + 10 * (agents - 1)) if game.is_legal(n))
            actions.append(number)
            game.act(number)
            count += 1
        decks.append(deck)
        lengths.append(count)
        scores.append(game.score)
    arrays = {"decks": decks, "lengths": lengths, "actions": actions, "scores": scores}
    arrays = {name: np.array(values, dtype=np.int8) for name, values in arrays.items()} | changes
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return arrays


@pytest.mark.parametrize("agents", [2, 3])
def test_games_become_episodes_in_their_order(tmp_path, agents):
    written = write(tmp_path / "games.npz", agents=agents)
    dataset = read_hanabi_games(tmp_path / "games.npz", agents=agents)
    assert dataset.episode_lengths.tolist() == written["lengths"].tolist()
    assert dataset.episode_returns().tolist() == written["scores"].tolist()
    time = torch.cat([torch.arange(length) for length in written["lengths"]])
    acted = dataset.data[ACTION].gather(1, (time % agents).unsqueeze(-1)).squeeze(-1)
    assert acted.tolist() == written["actions"].tolist()
    assert dataset.data[ACTION_MASK].gather(-1, dataset.data[ACTION].unsqueeze(-1)).all()
    assert (dataset.data["next", "terminated"].sum(), dataset.spec.n_agents) == (3, agents)
    assert make_simulator(dataset, num_envs=1).task_spec == dataset.spec
    part = read_hanabi_games(tmp_path / "games.npz", agents=agents, first=1, games=1)
    assert part.episode_lengths.tolist() == written["lengths"][1:2].tolist()


def test_what_is_no_recording_is_refused(tmp_path):
    path = tmp_path / "games.npz"
    right = write(path)
    for changes, words in (
        ({"scores": None}, "holds no 'scores'; it needs decks, lengths, actions, scores"),
        ({"decks": right["decks"][:, :49]}, r"'decks' has shape \(3, 49\), not \(3, 50\)"),
        ({"actions": right["actions"][1:]}, "'actions' has shape"),
        ({"actions": right["actions"] * 0.5}, "not of integers"),
        ({"actions": right["actions"] * 0}, "turn 0 of game 0 is action 0, which is not legal"),
        ({"actions": right["actions"] * 0 - 3}, "is action -3, which is not legal"),
        ({"lengths": right["lengths"][0]}, r"'lengths' has shape \(\); it needs 1 axes"),
        ({"decks": right["decks"][None]}, r"'decks' has shape \(1, 3, 50\); it needs 2 axes"),
        ({"decks": right["decks"] + 99}, r"deck must be whole numbers from 0 to 24, \[3, 50\], .* from 99 to 123"),
        ({"decks": right["decks"] * 0}, r"decks must be \[3, 50\] cards"),
        ({"scores": right["scores"] + 1}, r"game 0 scores 0, not 1 as recorded"),
        ({"lengths": right["lengths"] + np.array([-1, 1, 0], dtype=np.int8)}, "does not end so|not legal there"),
        ({"decks": np.array([[object()]], dtype=object)}, "cannot be read"),
    ):
        write(path, **changes)
        with pytest.raises(DatasetError, match=words):
            read_hanabi_games(path)
    write(path)
    with pytest.raises(DatasetError, match="holds 3 games, so that there is no game 3"):
        read_hanabi_games(path, first=3)
    with pytest.raises(DatasetError, match="not legal there; give the number of agents"):
        read_hanabi_games(path, agents=3)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match="cannot be read"):
        read_hanabi_games(path)


@pytest.mark.skipif("TORCHRL_MARL_OFFLINE_DATA" not in os.environ, reason="needs recordings")
def test_games_of_trained_agents():
    path = Path(os.environ["TORCHRL_MARL_OFFLINE_DATA"]) / "hanabi" / "hanabi_2p_5000_games.npz"
    if not path.is_file():
        pytest.skip("needs recordings")
    dataset = read_hanabi_games(path, games=40, first=60)
    with np.load(path, allow_pickle=False) as file:
        assert dataset.episode_returns().tolist() == file["scores"][60:100].tolist()
        assert dataset.episode_lengths.tolist() == file["lengths"][60:100].tolist()
