"""Games in which a cue is shown once and acted on later, so that a team without memory earns no more than the prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import FEW, NON_NEGATIVE, SEED, SEVERAL, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, Shape, board, discs, on_board

_NONE = -1  # the last action of an agent that has not acted yet


def groups_told_apart(*, agents: int, cues: int, words: int, steps: int, memory: bool) -> int:
    """Return into how many groups of cues the history of the last agent in ``games/telephone`` can fall.

    A dynamic program over histories. What an agent knows is the group of cues to which its history belongs. One more
    word splits each of its groups into at most as many as there are words, and as its neighbour knows groups. Without
    memory the newest word alone counts. Telling the digits of the cue's number reaches these bounds.

    Args:
        agents: length of the line.
        cues: number of cues.
        words: number of words.
        steps: steps before the last agent acts.
        memory: whether agents know more than their observation of the moment.
    """
    groups = [cues] + [1] * (agents - 1)
    for _ in range(steps):
        heard = [min(words, known) for known in groups[:-1]]
        kept = groups if memory else [1] * agents
        groups = [kept[0], *(min(cues, known * new) for known, new in zip(kept[1:], heard))]
    return groups[-1]


class CueGame(TeamEnv):
    """One of several cues is shown at the first step, and ``delay`` steps later an action either fits it or does not.

    Args:
        task: its name.
        seers: how many of the agents, the first ones, see the cue.
        actors: how many of them, the last ones, have to play its action.
        words: how many actions of an agent the next one can tell apart; 0: it sees none of them.
        groups: of cues that the actors can tell apart, with memory and without.

    Attributes:
        cues: number of cues.
        delay: steps between the cue and the action.
        words: as given.
        prior: probability of each cue.
        best_return: mean return of the best team with memory.
        best_memoryless_return: mean return of the best team without it.
    """

    def __init__(
        self,
        *,
        task: str,
        num_envs: int,
        device: torch.device | str,
        seed: int | None,
        agents: int,
        cues: int,
        actions: int,
        delay: int,
        prior: Sequence[float] | None,
        seers: int,
        actors: int,
        words: int,
        groups: tuple[int, int],
    ) -> None:
        if actions < cues:
            raise ValueError(f"actions must be at least as many as the cues in {task}, got {actions} and {cues}.")
        self.cues, self.delay, self.words, self.prior = cues, delay, words, _normalized(prior, cues)
        self._seers, self._actors = seers, actors
        # who tells g groups of cues apart does best to have the likeliest cues alone in a group each
        likeliest = sorted(self.prior, reverse=True)
        self.best_return, self.best_memoryless_return = (math.fsum(likeliest[:count]) for count in groups)
        spec = TaskSpec(
            n_agents=agents,
            observation_size=cues + words + 1,
            state_size=cues + agents * words + 1,
            action_size=actions,
            discrete=True,
            task=task,
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=delay + 1,
            reference_returns=(float(actions) ** -actors, self.best_return),
            has_success=True,
        )
        cumulative = torch.tensor(self.prior, dtype=torch.float64).cumsum(0)
        self._bounds = (cumulative / cumulative[-1])[:-1].contiguous().to(self.device)
        self._sees = (torch.arange(agents, device=self.device) < seers).unsqueeze(-1)  # [n, 1]
        self._cue_numbers = torch.arange(cues, device=self.device)
        self._word_numbers = torch.arange(words, device=self.device)

    def set_state(self, cue: Tensor) -> TensorDict:
        """Show given cues, int64 ``[B]``, and return the first observation."""
        return self._set_game(**self._begin(self._given("cue", cue, (), high=self.cues - 1)))

    def _begin(self, cue: Tensor) -> Game:
        last = cue.new_full((len(cue), self.task_spec.n_agents), _NONE)
        return {"cue": cue, "time": torch.zeros_like(cue), "action": last}

    def _start(self, rows: Tensor | None) -> Game:
        drawn = self.random.uniform(1, rows=rows).squeeze(-1)
        return self._begin(torch.searchsorted(self._bounds, drawn, right=True))

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        cue, time = game["cue"], game["time"]
        last = time == self.delay
        fits = last & (action[:, -self._actors :] == cue.unsqueeze(-1)).all(-1)
        reward = fits.to(self.float_dtype).unsqueeze(-1).expand(-1, self.task_spec.n_agents)
        return Outcome({"cue": cue, "time": time + 1, "action": action}, reward.contiguous(), last, fits)

    def _view(self, game: Game) -> View:
        time, real = game["time"].unsqueeze(-1), self.float_dtype  # [B, 1]
        cue = game["cue"].unsqueeze(-1) == self._cue_numbers  # [B, C]
        shown = (cue & (time == 0)).unsqueeze(1) & self._sees  # [B, n, C]
        parts, state = [shown], [cue]
        if self.words:
            action = game["action"].unsqueeze(-1)
            said = (action != _NONE) & (action % self.words == self._word_numbers)  # [B, n, W]
            parts.append(torch.cat([torch.zeros_like(said[:, :1]), said[:, :-1]], 1))
            state.append(said.flatten(1))
        parts.append((time == self.delay).unsqueeze(1).expand(-1, self.task_spec.n_agents, -1))
        over = time.to(real) / self.max_episode_steps
        return View(torch.cat(parts, -1).to(real), torch.cat([torch.cat(state, -1).to(real), over], -1))

    def _scene(self, index: int) -> Scene:
        """Above, the cue, in black while it is shown, and the steps left; below, the last action of each agent."""
        game = {key: value[index] for key, value in self._game.items()}
        n, columns, time = self.task_spec.n_agents, self.task_spec.action_size + 1, int(game["time"])
        shapes = [Shape([(float(game["cue"]), 0.0)], 0.4, alpha=1.0 if time == 0 else 0.3)]
        shapes.append(Shape([(columns - 1.0, 0.0)], 0.4, alpha=0.1, label=str(max(self.delay - time, 0))))
        if time > 0:
            cells = torch.stack([torch.arange(1, n + 1), game["action"].cpu()], -1)
            shapes += discs(on_board(cells), 0.3, AGENT_COLOURS)
        return board(n + 1, columns, shapes)


class Recall(CueGame):
    """All agents see a cue and have to act on it together, later: ``games/recall``.

    At the first step one of ``cues`` cues is drawn and every agent sees it; then nothing is seen of it any more.
    ``delay`` steps later, when the signal to act is on, every agent must play the cue's number. If all do, all get
    reward 1, else 0, and the game terminates; what is played before pays nothing.

    With memory the best return is 1. Policies *without memory* are functions of an agent's observation of the moment,
    stochastic or not, and share no randomness: such a team sees the same whatever the cue was when it has to act, so
    that its best return is the probability of the likeliest cue, ``1 / cues`` by default. Uniform play returns
    ``actions ** -agents``. The environment has all three, as ``best_return``, ``best_memoryless_return`` and the
    first of ``reference_returns``; the second of these is ``best_return``.

    Observation, C + 1: the cue one-hot at the first step, and zeros later; 1 at the step that pays. Time is not seen
    otherwise. State, C + 1: the cue one-hot, always; the share of the episode that is over.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: of the cues.
        agents: number of agents.
        cues: number of cues ``C``.
        actions: number of actions, at least one for each cue; ``None``: as many.
        delay: steps between cue and action; the episode has ``delay + 1``.
        prior: probabilities of the cues, of any positive sum; ``None``: all alike.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        agents: Annotated[int, FEW] = 2,
        cues: Annotated[int, SEVERAL] = 4,
        actions: Annotated[int | None, SEVERAL] = None,
        delay: Annotated[int, FEW] = 5,
        prior: Annotated[Sequence[float] | None, NON_NEGATIVE] = None,
    ) -> None:
        super().__init__(
            task="games/recall",
            num_envs=num_envs,
            device=device,
            seed=seed,
            agents=agents,
            cues=cues,
            actions=cues if actions is None else actions,
            delay=delay,
            prior=prior,
            seers=agents,
            actors=agents,
            words=0,
            groups=(cues, 1),
        )


class Telephone(CueGame):
    """The first agent sees a cue, and the last one has to act on it, later: ``games/telephone``.

    The agents stand in a line, and each sees the last action of the one before it, as one of ``words`` words: the
    action's number modulo ``words``. At the first step one of ``cues`` cues is drawn and the first agent alone sees
    it. ``delay`` steps later, when the signal to act is on, the last agent must play the cue's number. If it does, all
    agents get reward 1, else 0, and the game terminates. Nothing else pays, so the cue has to be told through actions.

    A word takes a step from one agent to the next: ``delay - agents + 2`` words arrive in time, at least one. With
    memory the team can tell ``words`` to the power of that many groups of cues apart, and the best return is the
    probability of so many likeliest cues. Policies *without memory* are functions of an agent's observation of the
    moment, stochastic or not, and share no randomness: the first agent can tell the cue only in the step in which it
    sees it, and the last one knows only the newest word. Where ``delay`` is ``agents - 1`` these meet, one word is all
    that can arrive, and memory brings nothing; where it is longer, such a team's best return is the probability of the
    likeliest cue, ``1 / cues`` by default. Uniform play returns ``1 / actions``. The environment has all three, as
    ``best_return`` and ``best_memoryless_return`` (by dynamic programming over histories,
    :func:`groups_told_apart`) and the first of ``reference_returns``; the second of these is ``best_return``.

    Observation, C + W + 1: the cue one-hot, for the first agent at the first step; the word heard, one-hot, zeros for
    the first agent and at the first step; 1 at the step that pays. Time is not seen otherwise, and neither is an
    agent's own last action. State, C + n W + 1: the cue one-hot, always; the last word of every agent, one-hot; the
    share of the episode that is over.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: of the cues.
        agents: number of agents ``n`` in the line.
        cues: number of cues ``C``.
        actions: number of actions, at least one for each cue; ``None``: as many.
        words: number of words ``W``, at most one for each action; ``None``: as many.
        delay: steps between cue and action, at least ``agents - 1``; the episode has ``delay + 1``.
        prior: probabilities of the cues, of any positive sum; ``None``: all alike.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        agents: Annotated[int, SEVERAL] = 2,
        cues: Annotated[int, SEVERAL] = 4,
        actions: Annotated[int | None, SEVERAL] = None,
        words: Annotated[int | None, SEVERAL] = None,
        delay: Annotated[int, FEW] = 5,
        prior: Annotated[Sequence[float] | None, NON_NEGATIVE] = None,
    ) -> None:
        actions = cues if actions is None else actions
        words = actions if words is None else words
        if words > actions:
            raise ValueError(f"words must be at most one for each of the {actions} actions, got {words}.")
        if delay < agents - 1:
            raise ValueError(
                f"delay must be at least {agents - 1} for {agents} agents, a step from each to the next, got {delay}."
            )
        line = {"agents": agents, "cues": cues, "words": words, "steps": delay}
        super().__init__(
            task="games/telephone",
            num_envs=num_envs,
            device=device,
            seed=seed,
            agents=agents,
            cues=cues,
            actions=actions,
            delay=delay,
            prior=prior,
            seers=1,
            actors=1,
            words=words,
            groups=(groups_told_apart(**line, memory=True), groups_told_apart(**line, memory=False)),
        )


def _normalized(prior: Sequence[float] | None, cues: int) -> tuple[float, ...]:
    weights = [1.0] * cues if prior is None else [float(each) for each in prior]
    total = math.fsum(weights)
    if len(weights) != cues or total <= 0:
        raise ValueError(f"prior must be {cues} numbers, one a cue and not all 0, got {weights}.")
    return tuple(each / total for each in weights)
