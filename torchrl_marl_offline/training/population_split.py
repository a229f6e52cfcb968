"""A population taken apart: an ordinary checkpoint of each member, from which it goes on alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.training.run.checkpoints import CheckpointManager
from torchrl_marl_offline.training.run.logging import RunLogger
from torchrl_marl_offline.training.step.learner import Learner
from torchrl_marl_offline.training.step.optimizer import default_optimizer
from torchrl_marl_offline.training.trainer import Trainer

if TYPE_CHECKING:
    from torchrl.objectives import LossModule


def split_population(trainer: Trainer) -> dict[str, Path]:
    """Write an ordinary checkpoint of each member of a population, from which a :class:`Trainer` goes on alone.

    Args:
        trainer: of a :class:`PopulationLearner`, with an output folder.

    Returns:
        Member name -> the file, in ``members/NAME/checkpoints/``.

    Raises:
        ValueError: it is a run of one loss.
    """
    if not trainer.learner.is_population:
        raise ValueError("There is nothing to split: this is a run of one loss, which has its own checkpoints.")
    losses = trainer.learner.member_losses()
    return {name: _save_alone(trainer, index, name, loss) for index, (name, loss) in enumerate(losses)}


def _save_alone(trainer: Trainer, index: int, name: str, loss: LossModule) -> Path:
    many = trainer.learner
    learner = Learner(
        loss,
        optimizer=many.optimizer.member_optimizer(index, default_optimizer(loss)),
        tau=many.target_updater.tau,
        actor_every=many.rhythm.actor_every,
        critic_first=many.rhythm.critic_first,
        anneal_over=many.rhythm.anneal_over,
    )
    many.population.write_member(name, loss)  # again: a new target updater starts from targets equal to sources
    learner.compile, learner.updates = many.compile, many.updates
    learner.settings = {}  # the rules' words are the first member's, whose form serves for all
    alone = Trainer(
        learner,
        trainer.buffer.member(index),
        steps=trainer.steps,
        output=trainer.member_folder(name),
        logger=RunLogger(None),
        progress=False,
    )
    alone.step = trainer.step
    alone.load_state_dict(_state_of_member(trainer, index))
    manager = CheckpointManager(trainer.member_folder(name) / "checkpoints", keep=1)
    with preserved_rng():
        noise = trainer.buffer.noise_generators[index]  # alone, it is drawn from the device's own generator
        if noise.device.type == "cuda":
            torch.cuda.set_rng_state(noise.get_state(), noise.device)
        else:
            torch.set_rng_state(noise.get_state())
        return manager.save(trainer.step, **alone.components())


def _state_of_member(trainer: Trainer, index: int) -> dict[str, Any]:
    """Return what the run alone would count, log later and have been told of."""
    state = trainer.state_dict()
    rows = state["window"]["rows"]  # [steps, metrics, P]
    window = state["window"] | {"rows": None if rows is None else rows[..., index]}
    return state | {"window": window, "alarm": trainer.alarm.member_state(index), "reported": []}
