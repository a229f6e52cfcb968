"""The scenarios of VMAS, the vectorized multi-agent simulator, in the key layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torchrl_marl_offline.data.layout import TaskSpec
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View


@cache
def scenario_names() -> tuple[str, ...]:
    """Return the names of all scenarios of the installed VMAS, without importing it."""
    folder = Path(find_spec("vmas").submodule_search_locations[0]) / "scenarios"
    return tuple(sorted(file.stem for file in folder.rglob("*.py") if file.stem != "__init__"))


class VmasScenario(TeamEnv):
    """A VMAS scenario with continuous actions: ``vmas/<scenario>`` (Bettini et al., 2022).

    All agents with a policy form the group ``agents``, whatever their names, in VMAS's order, adversaries included.
    Observations and actions of unequal sizes are padded with zeros (padding of an action is ignored); the true sizes
    are in ``observation_sizes`` and ``action_sizes``, and no agent is padding. Observations that VMAS
    gives as a dictionary are concatenated in its order. State: the true observations, concatenated. VMAS's info is
    not computed.

    ``terminated`` is what the scenario calls done; the time limit is ours and only ``truncated``. Actions beyond the
    bounds are clipped. Where all bounds agree they are VMAS's, as in ``task_spec``; where they differ between agents
    or components (two vehicle models, or messages, which lie in [0, 1]), every component is [-1, 1] here and
    scaled linearly to its own range.

    VMAS keeps one random state for all its environments; here every environment has its own, so that the same seed
    gives the same roll-out whatever else runs. A partial reset resets one environment after another, as VMAS does.

    Args:
        scenario: its name, such as ``"balance"``.
        num_envs: number of environments.
        device: where they run.
        seed: seed of the simulator's chance.
        max_steps: time limit.
        **options: the scenario's own, such as ``n_agents``.
    """

    def __init__(
        self,
        *,
        scenario: str,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        max_steps: int = 100,
        **options: Any,
    ) -> None:
        self._chance_device = torch.device(device)
        self._chance = None
        # `vmas.scenarios`, the attribute, is a list of names that hides the module
        rules = import_module("vmas.scenarios").load(f"{scenario}.py").Scenario()
        with self._own_chance():
            self._simulator = _simulator_class()(
                rules,
                num_envs=num_envs,
                device=device,
                continuous_actions=True,
                clamp_actions=True,
                seed=0,
                **options,
            )
            observations = self._simulator.reset()
        self.observation_sizes = tuple(_flat(observation).shape[-1] for observation in observations)
        spaces = self._simulator.action_space
        self.action_sizes = tuple(space.shape[0] for space in spaces)
        lows = {float(low) for space in spaces for low in space.low}
        highs = {float(high) for space in spaces for high in space.high}
        self._same_bounds = len(lows) == 1 and len(highs) == 1
        spec = TaskSpec(
            n_agents=len(spaces),
            observation_size=max(self.observation_sizes),
            state_size=sum(self.observation_sizes),
            action_size=max(self.action_sizes),
            action_low=lows.pop() if self._same_bounds else -1.0,
            action_high=highs.pop() if self._same_bounds else 1.0,
            task=f"vmas/{scenario}",
        )
        super().__init__(spec=spec, num_envs=num_envs, device=device, seed=seed, max_episode_steps=max_steps)
        at = {"dtype": self.float_dtype, "device": self.device}
        self._low = [torch.as_tensor(space.low, **at) for space in spaces]
        self._high = [torch.as_tensor(space.high, **at) for space in spaces]

    def _start(self, rows: Tensor | None = None) -> Game:
        with self._own_chance():
            return self._observed(self._simulator.reset())

    def _restart(self, reset: Tensor | None) -> Game:
        if reset is None or bool(reset.all()):
            return self._start()
        with self._own_chance():
            for index in reset.nonzero().flatten().tolist():
                self._simulator.reset_at(index, return_observations=False)
            (observations,) = self._simulator.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )
        # An observation may draw noise, so those of the environments that go on are kept as they were.
        fresh = self._observed(observations)["observation"]
        return {"observation": torch.where(reset.view(-1, 1, 1), fresh, self._game["observation"])}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        actions = [action[:, i, :size] for i, size in enumerate(self.action_sizes)]
        if not self._same_bounds:
            triples = zip(actions, self._low, self._high)
            actions = [low + (high - low) * (each.clamp(-1, 1) + 1) / 2 for each, low, high in triples]
        with self._own_chance():
            observations, rewards, done = self._simulator.step(actions)
        reward = torch.stack([each.reshape(-1) for each in rewards], -1).to(self.float_dtype)  # n x [B] -> [B, n]
        return Outcome(self._observed(observations), reward, done.reshape(-1).to(torch.bool))

    def _view(self, game: Game) -> View:
        observation = game["observation"]
        state = torch.cat([observation[:, i, :size] for i, size in enumerate(self.observation_sizes)], -1)
        return View(observation.clone(), state)

    def _observed(self, observations: list[Tensor | dict[str, Tensor]]) -> Game:
        flat = [_flat(observation).to(self.float_dtype) for observation in observations]
        width = self.task_spec.observation_size
        return {"observation": torch.stack([F.pad(each, (0, width - each.shape[-1])) for each in flat], 1)}

    @contextmanager
    def _own_chance(self) -> Iterator[None]:
        """Lend this environment's random state to VMAS, and leave VMAS's and torch's as they were."""
        shared = _simulator_class().vmas_random_state
        cuda = self._chance_device.type == "cuda"
        theirs, outside = list(shared), torch.cuda.get_rng_state(self._chance_device) if cuda else None
        if self._chance is not None:
            shared[:] = self._chance[0]
            if cuda:
                torch.cuda.set_rng_state(self._chance[1], self._chance_device)
        try:
            yield
        finally:
            self._chance = list(shared), torch.cuda.get_rng_state(self._chance_device) if cuda else None
            shared[:] = theirs
            if cuda:
                torch.cuda.set_rng_state(outside, self._chance_device)

    def _set_seed(self, seed: int | None) -> None:
        # NumPy, which VMAS seeds too, takes 32 bits
        seed = int(torch.randint(2**32, ())) if seed is None else seed % 2**32
        with self._own_chance():
            self._simulator.seed(seed)


@cache
def _simulator_class() -> type:
    """Return VMAS's environment without its info, which some scenarios compute at a cost."""
    from vmas.simulator.environment import Environment

    class Simulator(Environment):
        def _get_from_scenario(self, *, get_infos: bool, **wanted: Any) -> Any:
            return super()._get_from_scenario(get_infos=False, **wanted)

    return Simulator


def _flat(observation: Tensor | dict[str, Tensor]) -> Tensor:
    """Concatenate an observation that comes as a dictionary: -> ``[B, o]``."""
    if isinstance(observation, dict):
        return torch.cat([_flat(each) for each in observation.values()], -1)
    return observation.flatten(1)
