"""Policies as strategies of the repeated games of mixed motives, whose regret is known exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchrl.envs.utils import set_exploration_type

from torchrl_marl_offline.core.exploration import EXPLORATION, Mode
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, STATE
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.envs.base import game_of
from torchrl_marl_offline.envs.mixed_motives import RepeatedGame, SelfishRegret
from torchrl_marl_offline.evaluation.in_environments import LOGITS
from torchrl_marl_offline.training.run.saved_policies import SavedPolicy, bare

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase
    from torchrl.envs import EnvBase


@torch.no_grad()
def strategies_of(policy: TensorDictModuleBase | SavedPolicy, env: EnvBase, *, mode: Mode = "mode") -> Tensor:
    """Return the probabilities that each agent defects at the first step and after each joint action.

    Args:
        policy: without memory, so that it acts by the last joint action alone.
        env: a repeated game of mixed motives.
        mode: ``"mode"``: 0 or 1 by the deterministic action; ``"sample"``: the probabilities that it draws by.

    Returns:
        float64 ``[n, 1 + 2^n]``, as :meth:`~torchrl_marl_offline.envs.mixed_motives.RepeatedGame.regret` takes it.

    Raises:
        ValueError: the environment is another task, the policy reads more than observations and states, or it is to be
            sampled and does not write ``("agents", "logits")``.
    """
    game = game_of(env, RepeatedGame, "Strategies are of the repeated games of mixed motives, not of")
    acting = bare(policy)
    if others := [key for key in acting.in_keys if key not in (OBSERVATION, STATE)]:
        raise ValueError(f"The policy reads {others[0]}, so that it is no strategy of one step's memory; evaluate it.")
    with preserved_rng(), set_exploration_type(EXPLORATION[mode]), evaluation_mode(acting):
        chosen = acting(game.situations())
    if mode == "mode":
        return chosen.get(ACTION).T.double()
    if chosen.get(LOGITS, None) is None:
        raise ValueError('The policy writes no ("agents", "logits"), of which it would be sampled; take mode="mode".')
    return chosen.get(LOGITS).double().softmax(-1)[..., 1].T


def policy_regret(policy: TensorDictModuleBase | SavedPolicy, env: EnvBase, *, mode: Mode = "mode") -> SelfishRegret:
    """Return how much each agent of a policy could gain by itself in a repeated game, exactly.

    Args:
        policy: see :func:`strategies_of`.
        env: the game.
        mode: how it acts.

    Examples:
        >>> from torchrl_marl_offline import make_actor, make_env
        >>> env = make_env("games/prisoners_dilemma", max_steps=10)
        >>> bool((policy_regret(make_actor(env.task_spec, hidden=(8,)), env).regret >= 0).all())
        True
    """
    game = game_of(env, RepeatedGame, "Regret is known of the repeated games of mixed motives, not of")
    return game.regret(strategies_of(policy, env, mode=mode))
