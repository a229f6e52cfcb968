"""Forked processes are what new ones are: the tests that use them may rely on that."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from processes import run, start

TELLS = """
import os, sys, warnings
print(sys.argv[1:], os.getcwd(), os.environ.get("MARK"), __name__, file=sys.stdout)
warnings.warn("here", UserWarning)
sys.stderr.write("bad\\n")
sys.exit(3)
"""


def test_what_a_process_sees_is_what_a_new_one_sees(tmp_path):
    (tmp_path / "script.py").write_text(TELLS)
    for arguments in (["-c", TELLS, "a", "b"], [str(tmp_path / "script.py"), "a", "b"]):
        new = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env={"MARK": "7"}, capture_output=True, text=True, check=False
        )
        forked = run(*arguments, cwd=tmp_path, env={"MARK": "7"})
        assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
        assert forked.stderr.splitlines()[-1] == new.stderr.splitlines()[-1] == "bad"
        assert "UserWarning: here" in forked.stderr


def test_errors_signals_and_modules(tmp_path):
    failed = run("-W", "error::UserWarning", "-c", "import warnings; warnings.warn('no')")
    assert failed.returncode == 1 and "UserWarning: no" in failed.stderr
    assert run("-m", "torchrl_marl_offline", "data", "verify", str(tmp_path / "none")).returncode == 1
    unbuffered = start("-u", "-c", "import time; print('started'); time.sleep(60)")
    assert unbuffered.stdout.readline() == "started\n"
    unbuffered.kill()
    waiting = "import time; print('started', flush=True); time.sleep(60)"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = start("-c", waiting)
        assert process.stdout.readline() == "started\n" and process.poll() is None
        process.send_signal(number)
        assert process.wait(20) == -number
        process.communicate()
    process = start("-c", waiting)
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.3)
    assert time.monotonic() - began < 10
    process.kill()
    process.communicate()


def test_each_fork_draws_numbers_of_its_own():
    code = "import random, torch, numpy; print(random.random(), torch.rand(1).item(), numpy.random.rand())"
    first, second = (run("-c", code).stdout.split() for _ in range(2))
    assert len(first) == 3 and not set(first) & set(second)


BEGINS = """
import os, subprocess, sys
command = [sys.executable, "-u", "-W", "error", *sys.argv[1:]]
done = subprocess.run(command, capture_output=True, text=True, env={"MARK": "7"}, start_new_session=True)
print(done)
print(subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT).returncode)
sys.exit(subprocess.run(command).returncode)
"""


def test_a_fork_begins_programs_as_a_new_interpreter_does(tmp_path):
    code = "import os, sys; print(os.environ.get('MARK'), os.getsid(0) == os.getpid(), sys.argv); sys.exit('left')"
    found = [each("-c", BEGINS, "-c", code, "a") for each in (run, new)]
    assert [(each.returncode, each.stdout, each.stderr) for each in found[:1]] == [
        (each.returncode, each.stdout, each.stderr) for each in found[1:]
    ]
    assert found[0].returncode == 1 and "7 True ['-c', 'a']" in found[0].stdout and found[0].stderr == "left\n"


def new(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


WORKS = """
import multiprocessing, sys
def work(pipe):
    pipe.send([__name__, "torchrl" in sys.modules, multiprocessing.parent_process() is not None])
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    context.set_forkserver_preload(["torchrl"])
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there,))
    process.start()
    print(here.recv())
    process.join()
    print(process.exitcode)
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_fork_begins_processes_as_a_new_interpreter_does(tmp_path, method):
    (tmp_path / "script.py").write_text(WORKS)
    found = run("-W", "error", tmp_path / "script.py", method)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines() == ["['__mp_main__', True, True]", "0"]
