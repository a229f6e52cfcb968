"""A trainer out of one list of options, some of the step and some of the run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torchrl_marl_offline.training import Learner, PopulationLearner, Trainer


def trainer_for(loss: Any, buffer: Any, **options: Any) -> Trainer:
    """Return the trainer of a loss, or of a population of losses by name."""
    kind = PopulationLearner if isinstance(loss, Mapping) else Learner
    own = options.keys() & inspect.signature(kind).parameters.keys()
    learner = kind(loss, **{name: options.pop(name) for name in own})
    return Trainer(learner, buffer, **options)
