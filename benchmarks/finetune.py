"""Where the time of online fine-tuning goes, by the number of environments.

    python benchmarks/finetune.py

The loop of ``examples/vmas_finetune.py`` on ``vmas/balance``: rounds of 10 steps of every environment, 40 updates a
round on batches of 256 (mixer, IQL, AWR, SVN, 2 x 64), the journal written once a round. Median over the rounds.
"""

from __future__ import annotations

import tempfile
import time
from statistics import median

import torch
from arguments import as_device, as_few, as_size, as_threads, run_script, script_parser
from common import machine, make_loss

from torchrl_marl_offline import AWR, IQL, OnlineReplay, make_env
from torchrl_marl_offline.training import CollectorSource, ForeachSoftUpdate, default_optimizer

STEPS, UPDATES = 10, 40


def measure(num_envs: int, *, rounds: int, device: str) -> dict[str, float]:
    """Return the seconds of a round's parts."""
    torch.manual_seed(0)
    env = make_env("vmas/balance", num_envs=num_envs, device=device, seed=0)
    rules = {"value_learning": IQL(0.7), "extraction": AWR(advantage="joint")}
    loss = make_loss(env.task_spec, "mixer", gamma=0.97, hidden=(64, 64), **rules).to(device)
    optimizer, updater = default_optimizer(loss, lr=1e-3), ForeachSoftUpdate(loss, tau=0.005)
    source = CollectorSource(env, loss.actor_network, steps_per_round=STEPS, exploration="sample")
    parts: dict[str, list[float]] = {"playing": [], "storing": [], "journal": [], "sampling": [], "updates": []}

    def clock(name: str, began: float) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        now = time.perf_counter()
        parts[name].append(now - began)
        return time.perf_counter()

    with tempfile.TemporaryDirectory() as journal:
        replay = OnlineReplay(
            lambda number: episodes,
            capacity=max(200_000, num_envs * STEPS),
            batch_size=256,
            update_to_data=UPDATES / (num_envs * STEPS),
            journal=journal,
            keys=loss.in_keys,
            keep_all=False,
            device=device,
        )
        for number in range(rounds + 1):
            began = time.perf_counter()
            episodes = source(number)
            began = clock("playing", began)
            batches = [replay.sample()]  # stores the round first
            began = clock("storing", began)
            batches += [replay.sample() for _ in range(UPDATES - 1)]
            began = clock("sampling", began)
            for batch in batches:
                output = loss(batch)
                optimizer.zero_grad(set_to_none=True)
                sum(output[name] for name in output.keys() if name.startswith("loss")).backward()  # noqa: SIM118
                optimizer.step()
                updater.step()
            began = clock("updates", began)
            replay.state_dict()
            clock("journal", began)
    return {name: median(seconds[1:]) for name, seconds in parts.items()}  # the first round warms up


def main() -> None:
    """Run the benchmark."""
    parser = script_parser(__doc__)
    parser.add_argument("--num-envs", nargs="+", type=as_size, default=[64, 512, 4096])
    parser.add_argument("--rounds", type=as_few, default=10)
    parser.add_argument("--device", type=as_device, default="cpu")
    parser.add_argument("--threads", type=as_threads, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(), f"threads {args.threads}, device {args.device}")
    names = ["playing", "storing", "sampling", "updates", "journal"]
    print("| environments | steps a second | updates a second | " + " | ".join(f"{name}, ms" for name in names) + " |")
    print("|" + " --- |" * (3 + len(names)))
    for num_envs in args.num_envs:
        parts = measure(num_envs, rounds=args.rounds, device=args.device)
        total = sum(parts.values())
        cells = [f"{num_envs:,}", f"{num_envs * STEPS / total:,.0f}", f"{UPDATES / total:,.1f}"]
        print("| " + " | ".join([*cells, *(f"{1000 * parts[name]:,.0f}" for name in names)]) + " |")


if __name__ == "__main__":
    run_script(main)
