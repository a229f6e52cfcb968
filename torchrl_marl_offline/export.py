"""The earlier name of ``python -m torchrl_marl_offline export``."""

import sys

from torchrl_marl_offline.commands import earlier

if __name__ == "__main__":
    sys.exit(earlier("export"))
