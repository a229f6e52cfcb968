"""The scenarios of VMAS, the vectorized multi-agent simulator, in the key layout."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import unwrap
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
from torchrl_marl_offline.envs.action_ranges import ActionRanges, pad_last
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import Scene, Shape
from torchrl_marl_offline.envs.object_state import read_state, write_state


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

    VMAS keeps one random state for all its environments; this object has its own, so that the same seed gives the same
    roll-out whatever else runs. A partial reset resets one environment after another, as VMAS does. By default the
    starts of all environments come from one stream, so that they change with ``num_envs``; ``starts="independent"``
    draws each under a seed of its own, which costs as much as resetting one environment after another. What a scenario
    draws in its steps (``football``, ``discovery``, ...), for its world (``het_mass``), or for the whole batch
    whichever environment it resets (``asym_joint``, ``road_traffic``, ``simple_crypto``) still comes from one stream.

    :meth:`render` draws the bodies of VMAS's world itself, because VMAS's own viewer needs a display or a GPU.

    Args:
        scenario: its name, such as ``"balance"``.
        num_envs: number of environments.
        device: where they run.
        seed: seed of the simulator's chance.
        max_steps: time limit.
        starts: ``"batched"``, or ``"independent"`` of ``num_envs``.
        own_bounds: where bounds of actions differ between agents or components, leave actions in their own units,
            instead of scaling each to [-1, 1].
        **options: the scenario's own, such as ``n_agents``.

    Attributes:
        scenario: its name.
    """

    reports_success = False

    @checked
    def __init__(
        self,
        *,
        scenario: str,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 100,
        starts: Literal["batched", "independent"] = "batched",
        own_bounds: bool = False,
        **options: Any,
    ) -> None:
        if starts not in ("batched", "independent"):
            raise ValueError(f"starts must be 'batched' or 'independent', got {starts!r}.")
        self._independent = starts == "independent"
        self._chance = _Chance(torch.device(device))
        self.scenario, self._options = scenario, options
        with self._chance.lent():
            self._simulator = self._make_simulator(num_envs, device)
            observations = self._simulator.look()
        self.observation_sizes = tuple(_flat(observation).shape[-1] for observation in observations)
        spaces = self._simulator.action_space
        self._ranges = ActionRanges(
            [space.low for space in spaces],
            [space.high for space in spaces],
            device=torch.device(device),
            own_bounds=own_bounds,
        )
        self.action_sizes = self._ranges.sizes
        spec = TaskSpec(
            n_agents=len(spaces),
            observation_size=max(self.observation_sizes),
            state_size=sum(self.observation_sizes),
            action_size=max(self.action_sizes),
            action_low=self._ranges.low,
            action_high=self._ranges.high,
            task=f"vmas/{scenario}",
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=max_steps,
            has_success=self.reports_success,
        )
        self._unpadded = len(set(self.observation_sizes)) == 1

    def _make_simulator(self, num_envs: int, device: torch.device | str) -> Any:
        # `vmas.scenarios`, the attribute, is a list of names that hides the module
        rules = import_module("vmas.scenarios").load(f"{self.scenario}.py").Scenario()
        options = self._options
        return _simulator_class()(rules, num_envs=num_envs, device=device, continuous_actions=True, seed=0, **options)

    def _start(self, rows: Tensor | None = None) -> Game:
        with self._chance.lent():
            if self._independent:
                self._restart_rows(torch.arange(self.num_envs, device=self.device))
            else:
                self._simulator.restart()
            return self._observed(self._simulator.look())

    def _restart_rows(self, rows: Tensor) -> None:
        seeds = (self.random.uniform(1, rows=rows).flatten() * 2**32).long().tolist()
        for index, seed in zip(rows.tolist(), seeds):
            if self._independent:
                _seed_all(seed)
            self._simulator.restart(index)

    def _restart(self, reset: Tensor | None) -> Game:
        self.random.advance(reset)
        if reset is None or bool(reset.all()):
            return self._start()
        with self._chance.lent():
            self._restart_rows(reset.nonzero().flatten())
            fresh = self._observed(self._simulator.look())
        # An observation may draw noise, so those of the environments that go on are kept as they were.
        return self._where_reset(reset, fresh)

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        with self._chance.lent():
            try:
                observations, rewards, done = self._simulator.advance(self._ranges.split(action))
            except AssertionError as error:
                told = str(error) or "some are NaN"
                raise ValueError(f"VMAS refuses the actions in {self.task_spec.task}: {told}.") from error
        reward = torch.stack([each.reshape(-1) for each in rewards], -1).to(self.float_dtype)  # n x [B] -> [B, n]
        return Outcome(self._observed(observations), reward, done.reshape(-1).to(torch.bool))

    def _view(self, game: Game) -> View:
        observation = game["observation"]
        if self._unpadded:
            return View(observation, observation.flatten(1))  # the state shares the observation's memory
        state = torch.cat([observation[:, i, :size] for i, size in enumerate(self.observation_sizes)], -1)
        return View(observation, state)

    def _observed(self, observations: list[Tensor | dict[str, Tensor]]) -> Game:
        flat = [_flat(observation).to(self.float_dtype) for observation in observations]
        return {"observation": pad_last(flat, self.task_spec.observation_size)}

    def _set_seed(self, seed: int | None) -> None:
        # NumPy, which VMAS seeds too, takes 32 bits
        seed = int(torch.randint(2**32, ())) if seed is None else seed % 2**32
        super()._set_seed(seed)
        with self._chance.lent():
            _seed_all(seed)

    def _simulator_state(self) -> dict[str, Any]:
        return {"vmas": _read(self._simulator), "chance": self._chance.state_dict()}

    def _load_simulator_state(self, state: Mapping[str, Any]) -> None:
        self._chance.load_state_dict(state["chance"])
        _fill(self._simulator, state["vmas"], self.device)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the simulator out: VMAS loads a scenario as a module without a name, of which nothing can be copied."""
        return super().__getstate__() | {"_simulator": _read(self._simulator)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        with _Chance(self.device).lent():
            simulator = self._make_simulator(self.num_envs, self.device)
        _fill(simulator, state["_simulator"], self.device)
        self._simulator = simulator

    def _scene(self, index: int) -> Scene:
        """Return the bodies of VMAS's world; what a scenario draws besides (sensors, messages) is left out."""
        rules, world = self._simulator.scenario, self._simulator.world
        origin = np.asarray([float(each) for each in rules.render_origin])
        agents = np.asarray([agent.state.pos[index].tolist() for agent in world.agents]) - origin
        aspect = rules.viewer_size[0] / rules.viewer_size[1]
        room = rules.viewer_zoom * np.asarray([aspect, 1.0] if aspect >= 1 else [1.0, 1 / aspect])
        margin = 2 * max(agent.shape.circumscribed_radius() for agent in world.agents)
        room = room * max(1.0, ((np.abs(agents).max(0) + margin) / room).max())
        bodies = [entity for entity in world.landmarks + world.agents if bool(entity.is_rendering[index])]
        return Scene(tuple(origin - room), tuple(origin + room), [_drawn(body, index) for body in bodies])


def _read(simulator: Any) -> list[Any]:
    """Return the state of a simulator; its agents and landmarks are what scenarios refer to."""
    return read_state(simulator, known=simulator.world.entities)


def _fill(simulator: Any, state: list[Any], device: torch.device) -> None:
    """Bring a simulator to a state that :func:`_read` found in another one."""
    with _Chance(device).lent():
        # what is made at a start and in a step is there afterwards, as in the other one
        simulator.restart()
        simulator.advance(
            [torch.zeros(simulator.num_envs, each.shape[0], device=device) for each in simulator.action_space]
        )
    write_state(simulator, state, device=device, known=simulator.world.entities)


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class _Chance:
    """A random state of an environment's own, lent to the global generators while VMAS draws from them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch = torch.get_rng_state()
        self._cuda = self._cuda_state()
        self._numpy = np.random.MT19937()
        self._python = random.getstate()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all four generators as tensors and numbers."""
        numpy = self._numpy.state["state"]
        version, numbers, gauss = self._python
        python = {"version": version, "numbers": torch.tensor(numbers), "gauss": gauss}
        numpy = {"key": torch.from_numpy(numpy["key"].astype(np.int64)), "position": int(numpy["pos"])}
        return {"torch": self._torch.clone(), "cuda": self._cuda, "numpy": numpy, "python": python}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._torch, self._cuda = state["torch"].clone(), state["cuda"]
        numpy = {"key": state["numpy"]["key"].numpy().astype(np.uint32), "pos": state["numpy"]["position"]}
        self._numpy.state = {"bit_generator": "MT19937", "state": numpy}
        python = state["python"]
        self._python = python["version"], tuple(python["numbers"].tolist()), python["gauss"]

    def _cuda_state(self) -> Tensor | None:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    def _set_cuda_state(self, state: Tensor | None) -> None:
        if state is not None:
            torch.cuda.set_rng_state(state, self._device)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Put this state in place of the global one; put the global one back on leaving."""
        outside = torch.get_rng_state(), self._cuda_state(), np.random.get_bit_generator(), random.getstate()
        torch.set_rng_state(self._torch)
        self._set_cuda_state(self._cuda)
        np.random.set_bit_generator(self._numpy)
        random.setstate(self._python)
        try:
            yield
        finally:
            self._torch, self._cuda, self._python = torch.get_rng_state(), self._cuda_state(), random.getstate()
            torch.set_rng_state(outside[0])
            self._set_cuda_state(outside[1])
            np.random.set_bit_generator(outside[2])
            random.setstate(outside[3])


@cache
def _simulator_class() -> type:
    """Return VMAS's environment without its info, which some scenarios compute at a cost."""
    from vmas.simulator.environment import Environment

    # The public methods of `Environment` swap a random state that all environments share in and out, which costs a
    # tenth of a step of a small scenario; whoever calls these has brought the environment's own.
    class Simulator(Environment):
        def __init__(self, *args: Any, **options: Any) -> None:
            unwrap(Environment.__init__)(self, *args, **options)

        def look(self) -> list:
            (observations,) = self._get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )
            return observations

        def restart(self, index: int | None = None) -> None:
            if index is None:
                self._reset(return_observations=False)
            else:
                self._reset_at(index=index, return_observations=False)

        def advance(self, actions: list[Tensor]) -> tuple[list, list[Tensor], Tensor]:
            return unwrap(Environment.step)(self, actions)

        def _get_from_scenario(self, *, get_infos: bool, **wanted: Any) -> Any:
            return super()._get_from_scenario(get_infos=False, **wanted)

    return Simulator


def _drawn(body: Any, index: int) -> Shape:
    """Return the shape of one of VMAS's bodies where it is in environment ``index``."""
    (x, y), angle = body.state.pos[index].tolist(), body.state.rot[index].item()
    # some scenarios paint or fade a body in each environment on its own
    colour = torch.as_tensor(getattr(body.color, "value", body.color))
    colour = tuple((colour[index] if colour.dim() > 1 else colour).clamp(0, 1).tolist())[:3]
    alpha = torch.as_tensor(getattr(body, "_alpha", 1.0)).flatten()
    alpha = alpha[index if len(alpha) > 1 else 0].item()
    shape = body.shape
    if hasattr(shape, "radius"):
        return Shape([(x, y)], radius=shape.radius, colour=colour, alpha=alpha)
    half_length = shape.length / 2
    # a line's width is in pixels, and it has no thickness in the simulator
    corners = [(-half_length, 0.0), (half_length, 0.0)]
    if hasattr(shape, "hollow"):
        half = shape.width / 2
        corners = [(-half_length, -half), (half_length, -half), (half_length, half), (-half_length, half)]
    cos, sin = np.cos(angle), np.sin(angle)
    points = [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in corners]
    return Shape(points, colour=colour, alpha=alpha, filled=not getattr(shape, "hollow", False))


def _flat(observation: Tensor | dict[str, Tensor]) -> Tensor:
    """Concatenate an observation that comes as a dictionary: -> ``[B, o]``."""
    if isinstance(observation, dict):
        return torch.cat([_flat(each) for each in observation.values()], -1)
    return observation.flatten(1)
