"""The StarCraft Multi-Agent Challenges over TorchRL's ``SMACv2Env``, in the key layout."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import GROUP
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
from torchrl_marl_offline.envs.starcraft_battle import StarCraftBattle
from torchrl_marl_offline.envs.starcraft_names import INSTALL, smacv2_arguments
from torchrl_marl_offline.envs.torchrl_team import TorchRLTeam


class StarCraftTeam(TorchRLTeam):
    """Battles of StarCraft II through ``smacv2``, one running game each.

    Observations, ``"state"``, legal actions and the team's reward, which every agent gets, are smacv2's.
    ``("agents", "mask")`` is false for the dead, whose only legal action is the no-op (0). ``terminated`` is the defeat
    of a side, ``success`` a battle won; the map's limit is ``truncated`` only, and so is a crash of the game.

    A game is a process of its own, and smacv2 builds what is seen of it in Python: so several games run in TorchRL's
    ``ParallelEnv``, or, with ``workers="serial"``, one after another in a ``SerialEnv``. Both start one game more, for
    a moment, to read the sizes. Environment ``i`` has the same seed whatever ``num_envs`` is, so as far as the game
    itself repeats it plays the same battles. ``set_seed`` starts the games again. Checkpoints hold no game:
    online training that is resumed begins new battles.

    Args:
        task: the name of the task.
        settings: arguments of ``smacv2.env.StarCraft2Env`` that make the task.
        num_envs: number of games.
        device: where the tensors lie; the game has no use for it.
        seed: of all chance.
        max_steps: time limit, if below the map's.
        workers: what runs more than one game.
        **options: more such arguments, such as ``difficulty``.

    Raises:
        FileNotFoundError: StarCraft II is not there; the message says what to install and set.
        ValueError: ``workers`` is neither.
    """

    @checked
    def __init__(
        self,
        *,
        task: str,
        settings: dict[str, Any],
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int | None, COUNT] = None,
        workers: Literal["processes", "serial"] = "processes",
        **options: Any,
    ) -> None:
        if workers not in ("processes", "serial"):
            raise ValueError(f"workers must be 'processes' or 'serial', got {workers!r}.")
        _require_game(task)
        self._launch = partial(_launch, settings | options, num_envs, torch.device(device), workers)
        self._seed = _any_seed() if seed is None else seed
        games = self._launch(self._seed)
        limit = games.episode_limit if num_envs == 1 else min(games.episode_limit)
        limit = limit if max_steps is None else min(limit, max_steps)
        super().__init__(games, group_map=[GROUP], seed=self._seed, max_steps=limit)
        self.task_spec = replace(self.task_spec, task=task)

    def _set_seed(self, seed: int | None) -> None:
        seed = _any_seed() if seed is None else seed
        if self._current is None and seed == self._seed:
            return  # the games have been started with it
        self._wrapped[0].close()
        self._wrapped, self._seed, self._current, self._game = [self._launch(seed)], seed, None, {}


def smac(*, map_name: str, **options: Any) -> StarCraftTeam:
    """Make a map of the first challenge: ``smac/<map>`` (Samvelyan et al., 2019), played through ``smacv2``."""
    return StarCraftTeam(task=f"smac/{map_name}", settings={"map_name": map_name}, **options)


def smacv2(*, scenario: str, **options: Any) -> StarCraftTeam:
    """Make a scenario of the second, ``smacv2/<race>_<n>_vs_<m>`` (Ellis et al., 2023), in its published settings."""
    return StarCraftTeam(task=f"smacv2/{scenario}", settings=smacv2_arguments(scenario), **options)


def _require_game(task: str) -> None:
    folder = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()
    if not (folder / "Versions").is_dir():
        raise FileNotFoundError(f"{task!r} needs StarCraft II, which is not in {folder}: {INSTALL}.")


def _any_seed() -> int:
    return int(torch.randint(2**53, ()))


def _launch(settings: dict[str, Any], num_envs: int, device: torch.device, workers: str, seed: int) -> EnvBase:
    """Start the games; the seed of each depends on ``seed`` and its place only."""
    sequences = (np.random.SeedSequence([seed % 2**64, index]) for index in range(num_envs))
    # smacv2 writes into what it is given
    kwargs = [{**deepcopy(settings), "seed": int(each.generate_state(1)[0])} for each in sequences]
    if num_envs == 1:
        return StarCraftBattle(**kwargs[0], device=device)
    kind = ParallelEnv if workers == "processes" else SerialEnv
    games = kind(num_envs, StarCraftBattle, create_env_kwargs=kwargs, device=device)
    games.start()
    return games
