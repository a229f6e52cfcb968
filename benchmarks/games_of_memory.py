"""What memory earns in ``games/recall`` and ``games/telephone``, against the exact best returns with it and without.

    python benchmarks/games_of_memory.py --results benchmarks/results/games_of_memory.jsonl

4,000 episodes of mixed skill (``record_mixed_skill``: the best team with memory, a tenth of whose actions are random,
.3; the best one without memory, .4; a random one, .3), four cues of equal probability, two agents. Cloning, and the
recipe with two decompositions; networks of one hidden layer of 32 and GRU of 32, learning rate 5e-3, temperature 3,
expectile .9, batches of 32 whole episodes (``slice_len`` is their length, no burn-in) or of as many single rows; five
seeds as one population. Each member plays 200 episodes, by the mode and sampled.

Arithmetic, before the first run, of processor time on one thread: 1,000 updates of five members take 20 to 70 s with
memory (3 to 21 rows an episode), half of it without, a quarter for cloning, and twice as much with the mixer. 16 runs
of ``games/recall`` (delays 2, 5, 10, 20) come to 5 minutes, 8 of ``games/telephone``, of 3,000 updates, to 4, two
further choices of slices to 1.5, the mixer to 4: 15 in all. The most telling runs are the first. Results are kept one
by one, and runs that are there are not run again; ``--share`` stops after a part of them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from arguments import as_few, as_file, as_share, run_script, script_parser
from common import machine, run_jobs
from measuring import markdown, with_interval

from torchrl_marl_offline import make_loss, make_simulator, record_mixed_skill
from torchrl_marl_offline.evaluation import evaluate_population, mean_confidence_interval
from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner, Trainer

SEEDS, EPISODES, BATCH, LR = 5, 4000, 32, 5e-3
METHODS: dict[str, dict[str, Any]] = {
    "cloning": {"algorithm": "cloning"},
    "recipe, centralized": {"decomposition": "centralized"},
    "recipe, mixer": {"decomposition": "mixer"},
}
MEMORIES: dict[str, dict[str, Any]] = {"none": {}, "gru": {"memory": "gru", "memory_size": 32}}
DELAYS = (2, 5, 10, 20)
STEPS = {"games/recall": 1000, "games/telephone": 3000}
TEMPERATURE = 3.0
SLICES = ([32, 8], [8, 2])
"""Of a delay of 10, beside whole episodes: the defaults, and fewer rows than must be remembered."""


def all_jobs() -> list[dict[str, Any]]:
    """Return every run, the most telling first."""
    short, *_, longer, longest = recall = [("games/recall", {"delay": delay}) for delay in DELAYS]
    digits, word = [("games/telephone", {"delay": 5, "words": words}) for words in (2, 4)]
    kinds = [(method, memory) for method in ("recipe, centralized", "cloning") for memory in ("gru", "none")]
    central = kinds[0]
    found = [job(*game, *kind) for game in (recall[1], digits) for kind in kinds]
    found += [job(*game, *central) for game in (short, longer, longest)]
    found += [job(*digits, *central, temperature=10.0), job(*longest, *central, steps=2000)]
    found += [job(*longer, *central, slices=slices) for slices in SLICES]
    found += [job(*longest, *kind) for kind in kinds[1:]] + [job(*word, *central, temperature=10.0)]
    found += [job(*game, *kind) for game in (short, longer) for kind in kinds[1:]]
    found += [job(*word, *kind) for kind in kinds[1:]]
    return found + [job(*game, "recipe, mixer", "gru") for game in (recall[1], digits)]


def job(task: str, options: dict[str, int], method: str, memory: str, **others: Any) -> dict[str, Any]:
    """Return the settings of a run, JSON-ready; by default slices are whole episodes."""
    usual = {"slices": [options["delay"] + 1, 0], "steps": STEPS[task]}
    return {"task": task, "options": options, "method": method, "memory": memory} | usual | others


def play_for(
    task: str,
    options: dict[str, int],
    method: str,
    memory: str,
    slices: list[int],
    steps: int,
    temperature: float | None = None,
    folder: str = "runs/games_of_memory",
    seeds: int = SEEDS,
) -> dict[str, Any]:
    """Train a population; returns its members' mean returns at fifths of the run, and what they are held against."""
    data = record_mixed_skill(task, folder, episodes=EPISODES, num_envs=EPISODES, task_options=options)
    losses, length = {}, options["delay"] + 1
    settings = METHODS[method] | MEMORIES[memory] | ({} if temperature is None else {"temperature": temperature})
    for seed in range(seeds):
        torch.manual_seed(seed)
        losses[str(seed)] = make_loss(data.spec, hidden=(32,), **settings)
    sampling: dict[str, Any] = {"batch_size": BATCH * length}
    if memory != "none":
        size, burn_in = slices
        sampling = {"batch_size": BATCH * length // size * size, "slice_len": size, "burn_in": burn_in}
    buffer = PopulationBuffer(data.data, seeds=range(seeds), keys=losses["0"].in_keys, **sampling)
    learner = PopulationLearner(losses, lr=LR)
    env = make_simulator(data, num_envs=seeds * 200)
    curve: dict[str, list[Any]] = {"step": [], "mode": [], "sample": []}

    def measure() -> None:
        curve["step"].append(trainer.step)
        for mode in ("mode", "sample"):
            found = evaluate_population(learner.population, env, episodes=200, seed=1, mode=mode)
            curve[mode].append([each.mean for each in found.values()])

    began = time.process_time()
    trainer = Trainer(
        learner, buffer, steps=steps, evaluators={"played": measure}, eval_every=max(1, steps // 5), progress=False
    )
    trainer.train()
    bounds = {"best": env.best_return, "best_memoryless": env.best_memoryless_return}
    facts = {"data": data.episode_returns().mean().item(), "cpu_seconds": time.process_time() - began}
    return {"curve": curve, "mode": curve["mode"][-1], "sample": curve["sample"][-1]} | bounds | facts


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with the means over seeds and their 95 % intervals."""
    cells = []
    for row in rows:
        words = f", words {row['options']['words']}" if "words" in row["options"] else ""
        slices = "" if row["memory"] == "none" else "{} / {}".format(*row["slices"])
        heat = "" if row["method"] == "cloning" else f"{row.get('temperature', TEMPERATURE):g}"
        game = f"{row['task'].partition('/')[2]}, delay {row['options']['delay']}{words}"
        bounds = [f"{row[name]:.2f}" for name in ("best", "best_memoryless", "data")]
        found = [_interval(row[mode]) for mode in ("mode", "sample")]
        cells.append([game, row["method"], row["memory"], heat, slices, f"{row['steps']:,}", *found, *bounds])
    settings = ["game", "method", "memory", "temperature", "slice_len / burn_in", "updates"]
    return markdown([*settings, "mode", "sampled", "best", "best without memory", "data"], cells)


def _interval(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    found = mean_confidence_interval(values)
    return with_interval(found, 2)


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = script_parser(__doc__)
    parser.add_argument("--results", type=as_file, default=Path("runs/games_of_memory/results.jsonl"))
    parser.add_argument("--workers", type=as_few, default=1)
    parser.add_argument("--share", type=as_share, default=1.0, help="of the runs, the first ones")
    args = parser.parse_args()
    jobs = all_jobs()
    rows = run_jobs(play_for, jobs[: round(args.share * len(jobs))], workers=args.workers, results=args.results)
    print(table(rows))
    print(machine())


if __name__ == "__main__":
    run_script(main)
