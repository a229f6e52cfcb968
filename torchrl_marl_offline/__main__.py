"""``python -m torchrl_marl_offline COMMAND``."""

import sys

from torchrl_marl_offline.commands import main

if __name__ == "__main__":
    sys.exit(main())
