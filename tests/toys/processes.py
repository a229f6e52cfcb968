"""Processes as a user starts them, without the seconds that importing torch takes.

A process that has imported everything is started once for each worker of pytest; :func:`start` has it fork. The fork
gets the arguments, folder, environment and warning options of a new interpreter and runs the script, module or code as
``__main__``. It is killed, interrupted and waited for as any process. What a test says of importing itself needs
:mod:`subprocess`.
"""

from __future__ import annotations

import array
import atexit
import gc
import inspect
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

IMPORTED = (
    *("torch", "tensordict", "torchrl.collectors", "torchrl.envs", "torchrl.objectives", "h5py", "pandas"),
    *(f"torchrl_marl_offline.{name}" for name in ("data", "envs", "modules", "objectives", "training", "study")),
    *("torchrl_marl_offline.commands.train_work", "matplotlib.pyplot", "vmas", "torch.utils.tensorboard"),
)


def look_for_garbage_seldom() -> None:
    """Leave what is there out of the search for garbage, which took a tenth of the time of tests of small losses."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


# ------------------------------------------------------------------ in the tests


class Process:
    """A process, with the part of :class:`subprocess.Popen` that the tests use."""

    def __init__(self, pid: int, server: _Server, args: Sequence[str], outputs: dict) -> None:
        self.pid, self.args, self.returncode = pid, args, None
        self._server = server
        self.stdout, self.stderr = outputs.get("stdout"), outputs.get("stderr")

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.status_of(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | bytes | None, str | bytes | None]:
        end = time.monotonic() + (1e9 if timeout is None else timeout)
        found: dict[str, str | bytes] = {}
        readers = []
        for name in ("stdout", "stderr"):
            if (stream := getattr(self, name)) is not None and not stream.closed:
                read = threading.Thread(target=lambda n=name, s=stream: found.update({n: s.read()}), daemon=True)
                read.start()
                readers.append(read)
        for read in readers:
            read.join(max(0.0, end - time.monotonic()))
            if read.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(max(0.1, end - time.monotonic()))
        self._close()
        return found.get("stdout"), found.get("stderr")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _close(self) -> None:
        for stream in filter(None, (self.stdout, self.stderr)):
            stream.close()

    __del__ = _close

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.wait()


class _Server:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(there.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[there.fileno()], env=os.environ | {"OMP_NUM_THREADS": "1"})
        there.close()
        self._statuses: dict[int, int] = {}
        self._lock = threading.Lock()
        atexit.register(self._leave)

    def _leave(self) -> None:
        self._socket.close()
        self.process.wait(30)

    def begin(self, request: Mapping[str, object], descriptors: list[int]) -> int:
        with self._lock:
            sent = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            self._socket.sendmsg([json.dumps(request).encode()], sent)
            while "pid" not in (message := self._read()):
                self._statuses[message["ended"]] = message["status"]
        return message["pid"]

    def status_of(self, pid: int) -> int | None:
        with self._lock:
            self._socket.setblocking(False)
            try:
                while pid not in self._statuses:
                    message = self._read()
                    self._statuses[message["ended"]] = message["status"]
            except BlockingIOError:
                pass
            finally:
                self._socket.setblocking(True)
            return self._statuses.get(pid)

    def _read(self) -> dict[str, int]:
        if not (message := self._socket.recv(4096)):
            raise RuntimeError("the process that forks has ended")
        return json.loads(message)


_servers: dict[int, _Server] = {}


def start(
    *arguments: object,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    text: bool = True,
    stdout: int | None = subprocess.PIPE,
    stderr: int | None = subprocess.PIPE,
) -> Process:
    """Do what ``subprocess.Popen([sys.executable, *arguments])`` does, sooner.

    Args:
        *arguments: ``-W OPTION`` any number of times, then a script, ``-m MODULE`` or ``-c CODE``, and its arguments.
        cwd: the folder, by default this process's.
        env: the environment, by default this process's.
        text: streams of text.
        stdout: ``PIPE``, or None for this process's own.
        stderr: the same, or ``STDOUT``.
    """
    if os.getpid() not in _servers:
        _servers[os.getpid()] = _Server()
    server, words = _servers[os.getpid()], list(map(str, arguments))
    request = {"arguments": words, "cwd": str(cwd or os.getcwd()), "env": dict(env or os.environ)}
    outputs, given = {}, []
    for name, wanted, own in (("stdout", stdout, 1), ("stderr", stderr, 2)):
        if wanted == subprocess.PIPE:
            here, there = os.pipe()
            outputs[name] = os.fdopen(here, "r" if text else "rb")
            given.append(there)
        else:
            given.append(os.dup(given[0] if wanted == subprocess.STDOUT else own))
    pid = server.begin(request, given)
    for descriptor in given:
        os.close(descriptor)
    return Process(pid, server, words, outputs)


def run(*arguments: object, timeout: float | None = 600, **options: object) -> subprocess.CompletedProcess:
    """Do what ``subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`` does, sooner."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_new(code: str, *arguments: object, options: Sequence[str] = (), **given: object) -> subprocess.CompletedProcess:
    """Run code in a new interpreter, for what is said of importing; it ends without destroying all modules."""
    code += "\nimport os, sys\nsys.stdout.flush()\nsys.stderr.flush()\nos._exit(0)\n"
    command = [sys.executable, *options, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **given)


# ------------------------------------------------------------ in the process that forks


def serve(descriptor: int) -> None:
    """Fork for each request, until the tests have ended."""
    import importlib
    import select
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in IMPORTED:
            importlib.import_module(name)
    look_for_garbage_seldom()
    _take_the_place_of_new_interpreters()
    asked = socket.socket(fileno=descriptor)
    running: set[int] = set()
    while True:
        ready, _, _ = select.select([asked], [], [], 0.02 if running else 10.0)
        if ready:
            message, ancillary, _, _ = asked.recvmsg(2**20, socket.CMSG_SPACE(16))
            if not message:
                os._exit(0)
            descriptors = array.array("i", ancillary[0][2]).tolist()
            if (pid := os.fork()) == 0:
                asked.close()
                _end(*_outcome(json.loads(message), descriptors))
            running.add(pid)
            for each in descriptors:
                os.close(each)
            asked.send(json.dumps({"pid": pid}).encode())
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.discard(pid)
                asked.send(json.dumps({"ended": pid, "status": os.waitstatus_to_exitcode(status)}).encode())


def _outcome(request: dict, descriptors: list[int]) -> tuple[int, int | None]:
    """Run a program in this fork; returns its exit status, and the signal that ends it."""
    try:
        _become(request, descriptors)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF, None
        print(end.code, file=sys.stderr)
        return 1, None
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1, signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
    return 0, None


def _end(status: int, number: int | None) -> NoReturn:
    """End this fork as an interpreter ends, but for the modules, whose destruction takes two seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    if (names := sys.modules["__main__"].__dict__) is not globals():
        names.clear()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    if number is not None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(status)


def _take_the_place_of_new_interpreters() -> None:
    """Have a fork's own processes forked, too: those of multiprocessing, and Python's that it starts as a program."""
    import multiprocessing.util

    begin_anew, execute_anew = multiprocessing.util.spawnv_passfds, subprocess.Popen._execute_child
    parameters = list(inspect.signature(execute_anew).parameters)

    def begin(path: bytes, words: list[str], descriptors: list[int]) -> int:
        if not _may_be_forked(words):
            return begin_anew(path, words, descriptors)
        return _begin_another(words, dict(enumerate((0, 1, 2))), descriptors)

    def execute(process: subprocess.Popen, *arguments: object) -> None:
        given = dict(zip(parameters, [process, *arguments]))
        plain = not (given["preexec_fn"] or given["shell"] or given["pass_fds"]) and given["process_group"] == -1
        words = given["args"]
        if not plain or not isinstance(words, Sequence) or words[0] != sys.executable or not _may_be_forked(words):
            execute_anew(process, *arguments)
            return
        streams = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        places = {place: place if stream == -1 else stream for place, stream in enumerate(streams)}
        own_session = given["start_new_session"]
        process.pid = _begin_another(words, places, [], cwd=given["cwd"], env=given["env"], own_session=own_session)
        process._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        process._close_pipe_fds(*(given[name] for name in pipes))

    multiprocessing.util.spawnv_passfds, subprocess.Popen._execute_child = begin, execute


def _may_be_forked(words: Sequence[str]) -> bool:
    """Say whether a command of Python is one that :func:`_become` understands, in a process that can be forked."""
    import torch

    first = next((word for word in words[1:] if not word.startswith("-W") and word != "-u"), "-")
    return not torch.cuda.is_initialized() and (first in ("-c", "-m") or not first.startswith("-"))


def _begin_another(
    words: Sequence[str],
    places: Mapping[int, int],
    descriptors: list[int],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    own_session: bool = False,
) -> int:
    """Fork in the place of a new interpreter; returns the number of the process.

    Args:
        words: the command.
        places: what stands in the place of the input, the output and the errors.
        descriptors: what else stays open.
        cwd: the folder, by default this process's.
        env: the environment, by default this process's.
        own_session: whether the process leads a session of its own.
    """
    import multiprocessing.forkserver
    import multiprocessing.resource_tracker
    import types

    request = {"arguments": list(words[1:]), "cwd": str(cwd or os.getcwd()), "env": dict(env or os.environ)}
    sys.stdout.flush()
    sys.stderr.flush()
    if number := os.fork():
        return number
    if own_session:
        os.setsid()
    for kept in {place: os.dup(stream) for place, stream in places.items() if place != stream}.items():
        os.dup2(kept[1], kept[0])
    gc.freeze()  # nothing of the process that begins this one ends in it
    sys.modules["__main__"] = types.ModuleType("__main__")
    signal.set_wakeup_fd(-1)
    for signal_number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(signal_number, signal.SIG_DFL)
    atexit._clear()
    multiprocessing.util._finalizer_registry.clear()
    multiprocessing.process._children.clear()
    multiprocessing.forkserver._forkserver.__init__()
    multiprocessing.resource_tracker._resource_tracker.__init__()
    edges = [2, *sorted(descriptors), os.sysconf("SC_OPEN_MAX")]
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)
    try:
        _end(*_outcome(request, []))
    finally:
        os._exit(1)  # whatever happens, this is not the process that called


def _become(request: dict, descriptors: list[int]) -> None:
    """Make this fork what a new interpreter would be, and run its program."""
    import io
    import random
    import runpy
    import types
    import warnings

    import numpy as np
    import torch

    words, options, unbuffered = list(request["arguments"]), [], False
    while words[0].startswith("-W") or words[0] == "-u":
        taken = 2 if words[0] == "-W" else 1
        if words[0] == "-u":
            unbuffered = True
        else:
            options += [words[0].removeprefix("-W") or words[1]]
        del words[:taken]
    for here, there in zip(descriptors, (1, 2)):
        os.dup2(here, there)
        os.close(here)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background does not have
    os.chdir(request["cwd"])
    errors = {"stdout": "strict", "stderr": "backslashreplace"}
    encoding = request["env"].get("PYTHONIOENCODING", "utf-8")
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(descriptor, "w", closefd=False)
        stream = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw),
            encoding=encoding,
            errors=errors[name],
            line_buffering=name == "stderr",
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(request["env"])
    random.seed()
    np.random.seed()
    torch.seed()
    warnings.resetwarnings()
    sys.warnoptions[:] = [*filter(None, request["env"].get("PYTHONWARNINGS", "").split(",")), *options]
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings._processoptions(sys.warnoptions)
    paths = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = paths
    if words[0] == "-c":
        sys.argv, module = ["-c", *words[2:]], types.ModuleType("__main__")
        sys.path.insert(0, "")
        sys.modules["__main__"] = module
        exec(compile(words[1], "<string>", "exec"), module.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, request["cwd"])
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
