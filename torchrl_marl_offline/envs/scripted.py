"""Hand-written policies that record data of known, mixed skill.

Each is a TensorDictModule that reads the key layout and writes ``("agents", "action")``, for any leading batch shape.
Behaviours differ in *direction*, because noise around one behaviour is averaged away by cloning.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Annotated, Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, GROUP, OBSERVATION, STATE
from torchrl_marl_offline.core.ranges import COUNT_OR_NONE, FEW, NON_NEGATIVE, REAL, SEED, UNIT
from torchrl_marl_offline.envs.base import STEP_COUNT, entry_read
from torchrl_marl_offline.envs.grid_navigation import MOVES, REACH, comes_later

SKILL = (GROUP, "skill")
SpreadKind = Literal["optimal", "greedy_nearest", "fixed_assignment", "wrong_landmark", "drift", "random"]
GridKind = Literal["optimal", "greedy", "random"]


class Chance:
    """Random numbers on whatever device they are wanted, from one seed (``None``: torch's global generator)."""

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __call__(self, device: torch.device) -> torch.Generator | None:
        """Return the generator of a device, or ``None`` for torch's own."""
        if self.seed is None:
            return None
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]

    def legal(self, mask: Tensor) -> Tensor:
        """Draw a uniformly random legal action of each agent: mask ``[*B, A]`` -> ``[*B]``."""
        return uniform_legal(torch.rand(mask.shape, device=mask.device, generator=self(mask.device)), mask)

    def until(self, before: Tensor | None, step: Tensor, steps: int) -> Tensor:
        """Return the step up to which each episode does something, drawn where it begins: int64 ``[*B, 1]``.

        Args:
            before: what this returned in the step before; ``None`` in the first.
            step: how many steps each has taken, ``[*B, 1]``.
            steps: the draws are uniform below it.
        """
        drawn = torch.randint(steps, step.shape, device=step.device, generator=self(step.device))
        return kept(before, drawn, step == 0)

    def explored(self, action: Tensor, other: Tensor, epsilon: float | Tensor) -> Tensor:
        """Return the other action with probability ``epsilon``, drawn for each agent: ``[*B, n]`` each."""
        drawn = torch.rand(action.shape, device=action.device, generator=self(action.device))
        return torch.where(drawn < epsilon, other, action)


def uniform_legal(drawn: Tensor, mask: Tensor) -> Tensor:
    """Return a uniformly random legal action, where the largest of independent uniform numbers is, ``[*B, A]`` each."""
    return drawn.masked_fill(~mask, -1.0).argmax(-1)


def steps_taken(tensordict: TensorDictBase, who: str, why: str = "where episodes begin") -> Tensor:
    """Return ``"step_count"``, ``[*B, 1]``, which a scripted team needs.

    Raises:
        KeyError: there is none.
    """
    step = tensordict.get(STEP_COUNT, None)
    if step is None:
        raise KeyError(f"{who} needs 'step_count' to see {why}; make the environment with make_env.")
    return step


def kept(before: Tensor | None, anew: Tensor, begins: Tensor) -> Tensor:
    """Return what was before, and what is new where something begins or nothing of its shape was there before."""
    if before is None or before.shape != anew.shape or before.device != anew.device:
        before = anew
    return torch.where(begins, anew, before)


def best_assignment(cost: Tensor) -> Tensor:
    """Return the cheapest one-to-one assignment: cost ``[*B, n, n]`` -> column of each row, int64 ``[*B, n]``.

    All n! assignments are compared, so this is for small teams (n <= 5).
    """
    n = cost.shape[-1]
    choices = torch.tensor(list(permutations(range(n))), device=cost.device)  # [n!, n]
    total = cost[..., torch.arange(n, device=cost.device), choices].sum(-1)  # [*B, n!, n] -> [*B, n!]
    return choices[total.argmin(-1)]


class SpreadController(TensorDictModuleBase):
    """Proportional-derivative control towards a landmark, for ``mpe/simple_spread``.

    The action is ``gain (target - p) - damping v`` clipped to [-1, 1], plus Gaussian noise, clipped again. The target
    is chosen anew in every step, from the observation alone:

    - ``"optimal"``: the one-to-one assignment of the smallest total distance;
    - ``"greedy_nearest"``: each agent's nearest landmark, so that agents may share one and collide;
    - ``"fixed_assignment"``: agent i takes landmark i;
    - ``"wrong_landmark"``: the one-to-one assignment of the *largest* total distance;
    - ``"drift"``: the optimal landmark, with a displacement of (0.3, 0) by default;
    - ``"random"``: no target; uniform actions.

    Args:
        kind: one of the above.
        gain: proportional gain, 1/m.
        damping: derivative gain, s/m.
        noise: standard deviation of the Gaussian noise on the action.
        offset: (x, y) displacement of the target, which amounts to a constant wind; by default (0, 0), for
            ``"drift"`` (0.3, 0).
        seed: of the noise; ``None`` takes torch's global generator.
    """

    @checked
    def __init__(
        self,
        kind: SpreadKind = "optimal",
        *,
        gain: Annotated[float, NON_NEGATIVE] = 4.0,
        damping: Annotated[float, NON_NEGATIVE] = 1.5,
        noise: Annotated[float, NON_NEGATIVE] = 0.0,
        offset: Annotated[tuple[float, float] | None, REAL] = None,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        if kind not in get_args(SpreadKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(SpreadKind))}, got {kind!r}.")
        self.in_keys, self.out_keys = [OBSERVATION], [ACTION]
        super().__init__()
        self.kind, self.gain, self.damping, self.noise = kind, gain, damping, noise
        self.offset = offset or ((0.3, 0.0) if kind == "drift" else (0.0, 0.0))
        self._chance = Chance(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        observation = tensordict.get(OBSERVATION)
        velocity = observation[..., 0:2]
        generator = self._chance(observation.device)
        if self.kind == "random":
            uniform = torch.empty_like(velocity).uniform_(-1, 1, generator=generator)
            return tensordict.set(ACTION, uniform)
        to_landmarks = observation[..., 4:10].unflatten(-1, (3, 2))  # [*B, agent, landmark, 2]
        chosen = self.assignment(to_landmarks)[..., None, None].expand(*to_landmarks.shape[:-2], 1, 2)
        to_target = to_landmarks.gather(-2, chosen).squeeze(-2)  # [*B, agent, 2]
        if any(self.offset):
            to_target = to_target + torch.stack([torch.full_like(to_target[..., 0], o) for o in self.offset], -1)
        action = (self.gain * to_target - self.damping * velocity).clamp(-1, 1)
        if self.noise:
            action = action + self.noise * torch.empty_like(action).normal_(generator=generator)
        return tensordict.set(ACTION, action.clamp(-1, 1))

    def assignment(self, to_landmarks: Tensor) -> Tensor:
        """Return the landmark of each agent, int64 ``[*B, 3]``, from the vectors to them ``[*B, 3, 3, 2]``."""
        distance = torch.linalg.vector_norm(to_landmarks, dim=-1)
        match self.kind:
            case "greedy_nearest":
                return distance.argmin(-1)
            case "fixed_assignment":
                return torch.arange(3, device=distance.device).expand(distance.shape[:-1])
            case "wrong_landmark":
                return best_assignment(-distance)
            case _:
                return best_assignment(distance)


class GridController(TensorDictModuleBase):
    """Walks to landmarks in ``games/grid_navigation`` by the state, whatever is in sight, by legal moves only.

    - ``"optimal"``: the one-to-one assignment of the smallest largest number of steps, ties broken by their sum; of
      agents that aim at the same cell, all but the first take a random legal action, so that they never block
      each other for long;
    - ``"greedy"``: each agent goes to its nearest landmark, whoever else goes there, and may wait forever;
    - ``"random"``: uniform over the legal actions.

    A step is taken along the axis with more left to go, and an agent within reach of its landmark stays.

    Args:
        kind: one of the above.
        epsilon: probability with which an agent takes a uniformly random legal action instead; or one for each agent.
        seed: of the chance; ``None`` takes torch's global generator.
    """

    @checked
    def __init__(
        self,
        kind: GridKind = "optimal",
        *,
        epsilon: Annotated[float | Sequence[float], UNIT] = 0.0,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        if kind not in get_args(GridKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(GridKind))}, got {kind!r}.")
        self.in_keys, self.out_keys = [STATE, ACTION_MASK], [ACTION]
        super().__init__()
        self.kind, self.epsilon = kind, epsilon
        self._explores = bool(epsilon if isinstance(epsilon, (int, float)) else any(epsilon))
        self._chance = Chance(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        mask = entry_read(self, tensordict, ACTION_MASK)
        random = self._chance.legal(mask)
        if self.kind == "random":
            return tensordict.set(ACTION, random)
        agents, landmarks = tensordict.get(STATE).long().unflatten(-1, (2, -1, 2)).unbind(-3)  # each [*B, n, 2]
        action = self._walk(agents, landmarks)
        if self.kind == "optimal":
            aim = agents + torch.tensor(MOVES, device=agents.device)[action]
            action = torch.where(comes_later(aim), random, action)
        if self._explores:
            action = self._chance.explored(action, random, self._epsilons(action))
        return tensordict.set(ACTION, action)

    def _epsilons(self, action: Tensor) -> float | Tensor:
        if isinstance(self.epsilon, (int, float)):
            return self.epsilon
        if len(self.epsilon) != action.shape[-1]:
            raise ValueError(
                f"GridController has {len(self.epsilon)} epsilons for {action.shape[-1]} agents; give one each."
            )
        return torch.tensor(self.epsilon, device=action.device)

    def _walk(self, agents: Tensor, landmarks: Tensor) -> Tensor:
        """Return the move of each agent towards the landmark that is chosen for it."""
        away = landmarks.unsqueeze(-3) - agents.unsqueeze(-2)  # [*B, agent, landmark, 2]
        left = (away.abs() - REACH).clamp_min(0)  # steps along each axis until within reach
        steps = left.sum(-1)
        # 8^steps: a team (n <= 5) is as late as its latest agent, and the others only break ties
        chosen = steps.argmin(-1) if self.kind == "greedy" else best_assignment(8.0 ** steps.double())
        index = chosen[..., None, None].expand(*away.shape[:-2], 1, 2)
        away, left = away.gather(-2, index).squeeze(-2), left.gather(-2, index).squeeze(-2)
        row = left[..., 0] >= left[..., 1]
        vertical = torch.where(away[..., 0] < 0, 1, 2)  # north or south
        horizontal = torch.where(away[..., 1] < 0, 3, 4)  # west or east
        return torch.where(left.sum(-1) == 0, 0, torch.where(row, vertical, horizontal))


ROLE_TEAMS = ("strong_K", "strong_all", "weak_all")
"""Teams of ``games/grid_navigation``, by which of the agents play their part well; ``K`` is an agent's number."""


@checked
def role_team(
    quality: str,
    *,
    agents: Annotated[int, FEW],
    weakness: Annotated[float, UNIT] = 0.9,
    seed: Annotated[int | None, SEED] = None,
) -> GridController:
    """Return a team of ``games/grid_navigation`` in which some agents play their part well.

    A role is to be one of the agents: to go to the landmark that the optimal assignment has for it. In ``"strong_K"``
    agent ``K`` alone does so in every step; the others do with probability ``1 - weakness`` and else take a random
    legal action. In ``"strong_all"`` all do, in ``"weak_all"`` none. Data of all ``strong_K`` has each part played well
    and never all at once.

    Args:
        quality: as above, such as ``"strong_0"``.
        agents: of the task.
        weakness: see above.
        seed: of the chance.

    Raises:
        ValueError: there is no such team.
    """
    kind, _, which = quality.partition("_")
    strong = {"all": range(agents)} if kind == "strong" else {"all": ()} if kind == "weak" else {}
    if kind == "strong":
        strong |= {str(agent): (agent,) for agent in range(agents)}
    if which not in strong:
        raise ValueError(
            f"A team of games/grid_navigation is {', '.join(ROLE_TEAMS)}, with K below {agents}; got {quality!r}."
        )
    epsilon = [0.0 if agent in strong[which] else weakness for agent in range(agents)]
    return GridController("optimal", epsilon=epsilon, seed=seed)


class MixedSkill(TensorDictModuleBase):
    """Plays one of several policies, drawn for each episode or for each agent of each episode.

    A component is drawn where ``"step_count"`` is 0, which every environment of this library writes at a reset, and
    kept until the next time it is. The component's index is written to ``("agents", "skill")``, int64 ``[*B, n]``.
    All components act on all environments and the drawn one's action is taken, so this is for cheap policies.

    Args:
        policies: the components.
        probabilities: of the components, of any positive sum; uniform by default.
        per: ``"episode"`` draws for the team, ``"agent"`` for each agent independently.
        seed: of the draws; ``None`` takes torch's global generator.

    Examples:
        >>> from torchrl_marl_offline.envs import MixedSkill, SpreadController, make_env
        >>> kinds = ("optimal", "greedy_nearest", "drift")
        >>> policy = MixedSkill([SpreadController(kind) for kind in kinds], probabilities=(0.2, 0.4, 0.4), seed=0)
        >>> data = make_env("mpe/simple_spread", num_envs=8, seed=0).rollout(25, policy)
    """

    @checked
    def __init__(
        self,
        policies: Sequence[TensorDictModuleBase],
        *,
        probabilities: Annotated[Sequence[float] | None, NON_NEGATIVE] = None,
        per: Literal["episode", "agent"] = "episode",
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        if per not in ("episode", "agent"):
            raise ValueError(f"per must be 'episode' or 'agent', got {per!r}.")
        probabilities = [1.0] * len(policies) if probabilities is None else list(probabilities)
        if len(probabilities) != len(policies) or sum(probabilities) <= 0:
            raise ValueError(
                f"probabilities must be {len(policies)} numbers, one a policy and not all 0, got {probabilities}."
            )
        in_keys = dict.fromkeys(key for policy in policies for key in policy.in_keys)
        self.in_keys, self.out_keys = [*in_keys, STEP_COUNT], [ACTION, SKILL]
        super().__init__()
        self.policies = torch.nn.ModuleList(policies)
        self.per = per
        self.register_buffer("cumulative", torch.tensor(probabilities).cumsum(0) / sum(probabilities))
        self._skill: Tensor | None = None
        self._chance = Chance(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")`` and ``("agents", "skill")``."""
        step = steps_taken(tensordict, type(self).__name__)
        actions = [policy(tensordict.copy()).get(ACTION) for policy in self.policies]
        skill = self._draw(step, tensordict.get(OBSERVATION).shape[-2])
        action = actions[0]
        for i, other in enumerate(actions[1:], start=1):
            chosen = (skill == i).view(*skill.shape, *[1] * (action.dim() - skill.dim()))
            action = torch.where(chosen, other, action)
        tensordict.set(SKILL, skill)
        return tensordict.set(ACTION, action)

    def _draw(self, step_count: Tensor, n_agents: int) -> Tensor:
        columns = n_agents if self.per == "agent" else 1
        shape, device = (*step_count.shape[:-1], columns), step_count.device
        uniform = torch.rand(shape, device=device, generator=self._chance(device))
        drawn = torch.searchsorted(self.cumulative.to(device)[:-1].contiguous(), uniform, right=True)
        self._skill = kept(self._skill, drawn, step_count == 0)
        return self._skill.expand(*step_count.shape[:-1], n_agents).contiguous()


class OneStrongAgent(TensorDictModuleBase):
    """A team of which one agent acts by one policy, and all others by another.

    Teams of each agent record data in which every role is played well by somebody, and never all of them at once.

    Args:
        strong: of the one agent.
        weak: of the others.
        agent: its number.
        together: the others act by ``strong`` too until a step that is drawn for each episode, uniformly among the
            first ``together``; 0: never. An episode begins where ``"step_count"`` is 0.
        seed: of the draws; ``None`` takes torch's global generator.

    Examples:
        >>> from torchrl_marl_offline.envs import GridController, MixedSkill, OneStrongAgent, make_env
        >>> env = make_env("games/grid_navigation", num_envs=8, seed=0)
        >>> roles = [OneStrongAgent(GridController("optimal"), GridController("random"), agent=i) for i in range(2)]
        >>> data = env.rollout(25, MixedSkill(roles, seed=0))
    """

    @checked
    def __init__(
        self,
        strong: TensorDictModuleBase,
        weak: TensorDictModuleBase,
        *,
        agent: Annotated[int, COUNT_OR_NONE],
        together: Annotated[int, COUNT_OR_NONE] = 0,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        counted = [STEP_COUNT] if together else []
        self.in_keys, self.out_keys = list(dict.fromkeys([*strong.in_keys, *weak.in_keys, *counted])), [ACTION]
        super().__init__()
        self.strong, self.weak, self.agent, self.together = strong, weak, agent, together
        self._chance = Chance(seed)
        self._parted: Tensor | None = None  # [*B, 1]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``.

        Raises:
            KeyError: the others act by ``strong`` for a while, and there is no ``"step_count"``.
        """
        action = self.weak(tensordict.copy()).get(ACTION).clone()  # [*B, n] or [*B, n, a]
        place = tensordict.get(OBSERVATION).dim() - 2
        if self.agent >= action.shape[place]:
            raise ValueError(f"There is no agent {self.agent} among {action.shape[place]}; they are counted from 0.")
        strong = self.strong(tensordict.copy()).get(ACTION)
        action.select(place, self.agent).copy_(strong.select(place, self.agent))
        if self.together:
            step = steps_taken(tensordict, type(self).__name__)
            self._parted = self._chance.until(self._parted, step, self.together)
            still = step < self._parted  # [*B, 1]
            action = torch.where(still.view(*still.shape, *[1] * (action.dim() - still.dim())), strong, action)
        return tensordict.set(ACTION, action)
