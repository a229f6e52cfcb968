"""A format of a user's own: read by its name, and recognised by its content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchrl_marl_offline import from_arrays, load_dataset, register_reader
from torchrl_marl_offline.data import DatasetError
from torchrl_marl_offline.data.formats.readers import READERS


@pytest.fixture
def readers(monkeypatch):
    """The table of readers, put back afterwards."""
    for name in ("robots", "text_rewards"):
        monkeypatch.setitem(READERS, name, None)
        monkeypatch.delitem(READERS, name)


def read(path, *, scale=1.0):
    rewards = scale * torch.tensor([float(word) for word in Path(path).read_text().split()])
    ends = torch.arange(len(rewards)) == len(rewards) - 1
    zeros = torch.zeros(len(rewards), 2, 3)
    return from_arrays(observations=zeros, actions=zeros[..., :1], rewards=rewards, terminals=ends)


def test_a_reader_is_found_by_its_name_and_by_its_content(readers, tmp_path):
    path = tmp_path / "log.robots"
    path.write_text("1 2 3")
    with pytest.raises(DatasetError, match="is not an HDF5 file"):
        load_dataset(path)
    register_reader("robots", read)
    assert load_dataset(f"robots:{path}", scale=2.0, inspect=False).episode_returns().tolist() == [12.0]
    with pytest.raises(DatasetError, match="is not an HDF5 file"):
        load_dataset(path)  # a reader without recognise is only named
    register_reader(
        "robots", read, recognise=lambda content: content.path if content.path.suffix == ".robots" else None
    )
    assert load_dataset(path, inspect=False).episode_returns().tolist() == [6.0]


def test_names_that_cannot_be_given(readers):
    for name, sentence in (("pymarl", "is a format of the library's own"), ("my-logs", "must be an identifier")):
        with pytest.raises(ValueError, match=sentence):
            register_reader(name, read)
    assert READERS["pymarl"].read is not read
