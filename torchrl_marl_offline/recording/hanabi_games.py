"""Recorded games of Hanabi as a dataset: decks and actions are played again in the environment."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from tensordict import TensorDictBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, REWARD, TERMINATED, next_key
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT, COUNT_OR_NONE
from torchrl_marl_offline.core.regular_files import open_regular
from torchrl_marl_offline.core.zip_files import check_members
from torchrl_marl_offline.data.collection import as_dataset
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading
from torchrl_marl_offline.envs.hanabi import Hanabi
from torchrl_marl_offline.envs.hanabi_rules import DECK, PLAYERS

_LARGER = 100  # times its own size that a file may become
_SHAPES = {"decks": ("games", DECK), "lengths": ("games",), "actions": ("turns",), "scores": ("games",)}


@checked
def read_hanabi_games(
    path: str | Path,
    *,
    agents: Annotated[int, PLAYERS] = 2,
    games: Annotated[int, COUNT] = 500,
    first: Annotated[int, COUNT_OR_NONE] = 0,
) -> OfflineDataset:
    """Play recorded games again in ``games/hanabi`` and return them as a dataset.

    The file is an npz with four arrays of integers: ``decks`` ``[G, 50]`` (cards ``5 * colour + rank`` in the order in
    which they are dealt), ``lengths`` ``[G]``, ``actions`` (of all games, one after the other, as the environment
    numbers them) and ``scores`` ``[G]``. Every action must be legal, and every game must end after its length with its
    score. A transition of two agents takes 17 kB, so not all games are read by default.

    Args:
        path: of the file.
        agents: number of agents.
        games: how many games are read, at most.
        first: the first of them.

    Raises:
        DatasetError: the file cannot be read, or a game is not one of Hanabi.
    """
    path = user_path(path)
    arrays = _arrays(path)
    count = len(arrays["lengths"])
    if first >= count:
        raise DatasetError(f"{path} holds {count:,} games, so that there is no game {first:,}; take a smaller first.")
    lengths = arrays["lengths"]
    begin = (lengths.cumsum(0) - lengths)[first : first + games]
    lengths, decks, scores = (arrays[name][first : first + games] for name in ("lengths", "decks", "scores"))
    env = Hanabi(num_envs=len(lengths), agents=agents, seed=0)
    try:
        now = env.set_state(decks)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from error
    total, steps, order = torch.zeros(len(lengths)), [], []
    for time in range(int(lengths.max())):
        live = (time < lengths).nonzero().squeeze(-1)
        action = torch.full((len(lengths), agents), env.rules.actions)
        action[live, time % agents] = arrays["actions"][begin[live] + time]
        _check(path, now, action, live, first, time)
        step = env.step(now.set(ACTION, action))
        now, rows = env.step_mdp(step), step[live]
        total[live] += rows[next_key(REWARD)][:, 0, 0]
        ended = rows[next_key(TERMINATED)].squeeze(-1)
        if (wrong := ended != (lengths[live] == time + 1)).any():
            game = first + int(live[wrong][0])
            turns = int(lengths[game - first])
            raise DatasetError(f"{path}: game {game} has {turns} turns, but does not end so; fetch it again.")
        steps.append(rows)
        order.append(live * env.max_episode_steps + time)
    if (wrong := total != scores).any():
        game = int(wrong.nonzero()[0])
        raise DatasetError(
            f"{path}: game {first + game} scores {int(total[game])}, not {int(scores[game])} as recorded; fetch it "
            "again."
        )
    rows = torch.cat(steps)[torch.cat(order).argsort()]
    facts = {"source": "hanabi_games", "task": env.task_spec.task, "quality": "recorded", "first_game": first}
    options = {"task_options": {"agents": agents}} if agents != 2 else {}
    return as_dataset(rows, env.task_spec, facts | options)


def _arrays(path: Path) -> dict[str, torch.Tensor]:
    found = {}
    with reading(path), open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
        names = {member.filename for member in check_members(archive, ratio=_LARGER)}
        for name in _SHAPES:
            if f"{name}.npy" not in names:
                raise DatasetError(f"{path} holds no {name!r}; it needs {', '.join(_SHAPES)}.")
            with archive.open(f"{name}.npy") as member:
                values = np.lib.format.read_array(member, allow_pickle=False)
            if values.dtype.kind not in "iu":
                raise DatasetError(f"{path}: {name!r} is of {values.dtype}, not of integers; write it anew.")
            found[name] = torch.from_numpy(values.astype(np.int64))
            if values.ndim != len(_SHAPES[name]):
                raise DatasetError(f"{path}: {name!r} has shape {values.shape}; it needs {len(_SHAPES[name])} axes.")
    sizes = {"games": len(found["lengths"]), "turns": int(found["lengths"].sum()), DECK: DECK}
    for name, shape in _SHAPES.items():
        wanted = tuple(sizes[each] for each in shape)
        if found[name].shape != wanted:
            raise DatasetError(f"{path}: {name!r} has shape {tuple(found[name].shape)}, not {wanted}; write it anew.")
    if len(found["lengths"]) == 0 or (found["lengths"] < 1).any():
        raise DatasetError(f"{path} holds no game, or one without a turn; write it anew.")
    return found


def _check(path: Path, now: TensorDictBase, action: torch.Tensor, live: torch.Tensor, first: int, time: int) -> None:
    """Refuse actions, ``[G, n]``, that are none or not legal in the games that go on."""
    mask = now[ACTION_MASK]
    is_one = (action >= 0) & (action < mask.shape[-1])
    legal = (is_one & mask.gather(-1, action.clamp(0, mask.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)).all(-1)[live]
    if not legal.all():
        game = int(live[~legal][0])
        number = int(action[game, time % action.shape[-1]])
        raise DatasetError(
            f"{path}: turn {time} of game {first + game} is action {number}, which is not legal there; give the number "
            "of agents that played, or fetch it again."
        )
