"""Milliseconds of one joint decision: the TorchRL actor beside exported programs, on one thread.

    python benchmarks/inference.py --json inference.json

A continuous Gaussian policy with its observations normalized inside, deterministic, at batches of one state and
of 1,024. All alternate in one process. From the observation as a tensor (for ONNX Runtime an array) to the action:

- TorchRL actor: the policy on a tensordict, eager;
- network: the policy's network and clipping alone, eager, in tensors; the floor of eager execution;
- torch.compile: the actor from tensor to tensor, compiled;
- torch.export: the ``.pt2`` of ``export_policy``, loaded by torch;
- AOTInductor: that program compiled ahead of time;
- ONNX Runtime: the ``.onnx`` of ``export_policy``.

"Difference" is the largest between an action and the actor's, over 4,096 random states.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from arguments import as_amount, as_few, as_size, run_script
from measuring import CLOCKS, alternate, benchmark_parser, markdown, report, spread, times, with_spread
from sizes import SIZES, Size
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_marl_offline import make_actor
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION
from torchrl_marl_offline.evaluation.policy_export import ExecutedAction, export_policy

Act = Callable[[Tensor], Callable[[], Tensor]]
"""Takes an observation, and returns a function that decides on it."""


def ways(size: Size, folder: Path) -> dict[str, Act]:
    """Return every way to decide."""
    import onnxruntime

    spec = size.spec
    norm = ([0.5] * spec.observation_size, [2.0] * spec.observation_size)
    torch.manual_seed(0)
    actor = make_actor(spec, hidden=size.hidden, final_scale=1.0, observation_norm=norm)
    actor.requires_grad_(False)
    network = actor.module[0].module
    compiled = torch.compile(ExecutedAction(actor), fullgraph=True, dynamic=True)
    program = torch.export.load(export_policy(actor, folder / "policy.pt2"))
    exported = program.module()
    ahead = torch._inductor.aoti_load_package(
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "ahead.pt2"))
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    onnx = export_policy(actor, folder / "policy.onnx", format="onnx")
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])

    def by_onnx(observation: Tensor) -> Callable[[], Tensor]:
        inputs = {"observation": observation.numpy()}
        return lambda: torch.from_numpy(session.run(["action"], inputs)[0])

    return {
        "TorchRL actor": lambda x: lambda: actor(TensorDict({OBSERVATION: x}, x.shape[:1])).get(ACTION),
        "network": lambda x: lambda: network(x)[0].clamp(spec.action_low, spec.action_high),
        "torch.compile": lambda x: lambda: compiled(x),
        "torch.export": lambda x: lambda: exported(x),
        "AOTInductor": lambda x: lambda: ahead(x),
        "ONNX Runtime": by_onnx,
    }


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__, clock=True)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--batch-size", type=as_size, nargs="+", default=[1, 1024])
    parser.add_argument("--repeats", type=as_few, default=15, help="turns of each")
    parser.add_argument("--seconds", type=as_amount, default=0.1, help="of a turn")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.repeats, args.seconds = ["small"], 2, 0.005
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results, rows = [], []
    for name in args.sizes:
        size = SIZES[name]
        shape = (size.spec.n_agents, size.spec.observation_size)
        with (
            tempfile.TemporaryDirectory() as folder,
            torch.no_grad(),
            set_exploration_type(ExplorationType.DETERMINISTIC),
        ):
            acts = ways(size, Path(folder))
            states = torch.randn(4096, *shape)
            expected = acts["TorchRL actor"](states)()
            differences = {way: (act(states)() - expected).abs().max().item() for way, act in acts.items()}
            for batch_size in args.batch_size:
                observation = torch.randn(batch_size, *shape)
                plays = {way: times(act(observation)) for way, act in acts.items()}
                found = alternate(plays, repeats=args.repeats, seconds=args.seconds, clock=CLOCKS[args.clock])
                milliseconds = {way: spread([1e3 * each for each in times]) for way, times in found.items()}
                baseline = milliseconds["TorchRL actor"]["median"]
                for way, each in milliseconds.items():
                    facts = {"size": name, "batch_size": batch_size, "way": way}
                    results.append(facts | {"milliseconds": each, "difference": differences[way]})
                    ratio = f"{baseline / each['median']:.1f}"
                    rows.append([*facts.values(), with_spread(each, ".3f"), ratio, f"{differences[way]:.1e}"])
    print(markdown(["size", "batch", "", "ms", "times as fast", "difference"], rows))
    report(args.json, results, libraries=("onnxruntime",), threads=1, clock=args.clock)


if __name__ == "__main__":
    run_script(main)
