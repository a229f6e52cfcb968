"""Ctrl-C and SIGTERM as a request to stop after the step in hand."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torchrl_marl_offline.training.run.run_lock import claimed_around


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets :attr:`requested`; the second acts as if this were not here.

    Signals can be handled in the main thread alone: elsewhere nothing is changed.

    Args:
        answer: what is said on standard error at once, since what is in hand may take a while; ``None`` for nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, answer: str | None = None) -> None:
        self.requested, self.answer = False, answer
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        if self.answer is not None:
            with suppress(OSError):  # nobody may be listening any more
                # no print: the signal may have come in the middle of one
                os.write(sys.__stderr__.fileno(), f"\n{self.answer} (again to stop at once)\n".encode())

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def how_to_resume(output: Path) -> str:
    """Return what goes on with a run: a command line where one made its folder, or else calls in a script."""
    folder = claimed_around(output)
    if folder is None:
        return f"resume() of a trainer that is made like this one, with output={str(output)!r}, then train()"
    script = Path(sys.argv[0] if sys.argv else "")
    if script.name in ("marl-offline", "__main__.py"):
        return f"marl-offline train --resume {folder}"
    return f"python {script if script.suffix == '.py' else '<your script>'} --resume {folder}"
