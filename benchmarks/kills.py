"""Kill jobs at random moments, run them again until they end, and compare with the job that nobody disturbed.

    python benchmarks/kills.py

Eight kinds of work, small: converting a dataset, recording one of graded quality, training a run, a population, a
study, and both stages of fine-tuning (on recorded data; online in ``vmas/balance``, without memory and with it). Each
is a process that gets SIGKILL at a moment drawn uniformly over what it takes undisturbed, and is started again by the
same command until it has ended by itself. Then every file must be there that the undisturbed job wrote, and none
besides (no hidden folder, no temporary file), with the same content, bit for bit: bytes of datasets and tables, tensors
of checkpoints and policies. Only measured seconds, process numbers and the names of the folders may differ.

Processes are forked from one that has imported everything, since importing takes seconds; torch has one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import as_folder
from measuring import machine, markdown

import torchrl_marl_offline as marl
from torchrl_marl_offline.algorithms import make_algorithm
from torchrl_marl_offline.commands.data import main as data_command
from torchrl_marl_offline.study import run_study
from torchrl_marl_offline.study.jobs import run_job
from torchrl_marl_offline.training import (
    CheckpointManager,
    CollectorSource,
    PopulationBuffer,
    read_csv,
)
from torchrl_marl_offline.training.run.run_lock import COMMAND_FILE, LOCK_FILE

Job = Callable[[Path], None]
MEASURED = {"seconds", "process", "host", "updates_per_second"}
SHARE = 1
"""One in so many of the updates is done."""

STUDY = """
[study]
name = "kills"
output = "out"
seeds = 2
steps = 12
batch_size = 16
hidden = [8]
members = 2
log_every = 4
checkpoint_every = 3
device = "cpu"
compile = "off"

[evaluation]
every = 6
episodes = 2

[methods.mix]
decomposition = "vdn"

[methods.cloning]
algorithm = "cloning"

[datasets.spread]
task = "mpe/simple_spread"
episodes = 4
"""


def convert(folder: Path) -> None:
    """Convert a folder of NumPy arrays by the command line."""
    target = folder / "converted"
    if not target.exists():
        data_command(["convert", f"omar_npy:{folder.parent / 'arrays'}", str(target)])


def record(folder: Path) -> None:
    """Train a behaviour policy and record three qualities."""
    marl.record(
        "mpe/simple_spread",
        folder / "recording",
        qualities=("random", "medium-replay", "expert"),
        transitions=100,
        levels={},
        progress=False,
        updates=24 // SHARE,
        num_envs=64,
        transitions_per_update=200,
        batch_size=16,
        eval_every=3,
        eval_episodes=4,
        compile=False,
        learner={"hidden": (8,)},
    )


def train(folder: Path) -> None:
    """Train one run, with evaluations and the best checkpoint kept."""
    loss, data = _recipe(folder), marl.load_dataset(str(folder.parent / "data"))
    buffer = data.replay_buffer(batch_size=16, seed=1)
    _go_on(marl.Trainer(marl.Learner(loss), buffer, steps=60 // SHARE, **_settings(folder / "run", loss)))


def train_population(folder: Path) -> None:
    """Train three members as one population."""
    data = marl.load_dataset(str(folder.parent / "data"))
    losses = {f"seed={seed}": _recipe(folder, seed) for seed in range(3)}
    buffer = PopulationBuffer(data.data, batch_size=16, seeds=range(3), keys=losses["seed=0"].in_keys)
    options = {"log_every": 7, "checkpoint_every": 5, "progress": False}
    _go_on(marl.Trainer(marl.PopulationLearner(losses), buffer, steps=30 // SHARE, output=folder / "run", **options))


def study(folder: Path) -> None:
    """Run a study of four runs in two populations, in this process."""
    (folder / "study.toml").write_text(STUDY)
    outcome = run_study(folder / "study.toml", backend=_Here(), progress=False, say=lambda _: None)
    if outcome.failed or outcome.remaining:
        raise RuntimeError(f"the study did not end: {outcome}")


def finetune_offline(folder: Path) -> None:
    """Go on with an earlier run's networks on recorded data."""
    loss, data = _recipe(folder, extraction="brac"), marl.load_dataset(str(folder.parent / "data"))
    CheckpointManager(folder.parent / "pretrained").load(loss=loss)
    buffer = data.replay_buffer(batch_size=16, seed=2)
    _go_on(marl.Trainer(marl.Learner(loss), buffer, steps=60 // SHARE, **_settings(folder / "run", loss)))


def finetune_online(folder: Path, **memory: Any) -> None:
    """Learn from rounds of seven steps, which end in the middle of episodes."""
    env = marl.make_env("vmas/balance", num_envs=4, max_steps=30)
    torch.manual_seed(0)
    algorithm = make_algorithm(hidden=(8,), decomposition="vdn", **memory)
    loss = algorithm.build(env.task_spec)
    source = CollectorSource(env, loss.actor_network, steps_per_round=7, exploration="sample", seed=3)
    replay = marl.OnlineReplay(
        source,
        capacity=200,
        batch_size=16,
        update_to_data=1 / 14,
        journal=folder / "run" / "experience",
        keys=loss.in_keys,
        keep_all=False,
        seed=4,
        **algorithm.sampling(16),
    )
    _go_on(
        marl.Trainer(
            marl.Learner(loss, **({"compile": "off"} if memory else {})),
            replay,
            steps=40 // SHARE,
            **(_settings(folder / "run", loss) | {"evaluators": {}, "keep_best": None, "eval_every": None}),
        )
    )


def finetune_online_with_memory(folder: Path) -> None:
    """The same with recurrent networks, which learn from sequences across the ends of rounds."""
    finetune_online(folder, memory="gru", memory_size=4, slice_len=8, burn_in=2)


JOBS: dict[str, Job] = {
    "conversion": convert,
    "recording": record,
    "training": train,
    "population": train_population,
    "study": study,
    "fine-tuning, offline": finetune_offline,
    "fine-tuning, online": finetune_online,
    "fine-tuning, online, memory": finetune_online_with_memory,
}


class _Here:
    """A study's backend without processes of its own, so that a kill reaches the runner and the job at once."""

    def run(self, jobs, train, *, tick):
        for job in jobs:
            if tick():
                yield run_job(job, train)


def _recipe(folder: Path, seed: int = 0, **options: Any) -> marl.OfflineMARLLoss:
    torch.manual_seed(seed)
    spec = marl.load_dataset(str(folder.parent / "data")).spec
    return marl.make_loss(spec, hidden=(8,), decomposition="vdn", **options)


def _settings(output: Path, loss: marl.OfflineMARLLoss) -> dict[str, Any]:
    env = marl.make_env("mpe/simple_spread", num_envs=2, max_steps=5)
    play = partial(marl.evaluate, loss.actor_network, env, episodes=2, seed=9, mode="sample")
    return {
        "output": output,
        "evaluators": {"sampled": play},
        "eval_every": 10,
        "keep_best": ("sampled", "return"),
        "log_every": 7,
        "checkpoint_every": 5,
        "progress": False,
    }


def _go_on(trainer: marl.Trainer) -> None:
    """Start, or go on from the newest checkpoint: what scripts do."""
    torch.manual_seed(0)
    if trainer.checkpoints.latest() is not None:
        torch.manual_seed(time.time_ns() % 2**31)  # whatever a process begins with must not matter
        random.seed()
        trainer.resume()
    trainer.train()


def prepare(folder: Path) -> None:
    """Make what the jobs begin with: arrays to convert, a dataset to train on, networks to go on with."""
    rows, rng = 25 * 400, np.random.default_rng(0)
    (folder / "arrays" / "seed_0_data").mkdir(parents=True)
    for agent in range(3):
        arrays = {"obs": (rows, 18), "next_obs": (rows, 18), "acs": (rows, 2), "rews": (rows,)}
        values = {name: rng.uniform(-1, 1, shape) for name, shape in arrays.items()} | {"dones": np.zeros(rows)}
        for name, array in values.items():
            np.save(folder / "arrays" / "seed_0_data" / f"{name}_{agent}.npy", array)
    marl.collect(marl.make_env("mpe/simple_spread", num_envs=4), episodes=8, seed=0).save(folder / "data")
    CheckpointManager(folder / "pretrained").save(0, loss=_recipe(folder / "x", seed=5, extraction="brac"))


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file below a folder, hidden ones included, without what is measured; folders too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[f"{name}/"] = ""
        elif path.name in (LOCK_FILE, COMMAND_FILE):
            found[name] = "a lock"  # which holds the number of the last process
        elif path.name != "progress.json":  # a heartbeat
            found[name] = hashlib.sha256(_content(path).replace(os.fsencode(folder), b"")).hexdigest()[:16]
    return found


def _content(path: Path) -> bytes:
    try:
        return _meaning(path)
    except Exception:  # half a file, which a killed process left
        return path.read_bytes()


def _meaning(path: Path) -> bytes:
    if path.suffix == ".csv" and path.name != "results.csv":
        return repr([_unmeasured(row) for row in read_csv(path)]).encode()
    if path.suffix == ".json" and path.stat().st_size < 100_000:
        return repr(_unmeasured(json.loads(path.read_text()))).encode()
    if path.suffix == ".torchrl":
        with zipfile.ZipFile(path) as archive:
            parts = [(each, archive.read(each)) for each in sorted(archive.namelist()) if each.endswith(".pt")]
        return b"".join(each.encode() + _tensors(content) for each, content in parts)
    return _tensors(path.read_bytes()) if path.suffix == ".pt" else path.read_bytes()


def _tensors(archive: bytes) -> bytes:
    return _flat(_unmeasured(torch.load(io.BytesIO(archive), weights_only=True)))


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unmeasured(each) for name, each in value.items() if name not in MEASURED}
    return [_unmeasured(each) for each in value] if isinstance(value, list) else value


def _flat(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return str((value.dtype, tuple(value.shape))).encode() + value.detach().contiguous().cpu().numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(str(name).encode() + _flat(each) for name, each in value.items())
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(_flat, value)) + b"]"
    return repr(value).encode()


def begin(job: Job, folder: Path, log: Path) -> int:
    """Fork a process that does a job in a folder; returns its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        warnings.simplefilter("ignore")
        random.seed(0)  # a forked process gets another state each time, which checkpoints hold
        folder.mkdir(parents=True, exist_ok=True)
        job(folder)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended_by_itself(process: int, log: Path, moment: float | None = None) -> bool:
    """Wait for a process, or kill it at ``moment`` seconds; says whether it had ended before.

    Raises:
        RuntimeError: the job failed.
    """
    until = time.perf_counter() + (moment if moment is not None else 1e9)
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            break
        if time.perf_counter() >= until:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            break
        time.sleep(0.001)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise RuntimeError(log.read_text()[-2000:])
    return True


def disturb(name: str, root: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Measure a job, kill it so many times, and count the runs that do not end as the undisturbed one."""
    job, log, chance = JOBS[name], root / "log", random.Random(f"{name} {seed}")
    began = time.perf_counter()
    ended_by_itself(begin(job, root / f"{name} undisturbed", log), log)
    seconds, expected = time.perf_counter() - began, contents(root / f"{name} undisturbed")
    done, runs, wrong = 0, 0, []
    while done < kills:
        folder, runs, here = root / f"{name} {runs}", runs + 1, 0
        try:
            while not ended_by_itself(
                begin(job, folder, log), log, chance.uniform(0, seconds) if done < kills else None
            ):
                done, here = done + 1, here + 1
            found = contents(folder)
        except RuntimeError as error:
            wrong.append(f"failed after {here} kills: {error}")
            continue
        differ = {each for each in expected | found if expected.get(each) != found.get(each)}
        if differ:
            wrong.append(f"after {here} kills: {', '.join(sorted(differ)[:6])}")
            continue
        shutil.rmtree(folder)
    return {"job": name, "seconds": seconds, "files": len(expected), "kills": done, "runs": runs, "wrong": wrong}


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each job")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=as_folder, help="where to work; by default a temporary folder")
    parser.add_argument("--share", type=int, default=1, help="do one in so many of the updates")
    args = parser.parse_args()
    global SHARE
    SHARE = args.share
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torchrl.collectors")  # before processes are forked, or each would
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        ended_by_itself(begin(prepare, root, root / "log"), root / "log")
        for name in args.jobs:
            found = disturb(name, root, kills=args.kills, seed=args.seed)
            rows.append(found)
            print(
                f"{name}: {found['kills']} kills, {found['runs']} runs, wrong: {found['wrong'] or 'none'}", flush=True
            )
    print(machine())
    columns = ["job", "seconds undisturbed", "files and folders", "kills", "runs", "runs that differ"]
    cells = [[r["job"], f"{r['seconds']:.1f}", r["files"], r["kills"], r["runs"], len(r["wrong"])] for r in rows]
    print(markdown(columns, cells))
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
