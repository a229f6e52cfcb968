"""Forms of advantage-weighted regression's weights, against their strength.

    python benchmarks/advantage_weights.py --table             # selectivity, by distribution of the advantages: seconds
    python benchmarks/advantage_weights.py                     # the main job: an hour, resumable
    python benchmarks/advantage_weights.py --decomposition vdn
    python benchmarks/advantage_weights.py --dataset runs/spread/medium-replay --output runs/medium_replay

The main job of ``examples/offline_mix_awr.py``. Implicit Q-learning's critics do not depend on the policy, so that one
critic of each seed serves an actor of every form and strength, all from the same initial parameters and on the same
batches: 15 actors for about three times the cost of one run.

Cost: 5 seeds x 6,000 updates x 15 actors, 0.1 s of one core an update: 50 minutes on an idle core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from arguments import as_folder, run_script
from common import table
from measuring import machine, markdown
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.func import functional_call, grad
from tqdm import trange

from torchrl_marl_offline import AWR, OfflineDataset, evaluate, load_dataset, make_actor, make_env, make_loss
from torchrl_marl_offline.objectives.functional import effective_sample_size, standardize
from torchrl_marl_offline.recording import record_mixed_skill
from torchrl_marl_offline.training import ForeachSoftUpdate

SETTINGS = {"gamma": 0.95, "expectile": 0.7, "hidden": (64, 64)}
LEARNING_RATE, BATCH, EPISODES = 2e-3, 256, 1000
Weigh = Callable[[Tensor, float], Tensor]


def of_size(x: Tensor, share: float) -> Tensor:
    """Return exponential weights with this effective sample size, a share of the batch, by bisection."""
    low, high = x.new_tensor(1e-3), x.new_tensor(1e3)
    for _ in range(40):
        middle = (low * high).sqrt()
        is_steep = effective_sample_size((middle * (x - x.max())).exp()) < share
        low, high = torch.where(is_steep, low, middle), torch.where(is_steep, middle, high)
    weight = (low * (x - x.max())).exp()
    return weight / weight.mean()


FORMS: dict[str, tuple[Weigh, tuple[float, ...]]] = {
    "clipped": (AWR(weights="clipped").weight, (0.5, 1, 2, 3, 10)),
    "of one size": (of_size, (0.5, 0.3, 0.2, 0.1, 0.05)),
    "bounded": (AWR(weights="bounded").weight, (0.5, 1, 1.5, 3, 10)),
}
"""The weights of advantages ``[B, n]`` and a strength: a temperature, or of the second form the share that counts."""


def train(
    data: OfflineDataset, decomposition: str, seed: int, steps: int
) -> Iterator[tuple[str, float, float, object]]:
    """Train one critic and an actor of every form and strength; yield form, strength, sample size and actor."""
    torch.manual_seed(seed)
    advantage = "local" if decomposition == "independent" else "joint"
    loss = make_loss(data.spec, decomposition=decomposition, advantage=advantage, **SETTINGS)
    torch.manual_seed(seed)
    actor = make_actor(data.spec, hidden=SETTINGS["hidden"], scale="learned")
    head = actor.module[0].module
    points = [(form, strength) for form, (_, strengths) in FORMS.items() for strength in strengths]
    stacked = {name: torch.stack([p.detach()] * len(points)) for name, p in head.named_parameters()}
    gradients = torch.compile(grad(lambda *inputs: _total(head, *inputs)))
    critic = [p for name, p in loss.named_parameters() if not name.startswith("actor")]
    optimizers = [torch.optim.Adam(list(group), lr=LEARNING_RATE, fused=True) for group in (critic, stacked.values())]
    updater = ForeachSoftUpdate(loss, tau=0.005)
    buffer = data.replay_buffer(batch_size=BATCH, seed=seed, keys=loss.in_keys)
    sizes = torch.zeros(len(points))
    for _ in trange(steps, desc=f"{decomposition}, seed {seed}"):
        batch = buffer.sample()
        with torch.no_grad():
            x = standardize(loss.batch(batch).advantage(advantage))  # [B, 1] of a team, [B, n] of agents
            weight = torch.stack([FORMS[form][0](x, strength) for form, strength in points])
            sizes += torch.stack([effective_sample_size(each) for each in weight]) / steps
        terms = loss(batch)
        (terms["loss_qvalue"] + terms["loss_value"]).backward()
        inputs = batch["agents", "observation"], batch["agents", "action"], weight
        for name, gradient in gradients(stacked, *inputs).items():
            stacked[name].grad = gradient
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        updater.step()
    for index, (form, strength) in enumerate(points):
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                parameter.copy_(stacked[name][index])
        yield form, strength, float(sizes[index]), actor


def _total(head: torch.nn.Module, stacked: dict, observation: Tensor, action: Tensor, weight: Tensor) -> Tensor:
    """Return the sum over the actors of their weighted negative log-likelihoods."""
    loc, scale = torch.vmap(lambda params: functional_call(head, params, (observation,)))(stacked)  # [P, B, n, a]
    log_prob = torch.distributions.Normal(loc, scale, validate_args=False).log_prob(action).sum(-1)
    return -(weight * log_prob).mean((1, 2)).sum()


def study(args: argparse.Namespace) -> list[dict]:
    """Run what is not in the results yet; returns all rows of this decomposition."""
    results = args.output / "results.jsonl"
    args.output.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    env = make_env("mpe/simple_spread", num_envs=EPISODES)
    for seed in range(args.seeds):
        if any((row["decomposition"], row["seed"]) == (args.decomposition, seed) for row in rows):
            continue
        if args.dataset is None:
            data = record_mixed_skill("mpe/simple_spread", args.output / "data", seed=seed)
        else:
            data = load_dataset(args.dataset)
        found = []
        for form, strength, size, actor in train(data, args.decomposition, seed, args.steps):
            row = {"decomposition": args.decomposition, "seed": seed, "form": form, "strength": strength}
            found.append(row | {"sample size": size} | _returns(actor, env, seed))
        with results.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        rows += found
    return [row for row in rows if row["decomposition"] == args.decomposition]


def _returns(actor: TensorDictModuleBase, env, seed: int) -> dict[str, float]:
    modes = {"mode": "mode", "sampled": "sample"}
    return {name: evaluate(actor, env, episodes=EPISODES, seed=1000 + seed, mode=m).mean for name, m in modes.items()}


def selectivity() -> str:
    """Return the table of selectivity, the weighted mean of the standardized advantage, and of sample sizes."""
    at = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    normal = torch.special.ndtri(at)
    drawn = {"normal": normal, "skewed (exponential)": -torch.log1p(-at), "heavy-tailed": normal * (1 + normal**2)}
    temperatures = (0.1, 0.5, 1, 1.5, 2, 3, 5, 10, 30, 100)
    lines = []
    for name, values in drawn.items():
        x = standardize(values.unsqueeze(-1))
        for form in ("clipped", "bounded"):
            weights = [FORMS[form][0](x, temperature) for temperature in temperatures]
            cells = [f"{(w * x).mean() / w.mean():.2f} ({effective_sample_size(w):.3f})" for w in weights]
            lines.append([name, form, *cells])
    return markdown(["advantages", "form", *map(str, temperatures)], lines)


def main() -> None:
    """Print the table, or run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only the table of selectivity")
    parser.add_argument("--output", type=as_folder, default=Path("runs/advantage_weights"))
    parser.add_argument("--decomposition", default="mixer", choices=["mixer", "vdn", "independent"])
    parser.add_argument("--dataset", help="of mpe/simple_spread; by default that of the main job, one for each seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6000)
    args = parser.parse_args()
    if args.table:
        print(selectivity())
        return
    torch.set_num_threads(1)
    rows = study(args)
    print(machine(), vars(args))
    print(table(rows, by=["form", "strength"], columns=["sample size", "mode", "sampled"]))


if __name__ == "__main__":
    run_script(main)
