"""Goals alone: scenarios of VMAS without the shaping of their rewards, and with success."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome
from torchrl_marl_offline.envs.vmas_scenarios import VmasScenario

_ENDING = "_sparse"


def _goals_as_wide_as_agents(rules: Any) -> None:
    for agent in rules.world.agents:
        agent.goal.shape._radius = agent.shape.radius


def _no_shaping(rules: Any) -> None:
    rules.shaping_factor = 0


def _nothing(rules: Any) -> None:
    pass


@dataclass(frozen=True)
class SparseForm:
    """How a scenario of VMAS becomes sparse.

    Attributes:
        options: of the scenario.
        change: what is set in the scenario after it was made, where it has no option.
        bonus: what all agents get beside the scenario's reward when the goal is reached.
        max_steps: time limit by default.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Any], None] = _nothing
    bonus: float = 0.0
    max_steps: int = 100


FORMS = {
    "navigation": SparseForm(
        {"shared_rew": True, "pos_shaping_factor": 0, "final_reward": 1.0}, change=_goals_as_wide_as_agents
    ),
    "give_way": SparseForm({"pos_shaping_factor": 0, "final_reward": 1.0, "done_on_completion": True}, max_steps=500),
    "dispersion": SparseForm({"share_reward": True}),
    "passage": SparseForm({"shared_reward": True}, change=_no_shaping, bonus=1.0, max_steps=400),
    "dropout": SparseForm(),
}


def sparse_names() -> tuple[str, ...]:
    """Return the names of the sparse forms."""
    return tuple(f"{scenario}{_ENDING}" for scenario in FORMS)


class SparseVmas(VmasScenario):
    """A scenario of VMAS that pays for its goal alone: ``vmas/<scenario>_sparse``.

    Each is the scenario itself, as far as possible by its own options, which cannot be given then:

    - ``navigation_sparse``: ``shared_rew=True, pos_shaping_factor=0, final_reward=1``. All agents get 1 when all are at
      their goals, and -1 for each touch. The goals' radius is set to the agents' (VMAS's is 0.05): the scenario ends
      when all are within the agents' radius and pays within the goals', so that without this its reward would never be
      paid.
    - ``give_way_sparse``: ``pos_shaping_factor=0, final_reward=1, done_on_completion=True``. Both agents get 1 when
      both are at their goals, which ends the episode. Time limit: 500.
    - ``dispersion_sparse``: ``share_reward=True``. All agents get 1 for each food that one of them reaches.
    - ``passage_sparse``: ``shared_reward=True``; shaping has no option, so ``shaping_factor`` of the scenario is set to
      0 after it was made. What is left are -10 for each overlap, so all agents also get 1 when all are at their goals.
      Time limit: 400.
    - ``dropout_sparse``: as it is: 1 for all when an agent reaches the goal, minus the team's energy.

    ``"success"`` is what the scenario calls done; it ends the episode.

    Args:
        scenario: its name, such as ``"navigation_sparse"``.
        num_envs: number of environments.
        device: where they run.
        seed: seed of the simulator's chance.
        max_steps: time limit; ``None``: 100, or what stands above.
        starts: see :class:`VmasScenario`.
        own_bounds: see there.
        **options: the scenario's own, such as ``n_agents``.

    Raises:
        ValueError: an option is given that the form sets.
    """

    reports_success = True

    @checked
    def __init__(
        self,
        *,
        scenario: str,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int | None, COUNT] = None,
        starts: Literal["batched", "independent"] = "batched",
        own_bounds: bool = False,
        **options: Any,
    ) -> None:
        base = scenario.removesuffix(_ENDING)
        self._form = form = FORMS[base]
        if taken := sorted(form.options.keys() & options.keys()):
            raise ValueError(
                f"vmas/{scenario} sets {taken[0]} itself, to {form.options[taken[0]]!r}; take vmas/{base} for another."
            )
        super().__init__(
            scenario=base,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_steps=form.max_steps if max_steps is None else max_steps,
            starts=starts,
            own_bounds=own_bounds,
            **form.options,
            **options,
        )
        self.task_spec = replace(self.task_spec, task=f"vmas/{scenario}")

    def _make_simulator(self, num_envs: int, device: torch.device | str) -> Any:
        simulator = super()._make_simulator(num_envs, device)
        self._form.change(simulator.scenario)
        return simulator

    def _advance(self, game: Game, action: torch.Tensor) -> Outcome:
        outcome = super()._advance(game, action)
        done = outcome.terminated
        paid = outcome.reward + self._form.bonus * done.unsqueeze(-1)
        return outcome._replace(reward=paid, success=done.clone())
