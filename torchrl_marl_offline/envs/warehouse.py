"""The multi-robot warehouse: robots bring requested shelves to the goals, without running into each other."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE, Range
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, Shape, board, discs, on_board

ACTIONS = NOOP, FORWARD, LEFT, RIGHT, TOGGLE_LOAD = range(5)

LAYOUTS = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}
"""Rows and columns of shelf blocks by the name of the warehouse."""

REQUESTS = {"easy": 2.0, "normal": 1.0, "hard": 0.5}
"""Requested shelves for each robot."""

BLOCK = 8
"""Shelves along a block."""

ROBOTS = Range(1, limit=19)

Layout = Literal["tiny", "small", "medium", "large"]
Difficulty = Literal["easy", "normal", "hard"]

_TURNED = ((0, 1, 2, 3), (0, 1, 2, 3), (2, 3, 1, 0), (3, 2, 0, 1), (0, 1, 2, 3))  # [action, direction] -> direction


def robots_that_move(target: Tensor, follows: Tensor) -> Tensor:
    """Return which of ``n`` robots come to the cells that they want, bool ``[B, n]``.

    A robot whose target is its own cell keeps it, and all behind it wait. Of robots that want a free cell, the one with
    the longest queue behind it goes (of equally long ones that of the smallest number), and of each queue the robots
    behind it, where two queues meet again the longest. Three or more in a circle move on together, and those behind
    them wait; two that want each other's cells, and all behind them, wait.

    Args:
        target: int64 ``[B, n]``, the cells wanted.
        follows: int64 ``[B, n]``, which robot is there (itself, where the target is its own cell); ``n`` where none.
    """
    n = target.shape[1]
    number = torch.arange(n, device=target.device)
    following = F.pad(follows, (0, 1), value=n)  # [B, n + 1], nobody follows nobody
    at, circle = follows, torch.zeros_like(follows)
    for length in range(1, n + 1):
        circle = torch.where((at == number) & (circle == 0), length, circle)
        at = following.gather(1, at)
    behind = follows.unsqueeze(1) == number.unsqueeze(-1)  # [B, n, n], whether the last follows the one before
    queue = torch.ones_like(target)
    for _ in range(n - 1):
        queue = 1 + (queue.unsqueeze(1) * behind).amax(-1)
    rank = queue * n - number
    rivals = target.unsqueeze(1) == target.unsqueeze(2)
    first = rank == (rank.unsqueeze(1) * rivals).amax(-1)
    free = F.pad(torch.zeros_like(first), (0, 1), value=True)
    goes = torch.zeros_like(first)
    for _ in range(n):
        goes = first & (free | F.pad(goes, (0, 1))).gather(1, follows)
    # whoever ends in a circle finds no free cell, and at is somewhere in it
    return torch.where(at == n, goes, (circle == 1) | (circle > 2))


class Warehouse(TeamEnv):
    """Robots bring requested shelves to the goals and put them back: ``rware/tiny``, ``small``, ``medium``, ``large``.

    The multi-robot warehouse with the rules, observations and rewards of the package ``rware`` 2.0 (Christianos,
    Schäfer and Albrecht, 2020; Papoudakis et al., 2021): ``rware-tiny-2ag-hard-v2`` is ``rware/tiny`` with ``agents=2,
    difficulty="hard"``.

    Actions: nothing, forward, turn left, turn right, load or unload. A robot without a shelf may drive below shelves
    and load the one above it; with one it cannot enter the cell of a shelf that stands, and unloads anywhere but on the
    ways. Who moves where several are in each other's way is said by :func:`robots_that_move`. (Which of two equally
    long queues goes first depends in the package on the order of Python's sets; here it is the robot of the smaller
    number.)
    A requested shelf on a goal pays its robot 1, and another one, drawn from the shelves that are not requested, takes
    its place among the requests. Truncation after ``max_steps``; nothing terminates.

    Start: all shelves in their places, robots on distinct cells of any kind in any direction, distinct requests.

    Observation of a robot, 71: column, row, whether it carries a shelf, direction (up, down, left, right), one-hot;
    whether it is on a way; and of each of the nine cells around and below it, row by row: whether a robot is there, its
    direction, one-hot (up where there is none), whether a shelf is there, and whether that is requested.

    State, 3 n + 2 for each request: column, row and direction (0 to 3) of each robot, then column and row of each
    requested shelf: AlberDICE's, which are 7 n in the difficulty ``"easy"``, as in its recordings.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: seed of the starts and of the requests.
        layout: which warehouse.
        max_steps: time limit.
        agents: number of robots ``n``.
        difficulty: requests at a time: ``"easy"``, two for each robot; ``"normal"``, one; ``"hard"``, half of one.
        reward: ``"individual"``, for the robot that delivers; ``"team"``, the sum of these for each robot.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        layout: Layout = "tiny",
        max_steps: Annotated[int, COUNT] = 500,
        agents: Annotated[int, ROBOTS] = 2,
        difficulty: Difficulty = "normal",
        reward: Literal["individual", "team"] = "individual",
    ) -> None:
        self.requests = int(REQUESTS[difficulty] * agents)
        if self.requests == 0:
            raise ValueError(f"{agents} robot is less than one request in the difficulty 'hard'; ask for 2 or more.")
        spec = TaskSpec(
            n_agents=agents,
            observation_size=71,
            state_size=3 * agents + 2 * self.requests,
            action_size=len(ACTIONS),
            discrete=True,
            task=f"rware/{layout}",
        )
        rows, columns = LAYOUTS[layout]
        self.rows, self.columns, self.shares_reward = (BLOCK + 1) * rows + 2, 3 * columns + 1, reward == "team"
        self.own_rewards = not self.shares_reward
        super().__init__(spec=spec, num_envs=num_envs, device=device, seed=seed, max_episode_steps=max_steps)
        self._make_floor()

    def _make_floor(self) -> None:
        """Lay out the cells, by their numbers in a floor with one more cell around it."""
        at = {"device": self.device}
        self.width = self.columns + 2
        row, column = torch.meshgrid(
            torch.arange(-1, self.rows + 1, **at), torch.arange(-1, self.columns + 1, **at), indexing="ij"
        )
        self._row, self._column = row.flatten(), column.flatten()
        inside = (row >= 0) & (row < self.rows) & (column >= 0) & (column < self.columns)
        middle = (column == self.columns // 2) | (column == self.columns // 2 - 1)
        way = (column % 3 == 0) | (row % (BLOCK + 1) == 0) | (row == self.rows - 1)
        way = way | (middle & (row > self.rows - (BLOCK + 3)))
        self._inside, self._way = inside.flatten(), way.flatten()
        self._floor = self._inside.nonzero().squeeze(-1)  # [rows * columns]
        self._shelves = (self._inside & ~self._way).nonzero().squeeze(-1)  # [S]
        self._goals = (inside & middle & (row == self.rows - 1)).flatten().nonzero().squeeze(-1)  # [2]
        self._ahead = torch.tensor([-self.width, self.width, -1, 1], **at)
        self._turned = torch.tensor(_TURNED, **at)
        around = [row * self.width + column for row in (-1, 0, 1) for column in (-1, 0, 1)]
        self._around = torch.tensor(around, **at)  # [9]
        self._numbers = torch.arange(1, self.task_spec.n_agents + 1, **at)
        self._shelf_numbers = F.pad(torch.arange(1, len(self._shelves) + 1, **at), (0, 1))  # the last stands for none
        # what is seen of a cell, by 3 * (0 or direction + 1) + (0, 1: a shelf, 2: a requested one)
        words = torch.zeros(5, 3, 7, **at, dtype=self.float_dtype)
        words[1:, :, 0] = 1
        words[0, :, 1] = 1
        words[1:, :, 1:5] = torch.eye(4, **at, dtype=self.float_dtype).unsqueeze(1)
        words[:, 1:, 5] = 1
        words[:, 2, 6] = 1
        self._words = words.flatten(0, 1)  # [15, 7]

    def floor_plan(self) -> tuple[Tensor, Tensor]:
        """Return which cells are ways, bool ``[rows, columns]``, and the numbers of the goals, row by row, ``[2]``."""
        shape = self.rows + 2, self.width
        ways = self._way.view(shape)[1:-1, 1:-1]
        return ways, self._row[self._goals] * self.columns + self._column[self._goals]

    def set_state(
        self, cells: Tensor, directions: Tensor, carried: Tensor, shelves: Tensor, requested: Tensor
    ) -> TensorDict:
        """Put robots and shelves where they shall be and return the first observation.

        Args:
            cells: int64 ``[B, n, 2]``, (row, column) of the robots.
            directions: int64 ``[B, n]``: 0 up, 1 down, 2 left, 3 right.
            carried: int64 ``[B, n]``, which shelf each carries, or -1.
            shelves: int64 ``[B, S, 2]``, (row, column).
            requested: int64 ``[B, requests]``, which shelves are requested.
        """
        number, n, last = len(self._shelves), self.task_spec.n_agents, (self.rows - 1, self.columns - 1)
        cells = self._given("cells", cells, (n, 2), high=last)
        directions = self._given("directions", directions, (n,), high=3)
        carried = self._given("carried", carried, (n,), low=-1, high=number - 1)
        shelves = self._given("shelves", shelves, (number, 2), high=last)
        requested = self._given("requested", requested, (self.requests,), high=number - 1)
        cell, shelf = (((each + 1) * each.new_tensor([self.width, 1])).sum(-1) for each in (cells, shelves))
        return self._set_game(
            cell=cell,
            direction=directions,
            carried=torch.where(carried < 0, number, carried),
            shelf=F.pad(shelf, (0, 1)),
            requested=requested,
        )

    def _start(self, rows: Tensor | None) -> Game:
        n, floor, number = self.task_spec.n_agents, len(self._floor), len(self._shelves)
        drawn = self.random.uniform(floor + n + number, rows=rows)
        order, direction, wanted = drawn.split([floor, n, number], 1)
        count = len(drawn)
        return {
            "cell": self._floor[order.topk(n).indices],
            "direction": (direction * 4).long(),
            "carried": torch.full((count, n), number, device=self.device),
            "shelf": F.pad(self._shelves, (0, 1)).expand(count, -1).contiguous(),
            "requested": wanted.topk(self.requests).indices,
        }

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        cell, carried, number = game["cell"], game["carried"], len(self._shelves)
        loaded = carried < number
        robots, shelves = self._on_floor(cell, self._numbers), self._on_floor(game["shelf"], self._shelf_numbers)
        target = cell + self._ahead[game["direction"]]
        target = torch.where((action == FORWARD) & self._inside[target], target, cell)
        there = robots.gather(1, target)  # 0 where nobody is
        carries = F.pad(loaded, (1, 0)).gather(1, there)
        barred = loaded & (target != cell) & (shelves.gather(1, target) > 0) & ~carries
        target = torch.where(barred, cell, target)
        there = robots.gather(1, target)
        moves = robots_that_move(target, torch.where(there == 0, self.task_spec.n_agents, there - 1))
        below = shelves.gather(1, cell)
        toggles = action == TOGGLE_LOAD
        unloads = toggles & loaded & ~self._way[cell]
        cell = torch.where(moves, target, cell)
        shelf = game["shelf"].scatter(1, carried, cell)
        shelf[:, number] = 0
        carried = torch.where(toggles & ~loaded & (below > 0), below - 1, torch.where(unloads, number, carried))
        direction = self._turned[action, game["direction"]]
        reward, requested = self._delivered(cell, shelf, game["requested"])
        following = {"cell": cell, "direction": direction, "carried": carried, "shelf": shelf, "requested": requested}
        return Outcome(following, reward, self._false.squeeze(-1))

    def _on_floor(self, cells: Tensor, values: Tensor) -> Tensor:
        """Return a floor, int64 ``[B, cells]``, with values (``[k]`` or ``[B, k]``) at cells, ``[B, k]``."""
        floor = torch.zeros(len(cells), len(self._inside), dtype=torch.int64, device=self.device)
        return floor.scatter_(1, cells, values.expand_as(cells))

    def _delivered(self, cell: Tensor, shelf: Tensor, requested: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rewards, ``[B, n]``, and the requests after deliveries."""
        drawn = self.random.uniform(len(self._goals), stream=1, first=self._step_count * len(self._goals))
        reward, others = torch.zeros_like(cell, dtype=self.float_dtype), len(self._shelves) - self.requests
        for goal, draw in zip(self._goals, drawn.unbind(1)):
            on_goal = shelf.gather(1, requested) == goal  # [B, requests]
            reward = reward + ((cell == goal) & on_goal.any(1, keepdim=True))
            # the drawn one of those that are not requested
            order = (~self._is_requested(requested)).cumsum(1)
            chosen = torch.searchsorted(order, 1 + (draw * others).long().unsqueeze(1))  # [B, 1]
            requested = torch.where(on_goal, chosen, requested)
        if self.shares_reward:
            reward = reward.sum(1, keepdim=True).expand_as(reward).contiguous()
        return reward, requested

    def _is_requested(self, requested: Tensor) -> Tensor:
        """Return which shelves are requested, bool ``[B, S]``, from their numbers ``[B, requests]``."""
        shape = len(requested), len(self._shelves)
        return torch.zeros(shape, dtype=torch.bool, device=self.device).scatter_(1, requested, True)

    def _view(self, game: Game) -> View:
        cell, number, real = game["cell"], len(self._shelves), self.float_dtype
        shelves = F.pad(1 + self._is_requested(game["requested"]).long(), (0, 1))  # the last stands for none
        seen = self._on_floor(game["shelf"], shelves)
        seen = seen.scatter_add_(1, cell, 3 * (game["direction"] + 1))
        around = (cell.unsqueeze(-1) + self._around).flatten(1)  # [B, n * 9]
        around = self._words[seen.gather(1, around)].view(*cell.shape, -1)  # [B, n, 63]
        column, row = self._column[cell], self._row[cell]
        own = torch.stack([column, row, game["carried"] < number], -1)
        own = torch.cat([own, F.one_hot(game["direction"], 4), self._way[cell].unsqueeze(-1)], -1).to(real)
        wanted = game["shelf"].gather(1, game["requested"])
        robots = torch.stack([column, row, game["direction"]], -1).flatten(1)
        requests = torch.stack([self._column[wanted], self._row[wanted]], -1).flatten(1)
        return View(torch.cat([own, around], -1), torch.cat([robots, requests], -1).to(real))

    def _scene(self, index: int) -> Scene:
        places = torch.stack([self._row, self._column], -1)
        shelf = self._game["shelf"][index, :-1]
        requested = self._is_requested(self._game["requested"][index : index + 1])[0]
        shapes: list[Shape] = []
        for cells, colour in ((self._goals, "#222222"), (shelf[~requested], "#bbbbbb"), (shelf[requested], "#cc7711")):
            shapes += discs(on_board(places[cells]), 0.45, colour)
        shapes += discs(on_board(places[self._game["cell"][index]]), 0.3, AGENT_COLOURS, alpha=0.8)
        return board(self.rows, self.columns, shapes)
