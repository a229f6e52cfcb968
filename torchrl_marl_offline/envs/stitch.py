"""One-step games whose best joint action can be left out of the data, and data of known coverage for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Annotated, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, STATE, TaskSpec
from torchrl_marl_offline.core.ranges import FEW, SEED, SEVERAL, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View, entry_read, game_of
from torchrl_marl_offline.envs.counter_rng import CounterRandom

PayoffKind = Literal["additive", "monotonic", "weakest_link", "matching", "climbing"]
COVERAGES = ("full", "best_left_out", "two_teams", "bridged_B", "star", "share_P")
"""Which joint actions a recording has; ``B`` and ``P`` are numbers. See :func:`recorded_joint_actions`."""

_MOST_CELLS = 2**22  # of all contexts together: a table of 16 MB


class Stitch(TeamEnv):
    """One of several contexts is drawn, and the joint action pays what its table says, once: ``games/stitch``.

    In every context each agent's actions have hidden ranks, an order of its own, and a use ``u``: 1 for the action of
    rank 0, and for each other rank a number below 0.8. The joint action pays all agents

    - ``"additive"``: the mean of the uses, which a sum of one value an agent expresses;
    - ``"monotonic"``: their product, which rises with each of them, but is no sum;
    - ``"weakest_link"``: the smallest of them;
    - ``"matching"``: the use of the first agent's action where all agents' actions have the same rank, else 0;
    - ``"climbing"``: 1 where all agents play rank 0, -1 where some of them do, else the mean of the uses.

    The best joint action is the same for all kinds, rank 0 of every agent, and pays 1; there is no other that does.
    Tables depend on ``game_seed`` and the context's number alone.

    Observation of every agent and state, C: the context one-hot.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: of the contexts that are drawn, all alike.
        agents: number of agents ``n``.
        actions: of each agent, ``K``.
        contexts: number of contexts ``C``.
        payoff: which of the above.
        game_seed: of ranks and uses.

    Attributes:
        payoffs: all tables, ``[C, K, ..., K]``, an axis for each agent.
        ranks: of each context's, agent's and action's, int64 ``[C, n, K]``.
        best_actions: the best joint action of each context, int64 ``[C, n]``, by enumeration.
        best_return: mean over contexts of what it pays.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        agents: Annotated[int, SEVERAL] = 2,
        actions: Annotated[int, SEVERAL] = 6,
        contexts: Annotated[int, FEW] = 4,
        payoff: PayoffKind = "additive",
        game_seed: Annotated[int, SEED] = 0,
    ) -> None:
        if contexts * actions**agents > _MOST_CELLS:
            raise ValueError(
                f"games/stitch writes all payoffs out, at most {_MOST_CELLS:,}: {contexts} contexts of {actions} "
                f"actions of {agents} agents are {contexts} * {actions}^{agents}; take fewer agents or actions."
            )
        chance = CounterRandom(game_seed, num_envs=contexts, device=torch.device("cpu"))
        drawn = chance.uniform(2 * agents * actions).view(contexts, 2, agents, actions)
        ranks = drawn[:, 0].argsort(-1).argsort(-1)  # [C, n, K]
        by_rank = 0.8 * drawn[:, 1]
        by_rank[..., 0] = 1.0
        uses = by_rank.gather(-1, ranks)
        payoffs = _PAYOFFS[payoff](uses, ranks).float()
        best = payoffs.flatten(1).max(1)
        self.best_return = best.values.double().mean().item()
        spec = TaskSpec(
            n_agents=agents,
            observation_size=contexts,
            state_size=contexts,
            action_size=actions,
            discrete=True,
            task="games/stitch",
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=1,
            reference_returns=(payoffs.double().mean().item(), self.best_return),
        )
        self.ranks = ranks.to(self.device)
        self.payoffs = payoffs.to(self.device)
        self.best_actions = as_joint_action(best.indices, agents=agents, actions=actions).to(self.device)
        self._cells = self.payoffs.flatten(1)  # [C, K^n]
        self._strides = torch.tensor([actions**i for i in reversed(range(agents))], device=self.device)
        self._context_numbers = torch.arange(contexts, device=self.device)

    def set_state(self, context: Tensor) -> TensorDict:
        """Put the environments into given contexts, int64 ``[B]``, and return the first observation."""
        return self._set_game(context=self._given("context", context, (), high=len(self._cells) - 1))

    def _start(self, rows: Tensor | None) -> Game:
        drawn = self.random.uniform(1, rows=rows).squeeze(-1)
        return {"context": (drawn * len(self._cells)).long()}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        reward = self._cells[game["context"], (action * self._strides).sum(-1)].unsqueeze(-1)
        ended = torch.ones_like(game["context"], dtype=torch.bool)
        return Outcome(game, reward.expand(-1, self.task_spec.n_agents).contiguous(), ended)

    def _view(self, game: Game) -> View:
        state = (game["context"].unsqueeze(-1) == self._context_numbers).to(self.float_dtype)
        return View(state.unsqueeze(1).expand(-1, self.task_spec.n_agents, -1).contiguous(), state)


def as_joint_action(cells: Tensor, *, agents: int, actions: int) -> Tensor:
    """Return the joint actions, ``[*B, n]``, of the cells' numbers ``[*B]`` in a table with an axis for each agent."""
    strides = torch.tensor([actions**i for i in reversed(range(agents))], device=cells.device)
    return cells.unsqueeze(-1) // strides % actions


def _joint(values: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine the agents' values of their own actions, ``[C, n, K]`` -> ``[C, K, ..., K]``."""
    contexts, agents, actions = values.shape
    axes = [values[:, i].view(contexts, *[1] * i, actions, *[1] * (agents - 1 - i)) for i in range(agents)]
    return reduce(combine, axes)


def _mean(uses: Tensor) -> Tensor:
    return _joint(uses, torch.add) / uses.shape[1]


def _matching(uses: Tensor, ranks: Tensor) -> Tensor:
    same = _joint(ranks, torch.maximum) == _joint(ranks, torch.minimum)
    contexts, agents, actions = uses.shape
    return torch.where(same, uses[:, 0].view(contexts, actions, *[1] * (agents - 1)), 0.0)


def _climbing(uses: Tensor, ranks: Tensor) -> Tensor:
    on_top = ranks == 0
    some = torch.where(_joint(on_top, torch.logical_or), -1.0, _mean(uses))
    return torch.where(_joint(on_top, torch.logical_and), 1.0, some)


_PAYOFFS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "additive": lambda uses, _: _mean(uses),
    "monotonic": lambda uses, _: _joint(uses, torch.mul),
    "weakest_link": lambda uses, _: _joint(uses, torch.minimum),
    "matching": _matching,
    "climbing": _climbing,
}


class StitchController(TensorDictModuleBase):
    """Plays the joint actions of a coverage in turn, in ``games/stitch``.

    In each context all joint actions of :func:`recorded_joint_actions` come once before one of them comes again, in an
    order that the seed draws; so ``k`` times as many visits as there are of them hold each ``k`` times.

    Args:
        env: the environment that it is to play in.
        coverage: see :func:`recorded_joint_actions`.
        seed: of what the coverage leaves to chance, and of the order.

    Raises:
        ValueError: the environment is another task, or there is no such coverage.

    Examples:
        >>> from torchrl_marl_offline.envs import StitchController, make_env
        >>> env = make_env("games/stitch", num_envs=36, seed=0, contexts=1)
        >>> policy = StitchController(env, "star")
        >>> int(policy.recorded.sum())
        11
    """

    @checked
    def __init__(self, env: EnvBase, coverage: str = "full", *, seed: Annotated[int, SEED] = 0) -> None:
        game = game_of(env, Stitch, "StitchController plays in environments of games/stitch, not")
        self.in_keys, self.out_keys = [STATE], [ACTION]
        super().__init__()
        self.coverage = coverage
        recorded = recorded_joint_actions(game, coverage, seed=seed)
        flat = recorded.flatten(1)  # [C, K^n]
        chance = CounterRandom(seed, num_envs=len(flat), device=torch.device("cpu"))
        drawn = chance.uniform(flat.shape[1], stream=1).to(flat.device)
        order = drawn.masked_fill(~flat, 2.0).argsort(-1)
        self.register_buffer("recorded", recorded, persistent=False)
        self.register_buffer("order", order, persistent=False)  # [C, K^n], the recorded cells first
        self.register_buffer("counts", flat.sum(1), persistent=False)  # [C]
        self.register_buffer("turns", torch.zeros(len(flat), dtype=torch.int64, device=flat.device), persistent=False)
        self._sizes = {"agents": game.task_spec.n_agents, "actions": game.task_spec.action_size}

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        state = entry_read(self, tensordict, STATE, len(self.counts))
        visits = state.flatten(0, -2) > 0.5  # [R, C]
        context = visits.to(torch.uint8).argmax(-1)
        before = (
            visits.cumsum(0).gather(1, context.unsqueeze(1)).squeeze(1) - 1
        )  # visits of this context above this row
        place = (self.turns[context] + before) % self.counts[context]
        self.turns = self.turns + visits.sum(0)
        cells = self.order[context, place].view(state.shape[:-1])
        return tensordict.set(ACTION, as_joint_action(cells, **self._sizes))


def recorded_joint_actions(env: Stitch, coverage: str, *, seed: int = 0) -> Tensor:
    """Return which joint actions a coverage of ``games/stitch`` has in each context, bool ``[C, K, ..., K]``.

    =================  ================================================================================================
    coverage           joint actions
    =================  ================================================================================================
    ``full``           all
    ``best_left_out``  all but the best one
    ``two_teams``      those of two teams that share no action: the first has those of even rank, the second those of
                       odd rank; but every other agent changes ranks 0 and 1 between the teams, so that the best joint
                       action is none of theirs
    ``bridged_B``      those of the two teams, and ``B`` drawn ones in which some agents play with the one team and the
                       others with the other
    ``star``           a drawn one that has no best action in it, of equal ranks, and all in which one agent leaves it
    ``share_P``        a drawn share ``P`` of all, in (0, 1)
    =================  ================================================================================================

    In all but ``full`` the best joint action is left out.

    Args:
        env: the game.
        coverage: as above, as ``"bridged_2"`` or ``"share_0.3"``.
        seed: of what is drawn.

    Raises:
        ValueError: there is no such coverage, or the game has fewer joint actions than it needs.
    """
    kind, number = parse_coverage(coverage)
    ranks = env.ranks
    best = _joint(ranks == 0, torch.logical_and)
    if kind == "full":
        return torch.ones_like(best)
    if kind == "best_left_out":
        return ~best
    chance = CounterRandom(seed, num_envs=len(ranks), device=torch.device("cpu"))
    if kind == "share":
        return _drawn(~best, round(number * best[0].numel()), chance, coverage)
    if kind == "star":
        drawn = chance.uniform(1).to(ranks.device).unsqueeze(-1)  # [C, 1, 1]
        centre = 1 + (drawn * (ranks.shape[-1] - 1)).long()
        return _joint((ranks != centre).long(), torch.add) <= 1
    in_first = (ranks % 2 == 0).clone()  # [C, n, K]
    in_first[:, 1::2] ^= ranks[:, 1::2] <= 1
    teams = _joint(in_first, torch.logical_and) | _joint(~in_first, torch.logical_and)
    return teams | _drawn(~teams & ~best, int(number), chance, coverage) if number else teams


def parse_coverage(coverage: str) -> tuple[str, float]:
    """Return the kind and the number of a coverage: ``"bridged_2"`` is two teams and 2.

    Raises:
        ValueError: there is no such coverage.
    """
    if coverage in ("full", "best_left_out", "two_teams", "star"):
        return coverage, 0
    kind, _, text = coverage.partition("_")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if kind == "share" and 0 < number < 1:
        return kind, number
    if kind == "bridged" and text.isdecimal() and 1 <= number <= _MOST_CELLS:
        return kind, number
    raise ValueError(
        f"coverage must be one of {', '.join(COVERAGES)}, with B at least 1 and P between 0 and 1, as 'bridged_2' and "
        f"'share_0.3', got {coverage!r}."
    )


def _drawn(among: Tensor, count: int, chance: CounterRandom, coverage: str) -> Tensor:
    """Return ``count`` drawn cells of each context ``among`` those given, bool ``[C, K, ..., K]``."""
    flat = among.flatten(1)
    there = int(flat.sum(1).min())
    if not 1 <= count <= there:
        raise ValueError(
            f"{coverage!r} asks for {count} of {there} joint actions of a context; take another number, or a game of "
            "more actions."
        )
    drawn = chance.uniform(flat.shape[1]).to(flat.device).masked_fill(~flat, 2.0)
    chosen = torch.zeros_like(flat).scatter_(1, drawn.argsort(-1)[:, :count], value=True)
    return chosen.view_as(among)
