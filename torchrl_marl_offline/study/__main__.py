"""The earlier name of ``python -m torchrl_marl_offline study``."""

import sys
from importlib import import_module

if __name__ == "__main__":  # the commands stand above this package, which does not import them
    sys.exit(import_module("torchrl_marl_offline.commands").earlier("study"))
