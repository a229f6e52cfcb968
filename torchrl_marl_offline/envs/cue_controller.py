"""Hand-written teams with memory and without it, for ``games/recall`` and ``games/telephone``."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION
from torchrl_marl_offline.core.ranges import SEED, UNIT
from torchrl_marl_offline.envs.base import STEP_COUNT, entry_read, game_of
from torchrl_marl_offline.envs.cue_games import CueGame
from torchrl_marl_offline.envs.scripted import Chance, steps_taken

CueKind = Literal["optimal", "memoryless", "random"]


class CueController(TensorDictModuleBase):
    """Remembers a cue, or does not, in ``games/recall`` and ``games/telephone``.

    - ``"optimal"``: the best team with memory. In ``games/recall`` all agents play the number of the cue that they saw.
      In ``games/telephone`` the first agent numbers the cues by falling probability and says the digits of the number,
      one in each step; the others say what they hear, and the last one puts the digits together.
    - ``"memoryless"``: a best team without memory, in which everybody knows the observation of the moment alone. Who
      has to act and knows nothing plays the likeliest cue.
    - ``"random"``: uniform over the actions.

    What is remembered is kept here, row by row: a row forgets where ``"step_count"`` is 0, as the environments of this
    library write it at a reset. To see that no step was left out costs a GPU's host a wait in every step.

    Args:
        env: the environment that it is to play in, which tells it the numbers of cues, words and steps.
        kind: one of the above.
        epsilon: probability with which an agent takes a uniformly random action instead. What is remembered is right
            all the same, but the next agent hears what was played.
        seed: of the chance; ``None`` takes torch's global generator.

    Raises:
        ValueError: the environment is another task.

    Examples:
        >>> from torchrl_marl_offline.envs import CueController, make_env
        >>> env = make_env("games/recall", num_envs=8, seed=0, delay=20)
        >>> data = env.rollout(21, CueController(env))
        >>> data["next", "success"][:, -1].all().item()
        True
    """

    @checked
    def __init__(
        self,
        env: EnvBase,
        kind: CueKind = "optimal",
        *,
        epsilon: Annotated[float, UNIT] = 0.0,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        if kind not in get_args(CueKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(CueKind))}, got {kind!r}.")
        refusal = "CueController plays in environments of games/recall and games/telephone, not"
        game: CueGame = game_of(env, CueGame, refusal)
        self.in_keys, self.out_keys = [OBSERVATION, STEP_COUNT], [ACTION]
        super().__init__()
        self.kind, self.epsilon = kind, epsilon
        self.cues, self.words, self.actions = game.cues, game.words, game.task_spec.action_size
        arriving = game.delay - game.task_spec.n_agents + 2  # words, in games/telephone
        wanted = next((count for count in range(self.cues) if self.words**count >= self.cues), 0)
        self.digits = 1 if kind == "memoryless" else min(wanted, arriving)
        order = torch.tensor(game.prior, dtype=torch.float64).argsort(descending=True, stable=True)
        self.register_buffer("order", order, persistent=False)  # [C], the cues by falling probability
        self.register_buffer("number", order.argsort(), persistent=False)  # [C], the place of each among them
        self._chance = Chance(seed)
        self._memory: Tensor | None = None  # [*B, n]
        self._step: Tensor | None = None  # [*B]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``.

        Raises:
            KeyError: there is no ``"step_count"``.
            RuntimeError: a row is in the middle of an episode of which the steps before were not seen.
        """
        observation = entry_read(self, tensordict, OBSERVATION, self.cues + self.words + 1)
        step = steps_taken(tensordict, type(self).__name__)
        shape, device = observation.shape[:-1], observation.device
        generator = self._chance(device)
        random = torch.randint(self.actions, shape, device=device, generator=generator)
        if self.kind == "random":
            return tensordict.set(ACTION, random)
        act = self._tell if self.words else self._recall
        action = act(observation, step, self._remembered(step.squeeze(-1), shape))
        if self.epsilon:
            action = self._chance.explored(action, random, self.epsilon)
        return tensordict.set(ACTION, action)

    def _remembered(self, step: Tensor, shape: torch.Size) -> Tensor:
        """Return what the agents know before they look, ``[*B, n]``: 0 where an episode begins."""
        begins, blank = step == 0, torch.zeros(shape, dtype=torch.int64, device=step.device)
        if self.kind == "memoryless":
            return blank
        before, last = self._memory, self._step
        if before is None or last is None or before.shape != shape or before.device != step.device:
            before, follows = blank, begins
        else:
            follows = begins | (step == last + 1)
        if not follows.all():
            raise RuntimeError(
                "CueController was not asked in the steps before this one, of which it must remember what was seen; "
                "begin with env.reset()."
            )
        self._step = step.clone()
        return torch.where(begins.unsqueeze(-1), blank, before)

    def _seen(self, observation: Tensor, memory: Tensor) -> Tensor:
        """Return the number of the cue, ``[*B, n]``, where one is shown, and what is remembered elsewhere."""
        shown = observation[..., : self.cues]
        return torch.where(shown.any(-1), self.number.to(memory.device)[shown.argmax(-1)], memory)

    def _recall(self, observation: Tensor, _: Tensor, memory: Tensor) -> Tensor:
        self._memory = self._seen(observation, memory)
        return self.order.to(memory.device)[self._memory]

    def _tell(self, observation: Tensor, step: Tensor, memory: Tensor) -> Tensor:
        heard = observation[..., self.cues : -1].argmax(-1)  # [*B, n], 0 where nothing is heard
        line = heard.shape[-1] - 1
        # without memory there is one digit, and nobody knows which step it is
        saying, hearing = (step * 0, step * 0) if self.kind == "memoryless" else (step, step - line)  # [*B, 1]
        number = self._seen(observation[..., :1, :], memory[..., :1])
        number = torch.where(number < self.words**self.digits, number, 0)
        said = torch.where(saying < self.digits, number // self._unit(saying) % self.words, 0)
        told = (hearing >= 0) & (hearing < self.digits)
        number_told = memory[..., -1:] + torch.where(told, heard[..., -1:] * self._unit(hearing), 0)
        self._memory = torch.cat([number, memory[..., 1:-1], number_told], -1)
        chosen = self.order.to(heard.device)[number_told.clamp_max(self.cues - 1)]
        return torch.cat([said, heard[..., 1:-1], chosen], -1)

    def _unit(self, place: Tensor) -> Tensor:
        """Return what a digit at ``place`` counts; any number where there is no such digit."""
        return self.words ** place.clamp(0, self.digits - 1)
