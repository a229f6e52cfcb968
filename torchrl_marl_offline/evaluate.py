"""The earlier name of ``python -m torchrl_marl_offline evaluate``."""

import sys

from torchrl_marl_offline.commands import earlier

if __name__ == "__main__":
    sys.exit(earlier("evaluate"))
else:
    # ``import torchrl_marl_offline.evaluate`` binds the package's attribute ``evaluate``, which is the function of that
    # name: let the import system find the function.
    from torchrl_marl_offline.evaluation.in_environments import evaluate

    if __spec__ is not None:  # a file that is run under another name has none
        evaluate.__spec__ = __spec__  # which ``python -m`` looks for in what was imported
        sys.modules[__name__] = evaluate  # type: ignore[assignment]
