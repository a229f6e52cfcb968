"""Offline multi-agent reinforcement learning as TorchRL components.

What can be imported from here stands in ``__init__.pyi``, the one list of names; a name's module is imported when the
name is first used. Importing the package is enough for TorchRL's own ``torchrl.data.datasets.load_dataset`` to know our
sources.
"""

from pkgutil import iter_modules

from lazy_loader import attach_stub
from wrapt import register_post_import_hook

__version__ = "0.1.0"

__getattr__, __dir__, _names = attach_stub(__name__, __file__)
__all__ = sorted(set(_names) - {module.name for module in iter_modules(__path__) if module.ispkg})

# TorchRL's dataset modules bring its collectors along, so they are not imported for the sake of registering.
register_post_import_hook("torchrl_marl_offline.data.torchrl_hook:register_with_torchrl", "torchrl.data.datasets.utils")
register_post_import_hook(
    "torchrl_marl_offline.algorithms.torchrl_configs:register_with_hydra", "torchrl.trainers.algorithms.configs"
)
