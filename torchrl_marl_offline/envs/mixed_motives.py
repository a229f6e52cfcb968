"""Repeated games of mixed motives: each agent has its own reward, and what is best for one is not best for all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Annotated, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, COUNT_OR_NONE, POSITIVE, SEED, SIZE, Range
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View, entry_read, game_of
from torchrl_marl_offline.envs.counter_rng import CounterRandom

COOPERATE, DEFECT = 0, 1
STRATEGIES = ("cooperate", "defect", "tit_for_tat", "win_stay_lose_shift", "random")

_REFUSAL = "Strategies play in the repeated games of mixed motives, not in"
_PARTNERS = Range(2, 8)  # 2^8 joint actions


class SelfishRegret(NamedTuple):
    """How much each agent could gain by itself, ``[n]`` float64 each.

    Attributes:
        value: its expected return.
        best: that of its best response to the others.
        regret: the difference; all are 0 in a Nash equilibrium.
    """

    value: Tensor
    best: Tensor
    regret: Tensor


class RepeatedGame(TeamEnv):
    """Agents choose together, ``max_steps`` times, each to cooperate (action 0) or to defect (1), and see what all did.

    Observation, 2 n: the last action of each agent one-hot, its own first, then those of the agents after it, in a
    circle; zeros at the first step. State, 2 n: the same from the first agent on. The end is a truncation.

    Args:
        task: its name.
        payoffs: reward of each agent for each joint action, ``[2, ..., 2, n]``, an axis for each agent.

    Attributes:
        payoffs: as given.
    """

    own_rewards = True

    def __init__(
        self,
        *,
        task: str,
        payoffs: Tensor,
        num_envs: int,
        device: torch.device | str,
        seed: int | None,
        max_steps: int,
    ) -> None:
        agents = payoffs.shape[-1]
        spec = TaskSpec(
            n_agents=agents,
            observation_size=2 * agents,
            state_size=2 * agents,
            action_size=2,
            discrete=True,
            task=task,
        )
        team = payoffs.double().mean(-1)
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=max_steps,
            reference_returns=(max_steps * team.mean().item(), max_steps * team.max().item()),
        )
        self.payoffs = payoffs.to(self.device)
        self._cells = self.payoffs.flatten(0, -2).to(self.float_dtype)  # [2^n, n]
        place = torch.arange(agents, device=self.device)
        self._from_me = (place.unsqueeze(-1) + place) % agents  # [n, n]
        self._places = agents - 1 - place  # of each agent's bit in the number of a joint action

    def set_state(self, actions: Tensor) -> TensorDict:
        """Begin after given last actions, int64 ``[B, n]``; -1: nobody has acted."""
        return self._set_game(last=self._given("actions", actions, (self.task_spec.n_agents,), low=-1, high=DEFECT))

    def situations(self) -> TensorDict:
        """Return what agents see at the first step and after each joint action, ``[1 + 2^n]``, as in :meth:`regret`."""
        n = self.task_spec.n_agents
        last = torch.tensor([(-1,) * n, *product((COOPERATE, DEFECT), repeat=n)], device=self.device)
        view = self._view({"last": last})
        return TensorDict({OBSERVATION: view.observation, STATE: view.state}, [len(last)])

    def _start(self, rows: Tensor | None) -> Game:
        count = self.num_envs if rows is None else len(rows)
        return {"last": torch.full((count, self.task_spec.n_agents), -1, device=self.device)}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        reward = self._cells[(action << self._places).sum(-1)]
        return Outcome({"last": action}, reward, self._false.squeeze(-1))

    def _view(self, game: Game) -> View:
        last = game["last"]
        seen = torch.stack([last == COOPERATE, last == DEFECT], -1).to(self.float_dtype)  # [B, n, 2]
        return View(seen[:, self._from_me].flatten(2), seen.flatten(1))

    def probabilities(self, strategies: Tensor) -> Tensor:
        """Return strategies as probabilities to defect, float64 ``[n, 1 + 2^n]``, in the order of :meth:`regret`.

        Raises:
            ValueError: they have another shape, or are no probabilities.
        """
        n = self.task_spec.n_agents
        try:
            found = torch.as_tensor(strategies, device=self.device).double()
        except (TypeError, ValueError, RuntimeError):
            found = torch.empty(0)
        if found.shape != (n, 1 + 2**n) or not ((found >= 0) & (found <= 1)).all():
            got = tuple(found.shape) if isinstance(strategies, Tensor) else f"{strategies!r:.60}"
            raise ValueError(
                f"strategies must be probabilities [{n}, {1 + 2**n}], of each agent at the first step and after each "
                f"joint action, got {got}."
            )
        return found

    def regret(self, strategies: Tensor) -> SelfishRegret:
        """Return each agent's regret, exactly, by dynamic programming over the steps that are left.

        The best response may depend on all that was played and on time; against strategies of one step's memory one
        that knows the last joint action and the time is as good.

        Args:
            strategies: probability that each agent defects, ``[n, 1 + 2^n]``: at the first step, and after each joint
                action, in the order of their numbers (the first agent's action is the highest bit).

        Raises:
            ValueError: they have another shape, or are no probabilities.

        Examples:
            >>> from torchrl_marl_offline.envs import make_env
            >>> from torchrl_marl_offline.envs.mixed_motives import strategy
            >>> env = make_env("games/prisoners_dilemma", max_steps=10)
            >>> both = torch.stack([strategy(env, i, "tit_for_tat") for i in range(2)])
            >>> env.regret(both).regret.tolist()  # who defects in the last step gets 5 there, and not 3
            [2.0, 2.0]
        """
        n = self.task_spec.n_agents
        strategies = self.probabilities(strategies)
        defects = strategies.T  # [S, n]
        chances = torch.stack([1 - defects, defects], -1)  # [S, n, 2]
        joint = torch.tensor(list(product((COOPERATE, DEFECT), repeat=n)), device=strategies.device)  # [2^n, n]
        own = chances[:, torch.arange(n, device=joint.device), joint]  # [S, 2^n, n], of each agent's part
        of_others = torch.stack([own[..., [j for j in range(n) if j != i]].prod(-1) for i in range(n)], -1)
        reward = self.payoffs.flatten(0, -2).double().to(joint.device)  # [2^n, n]
        value = best = torch.zeros(len(defects), n, dtype=torch.float64, device=joint.device)
        defecting = (joint == DEFECT).double()  # [2^n, n]
        for _ in range(self.max_episode_steps):
            value = (own.prod(-1, keepdim=True) * (reward + value[1:])).sum(1)
            gain = of_others * (reward + best[1:])  # [S, 2^n, n]
            best = torch.maximum((gain * (1 - defecting)).sum(1), (gain * defecting).sum(1))
        return SelfishRegret(value[0], best[0], best[0] - value[0])


@checked
def strategy(env: RepeatedGame, agent: Annotated[int, COUNT_OR_NONE], name: str) -> Tensor:
    """Return a strategy of one step's memory: the probability to defect at first and after each joint action.

    Args:
        env: the game.
        agent: whose.
        name: ``"cooperate"``, ``"defect"``, ``"random"``; ``"tit_for_tat"``: cooperate at first, and then defect where
            another agent did; ``"win_stay_lose_shift"``: cooperate at first and where all did the same, defect
            elsewhere.

    Returns:
        float64 ``[1 + 2^n]``.

    Raises:
        ValueError: there is no such strategy, or agent; or the environment is another task.
    """
    env = game_of(env, RepeatedGame, _REFUSAL)
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {name!r}.")
    n = env.task_spec.n_agents
    if agent >= n:
        raise ValueError(f"{env.task_spec.task} has the agents 0 to {n - 1} here, got agent={agent}.")
    joint = torch.tensor(list(product((COOPERATE, DEFECT), repeat=n)))
    others = torch.cat([joint[:, :agent], joint[:, agent + 1 :]], 1)
    after = {
        "cooperate": torch.zeros(len(joint)),
        "defect": torch.ones(len(joint)),
        "random": torch.full((len(joint),), 0.5),
        "tit_for_tat": (others == DEFECT).any(1),
        "win_stay_lose_shift": joint.amin(1) != joint.amax(1),
    }[name].double()
    first = {"defect": 1.0, "random": 0.5}.get(name, 0.0)
    return torch.cat([torch.tensor([first], dtype=torch.float64), after])


class StrategyController(TensorDictModuleBase):
    """Plays strategies of one step's memory in the repeated games.

    Args:
        env: the game.
        strategies: names for :func:`strategy`, one for each agent; or probabilities to defect, ``[n, 1 + 2^n]``.
        seed: of the chance.

    Raises:
        ValueError: the environment is another task, or there are not as many strategies as agents.
    """

    @checked
    def __init__(self, env: EnvBase, strategies: Sequence[str] | Tensor, *, seed: Annotated[int, SEED] = 0) -> None:
        game = game_of(env, RepeatedGame, _REFUSAL)
        if isinstance(strategies, Sequence) and all(isinstance(name, str) for name in strategies):
            if len(strategies) != game.task_spec.n_agents:
                raise ValueError(
                    f"{len(strategies)} strategies for {game.task_spec.n_agents} agents; give one for each."
                )
            strategies = torch.stack([strategy(game, agent, name) for agent, name in enumerate(strategies)])
        strategies = game.probabilities(strategies)
        self.in_keys, self.out_keys = [STATE], [ACTION]
        super().__init__()
        self.register_buffer("strategies", strategies, persistent=False)
        self.register_buffer("places", game._places, persistent=False)
        self._chance = CounterRandom(seed, num_envs=1, device=game.device)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        last = entry_read(self, tensordict, STATE, 2 * len(self.places)).unflatten(-1, (-1, 2))  # [*B, n, 2]
        number = 1 + (last[..., DEFECT].long() << self.places).sum(-1)
        seen = torch.where(last.flatten(-2).any(-1), number, 0)  # [*B]
        defects = self.strategies.T[seen]  # [*B, n]
        self._chance.advance(None)
        drawn = self._chance.uniform(defects.numel()).view(defects.shape)
        return tensordict.set(ACTION, (drawn < defects).long())


def _two_agents(both: float, alone: float, tempted: float, neither: float) -> Tensor:
    """Return payoffs ``[2, 2, 2]`` from those if both cooperate, one cooperates or defects alone, both defect."""
    return torch.tensor([[[both, both], [alone, tempted]], [[tempted, alone], [neither, neither]]])


class StagHunt(RepeatedGame):
    """Who hunts the stag needs the other, who hunts the hare does not: ``games/stag_hunt``.

    Rewards: 4 for both who cooperate, 0 for one who does so alone and 3 for the other, 2 for both who defect. Both
    cooperating and both defecting are equilibria of one step; the first pays more, the second risks less.

    Observation and state: see :class:`RepeatedGame`: the last action of each agent one-hot, the observer's first.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: accepted like everywhere; the game has no chance.
        max_steps: number of rewarded steps.
    """

    payoff = (4.0, 0.0, 3.0, 2.0)
    task = "games/stag_hunt"

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 20,
    ) -> None:
        super().__init__(
            task=self.task,
            payoffs=_two_agents(*self.payoff),
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_steps=max_steps,
        )


class Chicken(StagHunt):
    """Who gives way alone loses little, and both lose most where nobody does: ``games/chicken``.

    Rewards: 3 for both who cooperate, 1 for one who does so alone and 4 for the other, 0 for both who defect. The pure
    equilibria of one step are those in which one cooperates.

    Observation and state: see :class:`RepeatedGame`: the last action of each agent one-hot, the observer's first.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: accepted like everywhere; the game has no chance.
        max_steps: number of rewarded steps.
    """

    payoff = (3.0, 1.0, 4.0, 0.0)
    task = "games/chicken"


class PrisonersDilemma(StagHunt):
    """Defecting is better whatever the other does, and worse if both do: ``games/prisoners_dilemma``.

    Rewards: 3 for both who cooperate, 0 for one who does so alone and 5 for the other, 1 for both who defect, which is
    the only equilibrium of one step.

    Observation and state: see :class:`RepeatedGame`: the last action of each agent one-hot, the observer's first.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: accepted like everywhere; the game has no chance.
        max_steps: number of rewarded steps.
    """

    payoff = (3.0, 0.0, 5.0, 1.0)
    task = "games/prisoners_dilemma"


class PublicGoods(RepeatedGame):
    """Agents may give what they have for all: ``games/public_goods``.

    In every step each agent has 1. It gives it (action 0) or keeps it (1). What is given is multiplied by ``factor``
    and shared equally by all, who gave and who did not. With a factor between 1 and the number of agents everybody is
    better off keeping, and all are better off if all give.

    Observation and state: see :class:`RepeatedGame`: the last action of each agent one-hot, the observer's first.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: accepted like everywhere; the game has no chance.
        max_steps: number of rewarded steps.
        agents: number of agents, 2 to 8.
        factor: by which what is given grows.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 20,
        agents: Annotated[int, _PARTNERS] = 4,
        factor: Annotated[float, POSITIVE] = 1.6,
    ) -> None:
        joint = torch.tensor(list(product((COOPERATE, DEFECT), repeat=agents)), dtype=torch.float64)
        payoffs = joint + factor * (1 - joint).mean(-1, keepdim=True)  # [2^n, n]
        super().__init__(
            task="games/public_goods",
            payoffs=payoffs.float().view(*[2] * agents, agents),
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_steps=max_steps,
        )
