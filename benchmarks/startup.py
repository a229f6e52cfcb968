"""Seconds until something happens, each in fresh processes: imports, the first update, the example's first evaluation.

    python benchmarks/startup.py --json startup.json

Imports are timed inside the process, one after the other; the last uses every name of the package once. The first
update is that of the recipe at the small size on 1,000 random transitions, eager, from the start of the interpreter.
The example is ``examples/offline_mix_awr.py`` with its own settings: it records its data, trains behaviour cloning and
evaluates it after 1,000 updates; the seconds are until that evaluation stands in its file, and then it is ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from arguments import as_few, run_script
from measuring import HERE, benchmark_parser, fresh_process, markdown, report, spread, with_spread

IMPORTS = """
import json, time
start = time.perf_counter()
import torch
torch_there = time.perf_counter()
import torchrl
torchrl_there = time.perf_counter()
import torchrl_marl_offline as package
package_there = time.perf_counter()
import torchrl.checkpoint, torchrl.data, torchrl.envs, torchrl.modules, torchrl.objectives
parts_there = time.perf_counter()
for name in package.__all__:
    getattr(package, name)
names_there = time.perf_counter()
print(json.dumps({
    "import torch": torch_there - start,
    "then import torchrl": torchrl_there - torch_there,
    "then import torchrl_marl_offline": package_there - torchrl_there,
    "then the parts of torchrl that it uses": parts_there - package_there,
    "then all names of torchrl_marl_offline": names_there - parts_there,
}))
"""

FIRST_UPDATE = """
import json
import torch
torch.set_num_threads(1)
from sizes import SMALL, random_transitions
from torchrl_marl_offline import Trainer, make_loss
dataset = random_transitions(SMALL.spec, 1000)
loss = make_loss(SMALL.spec, hidden=SMALL.hidden)
buffer = dataset.replay_buffer(batch_size=SMALL.batch_size, seed=0, keys=loss.in_keys)
Trainer(loss, buffer, steps=1, progress=False).train()
print(json.dumps({}))
"""

EXAMPLE = HERE.parent / "examples" / "offline_mix_awr.py"


def seconds_of(action: Callable[[], object]) -> float:
    """Return how long it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def example_until_evaluation(*options: str) -> float:
    """Return the seconds from the start of the example to its first evaluation, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        evaluations = Path(folder) / "run" / "cloning" / "eval.csv"
        command = [sys.executable, str(EXAMPLE), "--output", str(Path(folder) / "run"), *options]
        started = time.perf_counter()
        with (Path(folder) / "printed").open("w+") as printed:
            process = subprocess.Popen(
                command, stdout=printed, stderr=subprocess.STDOUT, env=os.environ | {"WANDB_MODE": "offline"}
            )
            try:
                while not evaluations.exists():
                    if process.poll() is not None:
                        printed.seek(0)
                        raise RuntimeError(f"The example ended without an evaluation: {printed.read()[-2000:]}")
                    time.sleep(0.02)
                return time.perf_counter() - started
            finally:
                process.kill()
                process.wait()


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=as_few, default=7, help="fresh processes of each, of the example three")
    args = parser.parse_args()
    options: list[str] = []
    if args.quick:
        args.repeats, options = 1, ["--episodes", "100", "--steps", "20", "--eval-every", "10", "--eval-episodes", "20"]
    fresh_process(IMPORTS)  # reads the files from the disk
    runs = [fresh_process(IMPORTS) for _ in range(args.repeats)]
    found = {name: [run[name] for run in runs] for name in runs[0]}
    updates = [seconds_of(lambda: fresh_process(FIRST_UPDATE)) for _ in range(args.repeats)]
    examples = [example_until_evaluation(*options) for _ in range(min(args.repeats, 3))]
    found |= {"from nothing to the first update": updates, "example, to its first evaluation": examples}
    results = {name: spread(seconds) for name, seconds in found.items()}
    print(markdown(["", "s"], [[name, with_spread(each, ".3f")] for name, each in results.items()]))
    report(args.json, results, quick=args.quick)


if __name__ == "__main__":
    run_script(main)
