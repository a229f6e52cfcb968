"""Small matrix games in which the choice of the value decomposition shows."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, REAL, SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View


class TwoStep(TeamEnv):
    """The two-step game of QMIX (Rashid et al., 2018): ``games/two_step``.

    Two agents with two actions. In s1 the first agent's action chooses s2-1 (action 0) or s2-2 (action 1), for reward
    0. Then the joint action pays 7 in s2-1, and [[0, 1], [1, 8]] in s2-2, to both agents, and the game terminates.
    Uniformly random play earns 4.75, the best play 8, the safe one 7.

    Observation and state: the state one-hot, 3; the state after the end of the game is all zeros.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: accepted like everywhere; the game has no chance.
    """

    payoffs = (((7.0, 7.0), (7.0, 7.0)), ((0.0, 1.0), (1.0, 8.0)))
    _END = 3

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        spec = TaskSpec(
            n_agents=2, observation_size=3, state_size=3, action_size=2, discrete=True, task="games/two_step"
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=2,
            reference_returns=(4.75, 8.0),
        )
        # [place, action, action]; s1 pays nothing, and neither does the end
        payoff = torch.tensor(self.payoffs, device=self.device)
        nothing = torch.zeros_like(payoff[:1])
        self._payoff = torch.cat([nothing, payoff, nothing])

    def _start(self, rows: Tensor | None) -> Game:
        count = self.num_envs if rows is None else len(rows)
        return {"place": torch.zeros(count, dtype=torch.int64, device=self.device)}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        place = game["place"]
        first, second = action.unbind(-1)
        reward = self._payoff[place, first, second]
        new_place = torch.where(place == 0, 1 + first, self._END)
        return Outcome({"place": new_place}, reward.unsqueeze(-1).expand(-1, 2).contiguous(), new_place == self._END)

    def _view(self, game: Game) -> View:
        state = F.one_hot(game["place"], self._END + 1)[:, : self._END].to(self.float_dtype)
        return View(state.unsqueeze(1).expand(-1, 2, -1).contiguous(), state)


class MatrixGame(TeamEnv):
    """Two agents and one state: the joint action pays both agents what a square table says, ``max_steps`` times.

    Observation and state: the one state, one-hot: [1].

    Args:
        task: its name.
        payoff: table, row: action of the first agent, column: of the second.
        terminates: whether the end is a termination, not a truncation.
    """

    @checked
    def __init__(
        self,
        *,
        task: str,
        payoff: Annotated[tuple[tuple[float, ...], ...], REAL],
        num_envs: Annotated[int, SIZE],
        device: torch.device | str,
        seed: Annotated[int | None, SEED],
        max_steps: Annotated[int, COUNT],
        terminates: bool,
    ) -> None:
        table = torch.tensor(payoff)
        spec = TaskSpec(n_agents=2, observation_size=1, state_size=1, action_size=len(table), discrete=True, task=task)
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=max_steps,
            reference_returns=(max_steps * table.double().mean().item(), max_steps * table.max().item()),
        )
        self._payoff = table.to(self.device)
        self._terminates = terminates

    def _start(self, rows: Tensor | None) -> Game:
        count = self.num_envs if rows is None else len(rows)
        return {"place": torch.ones(count, 1, dtype=self.float_dtype, device=self.device)}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        first, second = action.unbind(-1)
        reward = self._payoff[first, second].unsqueeze(-1).expand(-1, 2).contiguous()
        ended = self._step_count.squeeze(-1) + 1 >= self.max_episode_steps
        return Outcome(game, reward, ended if self._terminates else self._false.squeeze(-1))

    def _view(self, game: Game) -> View:
        state = game["place"].clone()
        return View(state.unsqueeze(1).expand(-1, 2, -1).contiguous(), state)


class Xor(MatrixGame):
    """A repeated game that pays for choosing differently: ``games/xor``.

    Two agents with two actions and one state. Both agents get r(0,1) = r(1,0) = 1, r(0,0) = 0 and r(1,1) = -2, 50
    times; the end is a truncation. From data with only the two good joint actions, independent stochastic cloning
    earns 0 in expectation (0.25 · (0 + 1 + 1 - 2) a step), and a coordinated policy 50.

    Observation and state: the one state, one-hot: [1].

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: accepted like everywhere; the game has no chance.
        max_steps: number of rewarded steps.
    """

    payoff = ((0.0, 1.0), (1.0, -2.0))

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 50,
    ) -> None:
        super().__init__(
            task="games/xor",
            payoff=self.payoff,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_steps=max_steps,
            terminates=False,
        )


class Climb(MatrixGame):
    """One joint action whose best value is not the sum of what each agent adds: ``games/climb``.

    Both agents get the table's entry, and the game terminates. Without ``penalty`` the table is [[10, 9], [8, 0]],
    which no sum of one value per agent can express: from the other three entries it would follow that (1, 1) pays 7.
    With ``penalty`` it is [[5, 0, -50], [0, 0, -50], [-50, -50, 100]]: the best joint action (2, 2) pays 100, and who
    plays its part alone loses 50.

    Observation and state: the one state, one-hot: [1].

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: accepted like everywhere; the game has no chance.
        penalty: which table.
    """

    payoff = ((10.0, 9.0), (8.0, 0.0))
    penalty_payoff = ((5.0, 0.0, -50.0), (0.0, 0.0, -50.0), (-50.0, -50.0, 100.0))

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        penalty: bool = False,
    ) -> None:
        super().__init__(
            task="games/climb",
            payoff=self.penalty_payoff if penalty else self.payoff,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_steps=1,
            terminates=True,
        )
