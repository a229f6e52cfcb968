"""Where does a mixer diverge, what cures it, and what tells so early? (the recipe's Figs 3 to 6)

    python benchmarks/instability.py --stage grid --output runs/instability
    python benchmarks/instability.py --stage released further wide --output runs/instability
    python benchmarks/instability.py --report --output runs/instability

Temporal differences and behaviour-regularized actor-critic, the coupled pair that the paper analyses, on recordings
that the command makes itself (``--output``/data, seeded, with a card each):

- ``mamujoco/2ant``: 32 episodes of noise of .15 around standing still;
- ``mamujoco/2halfcheetah``: 32 episodes of a gait, the best of 512 drawn ones, with noise of .15;
- ``mpe/simple_spread``: 1,000 episodes of the optimal controller with noise of .1.

Arithmetic, in updates of members (seeds), 2 x 64, batches of 64:

    grid      40 rows x 3 seeds x 4,000 updates                     480,000
    released   6 rows x 3 seeds x 4,000 updates                      72,000
    further   42 rows x 5 seeds x 10,000 updates                  2,100,000
    wide       3 rows x 1 seed x 4,000 updates at 4 x 256            12,000 (about 0.2 million of the small ones)

One core makes about 1.1 million in three hours. Every row is written as soon as it is there, and none is made twice; a
run that is stopped loses the row at hand.

The stage ``released`` has the defaults of the recipe's released code: both layer normalizations, a mixer that is never
trained, equation 4 whatever was asked for, alpha .03; and beside it what these change.

A run **diverges** where its mean |Q| passes ten times the largest possible value, the largest reward over 1 - gamma; no
policy can earn as much as a tenth of that.
"""

from __future__ import annotations

import collections
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import as_count, as_few, as_folder, run_script, script_parser
from common import draw_seeds, machine, read_rows, run_jobs
from measuring import markdown
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.modules import SymLogValueTransform
from torchrl.modules.value_norm import PopArtValueNorm, RunningValueNorm, ValueNorm

from torchrl_marl_offline import (
    BRAC,
    TD,
    HyperNetworkMixer,
    OfflineDataset,
    OfflineMARLLoss,
    ScaleInvariantValueNorm,
    TaskSpec,
    collect,
    evaluate,
    load_dataset,
    make_actor,
    make_critic,
    make_env,
)
from torchrl_marl_offline.core.figure_style import GREY, figure_style, legend_beside, new_figure, save_figure
from torchrl_marl_offline.core.files import write_text_atomic
from torchrl_marl_offline.data import describe
from torchrl_marl_offline.envs import SpreadController
from torchrl_marl_offline.evaluation import mean_confidence_interval
from torchrl_marl_offline.evaluation.diagnostics.verdicts import Impossible, judged
from torchrl_marl_offline.evaluation.held_out import discounted_returns
from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner, Trainer, read_csv
from torchrl_marl_offline.training.run.value_alarm import limit_of, reward_facts

GAMMA, LR, BATCH, LOG_EVERY = 0.99, 1e-3, 64, 50
DIVERGED = 10.0
"""Times the largest possible value."""
KINDS = ("diverging", "impossible", "sane")
"""Beyond ten times the possible, beyond the possible, never beyond it."""

ANT, CHEETAH, SPREAD = "mamujoco/2ant", "mamujoco/2halfcheetah", "mpe/simple_spread"
NORMS = {"both": (True, True), "critic": (True, False), "mixer": (False, True), "none": (False, False)}
"""Layer normalization of the critic, and of the mixer's hypernetwork."""
SCALES = {"none": (False, False), "SVN": (True, False), "eq. 4": (False, True), "both": (True, True)}
"""Scale-invariant value normalization, and the actor-side normalization of eq. 4."""
PREDICTORS = ("discounted_gain", "closed_loop_gain", "policy_slope", "policy_distance", "grad_norm", "qvalue_abs")
STAGES = ("grid", "released", "further", "wide")
CURVES = ("qvalue_abs", "qvalue_largest", "td_error_abs", *PREDICTORS[:5])

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------- recordings


def standing_still(spec: TaskSpec) -> Callable[[Tensor], Tensor]:
    """Noise of .15 around no action."""
    return lambda observation: (0.15 * torch.randn(*observation.shape[:-1], spec.action_size)).clamp(-1, 1)


class Gait:
    """Joints that swing by sines of one frequency, with amplitudes and phases of their own, and noise.

    Args:
        amplitude: ``[E, n, a]``, or ``[n, a]`` for all environments.
        phase: of the same shape.
        frequency: radians a step, ``[E, 1, 1]`` or a number.
        noise: standard deviation.
    """

    def __init__(self, amplitude: Tensor, phase: Tensor, frequency: Tensor | float, noise: float = 0.0) -> None:
        self.amplitude, self.phase, self.frequency, self.noise, self.step = amplitude, phase, frequency, noise, 0

    def __call__(self, observation: Tensor) -> Tensor:
        """Return the next action; all environments are at the same step, as no episode of the task ends early."""
        swing = self.amplitude * (self.frequency * self.step + self.phase).sin()
        self.step += 1
        swing = swing.expand(*observation.shape[:-1], -1)
        return (swing + self.noise * torch.randn_like(swing)).clamp(-1, 1)


def best_gait(candidates: int = 512, steps: int = 300) -> Gait:
    """Draw gaits of the cheetah and return the one that gets farthest."""
    env = make_env(CHEETAH, num_envs=candidates, seed=0)
    n, a = env.task_spec.n_agents, env.task_spec.action_size
    chance = torch.Generator().manual_seed(0)
    amplitude = torch.rand(candidates, n, a, generator=chance)
    phase = 2 * math.pi * torch.rand(candidates, n, a, generator=chance)
    frequency = 0.2 + 0.6 * torch.rand(candidates, 1, 1, generator=chance)
    gait = Gait(amplitude, phase, frequency)
    td, total = env.reset(), torch.zeros(candidates)
    for _ in range(steps):
        td = env.step(td.set(("agents", "action"), gait(td["agents", "observation"])))
        total += td["next", "agents", "reward"].mean(1).squeeze(-1)
        td = td["next"].exclude("reward")
    best = int(total.argmax())
    return Gait(amplitude[best], phase[best], float(frequency[best]), noise=0.15)


def as_policy(act: Callable[[Tensor], Tensor]) -> TensorDictModule:
    """Return a function of observations as a policy."""
    return TensorDictModule(act, in_keys=[("agents", "observation")], out_keys=[("agents", "action")])


def recorded(task: str, folder: Path) -> OfflineDataset:
    """Return the task's recording, made and saved where it is not there yet."""
    path = folder / task.replace("/", "_")
    if not path.exists():
        if task == SPREAD:
            env, policy, episodes = (
                make_env(task, num_envs=250, seed=0),
                SpreadController("optimal", noise=0.1, seed=0),
                1000,
            )
        else:
            env, episodes = make_env(task, num_envs=32, seed=0), 32
            policy = as_policy(standing_still(env.task_spec) if task == ANT else best_gait())
        words = {ANT: "noise of .15 around standing still", CHEETAH: "the best of 512 drawn gaits with noise of .15"}
        about = words.get(task, "the optimal controller with noise of .1")
        data = collect(env, policy, episodes=episodes, seed=0, metadata={"behaviour": about, "seed": 0})
        path.parent.mkdir(parents=True, exist_ok=True)
        data.save(path)
        card = describe(data)
        write_text_atomic(path.with_suffix(".txt"), f"{card}\n")
        card.save_picture(path.with_suffix(".png"))
    return load_dataset(path)


# ------------------------------------------------------------------------------------------------ rows


class SpectralMixer(HyperNetworkMixer):
    """A mixer whose hypernetwork's matrices are divided by their largest singular value, where that exceeds 1."""

    def generate(self, state: Tensor) -> tuple[Tensor, ...]:
        """Return the generated weights; see :class:`StateConditionedMixer`."""
        layers = [self.first, *self.last]
        held = [layer.weight for layer in layers]
        try:
            for layer, weight in zip(layers, held):
                del layer._parameters["weight"]
                layer.weight = weight / _largest_singular_value(weight).clamp_min(1.0)
            return super().generate(state)
        finally:
            for layer, weight in zip(layers, held):
                del layer.weight
                layer._parameters["weight"] = weight


def _largest_singular_value(weight: Tensor, steps: int = 10) -> Tensor:
    matrix = weight.flatten(1) if weight.ndim > 2 else weight
    with torch.no_grad():
        right = torch.ones_like(matrix[0]) / math.sqrt(matrix.shape[1])
        for _ in range(steps):
            left = matrix @ right
            left = left / left.norm().clamp_min(1e-12)
            right = matrix.T @ left
            right = right / right.norm().clamp_min(1e-12)
    return left @ (matrix @ right)


class SymLogNorm(ValueNorm):
    """Compare prediction and target after TorchRL's ``SymLogValueTransform``, as a value norm."""

    def __init__(self) -> None:
        super().__init__(shape=1)
        self.transform = SymLogValueTransform()
        self.register_buffer("one", torch.ones(1))

    def update(self, value_target: Tensor) -> None:
        """Nothing is gathered."""

    def normalize(self, value_target: Tensor) -> Tensor:
        """Map into logarithmic space."""
        return self.transform(value_target)

    def denormalize(self, normalised_value: Tensor) -> Tensor:
        """Map back."""
        return self.transform.inverse(normalised_value)

    def scale(self) -> Tensor:
        """Return 1."""
        return self.one


CURES: dict[str, Callable[[], ValueNorm] | None] = {
    "": None,
    "max_next_value": None,
    "spectral norm": None,
    "RunningValueNorm": RunningValueNorm,
    "PopArtValueNorm": PopArtValueNorm,
    "SymLogValueTransform": SymLogNorm,
}


def build(spec: TaskSpec, row: Row, ceiling: float) -> OfflineMARLLoss:
    """Draw the networks of a row and return their loss."""
    of_critic, of_mixer = NORMS[row["norms"]]
    svn, eq4 = SCALES[row["scale"]]
    hidden, kind = tuple(row["hidden"]), row["mixer"]
    options: dict[str, Any] = {"hidden": hidden, "layer_norm": of_critic}
    if kind in ("trained", "frozen"):
        form = SpectralMixer if row["cure"] == "spectral norm" else HyperNetworkMixer
        mixer = form(spec.n_agents, spec.state_size, layer_norm=of_mixer)
        options |= {"decomposition": "mixer", "mixer": mixer, "frozen": kind == "frozen"}
    else:
        options["decomposition"] = kind
    cure = CURES[row["cure"]]
    norm = ScaleInvariantValueNorm() if svn else None
    return OfflineMARLLoss(
        make_actor(spec, hidden=hidden),
        make_critic(spec, **options),
        value_learning=TD(),
        extraction=BRAC(alpha=row["alpha"], normalize=eq4),
        value_norm=norm if cure is None else cure(),
        max_next_value=ceiling if row["cure"] == "max_next_value" else None,
    ).make_value_estimator(gamma=GAMMA)


def rows_of(stage: str) -> Iterator[Row]:
    """Yield the rows of a stage."""
    base = {"alpha": 1.0, "tau": 0.02, "cure": "", "hidden": [64, 64], "scale": "none", "norms": "none"}
    small = {"seeds": 3, "steps": 4000, "play": 0}
    if stage == "grid":
        for norms in ("none", "both", "mixer", "critic"):
            for scale in SCALES:
                for mixer in ("trained", "frozen", "vdn"):
                    if mixer != "vdn" or norms in ("none", "both"):  # which has no hypernetwork
                        yield base | small | {"task": ANT, "mixer": mixer, "norms": norms, "scale": scale}
        return
    if stage == "released":
        for mixer in ("frozen", "trained"):
            for scale in ("eq. 4", "none", "both"):
                yield base | small | {"task": ANT, "mixer": mixer, "norms": "both", "scale": scale, "alpha": 0.03}
        return
    if stage == "wide":
        for mixer, norms in (("trained", "none"), ("trained", "both"), ("frozen", "both")):
            yield base | {
                "task": ANT,
                "mixer": mixer,
                "norms": norms,
                "hidden": [256] * 4,
                "seeds": 1,
                "steps": 4000,
                "play": 16,
            }
        return
    settings: list[Row] = [  # what settles most comes first
        {"mixer": "trained"},
        {"mixer": "trained", "scale": "eq. 4"},
        {"mixer": "trained", "norms": "both"},
        {"mixer": "frozen", "norms": "both"},
        {"mixer": "trained", "norms": "both", "scale": "eq. 4"},
        {"mixer": "trained", "scale": "SVN"},
        {"mixer": "vdn"},
        {"mixer": "trained", "scale": "both"},
        {"mixer": "frozen"},
        {"mixer": "frozen", "norms": "both", "scale": "both"},
        {"mixer": "vdn", "norms": "both"},
        *({"mixer": "trained", "cure": cure} for cure in list(CURES)[1:]),
        {"mixer": "trained", "norms": "both", "scale": "eq. 4", "alpha": 0.01},
        {"mixer": "trained", "scale": "both", "alpha": 0.01},
        {"mixer": "trained", "tau": 0.005},
        {"mixer": "nonmonotonic"},
        {"mixer": "qplex"},
    ]
    for setting, task in itertools.product(settings, (CHEETAH, SPREAD)):
        play = 16 if task == CHEETAH else 200
        yield base | {"task": task, "seeds": 5, "steps": 10_000, "play": play} | setting


def train_row(folder: str, **row: Any) -> dict[str, Any]:
    """Train the seeds of a row side by side and return their curves."""
    data = recorded(row["task"], Path(folder) / "data")
    reward = data.data["next", "agents", "reward"].mean(1).squeeze(-1)
    returns = discounted_returns(reward, data.episode_lengths, GAMMA)
    losses = {}
    for seed in range(row["seeds"]):
        torch.manual_seed(seed)
        losses[f"seed-{seed}"] = build(data.spec, row, float(returns.amax()))
    keys = next(iter(losses.values())).in_keys
    buffer = PopulationBuffer(data, batch_size=BATCH, seeds=range(row["seeds"]), keys=keys)
    learner = PopulationLearner(losses, lr=LR, tau=row["tau"], compile="on")
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            learner,
            buffer,
            steps=row["steps"],
            log_every=LOG_EVERY,
            output=output,
            on_impossible_values="ignore",
            progress=False,
        )
        trainer.train()
        tables = [read_csv(Path(output) / "members" / member / "train.csv") for member in losses]
    columns = ("step", "qvalue_abs", *CURVES, "closed_loop_gain")
    curves = [
        {name: [line.get(name, math.nan) for line in table] for name in dict.fromkeys(columns)} for table in tables
    ]
    played = {}
    if row["play"]:
        env = make_env(row["task"], num_envs=row["play"], seed=0)
        for member, loss in learner.member_losses():
            played[member] = evaluate(loss.actor_network, env, episodes=row["play"], seed=1000).mean
    return {
        "bound": reward_facts(losses["seed-0"], buffer).bound(GAMMA),
        "mean discounted return": float(returns[data.episode_starts].mean()),
        "largest discounted return": float(returns.amax()),
        "data's return": float(data.episode_returns().mean()),
        "left out": learner.left_out(),
        "curves": curves,
        "returns": list(played.values()),
    }


# ---------------------------------------------------------------------------------------------- report


class Run:
    """One seed of a row: its curves and what they came to."""

    def __init__(self, row: Row, seed: int) -> None:
        self.row, self.bound, self.curves = row, row["bound"], row["curves"][seed]
        left = row["left out"].get(f"seed-{seed}", math.inf)
        self.steps = [step for step in self.curves["step"] if step <= left]
        self.ratio = [_or_infinite(value) / self.bound for value in self.curves["qvalue_abs"][: len(self.steps)]]
        self.ratio += [math.inf] if left < math.inf else []
        self.diverges = max(self.ratio) > DIVERGED
        self.kind = "diverging" if self.diverges else "impossible" if max(self.ratio) > 1.0 else "sane"
        self.value = row["curves"][seed]["qvalue_abs"][len(self.steps) - 1]
        self.played = row["returns"][seed] if row["returns"] else math.nan

    def passes(self, times: float) -> float:
        """Return the update at which mean |Q| first exceeds so many times the possible; infinite where never."""
        over = [step for step, ratio in zip(self.steps, self.ratio) if ratio > times]
        return over[0] if over else math.inf

    def verdict(self) -> str:
        """Return what a diagnosis of the curves says; the limit is that of a run's own alarm."""
        curves = [
            {name: values[i] for name, values in self.curves.items() if not math.isnan(values[i])}
            for i in range(len(self.steps))
        ]
        limit = limit_of(self.bound, curves[0]["qvalue_abs"])
        over = [(each["step"], each["qvalue_abs"]) for each in curves if not each["qvalue_abs"] <= limit]
        returns = {"return_largest": "largest discounted return", "return_mean": "mean discounted return"}
        numbers = {name: self.row[column] for name, column in returns.items()} | {"qvalue_abs": self.value}
        impossible = Impossible(*over[0], self.bound) if over else None
        return judged(numbers, curves, agents=None, impossible=impossible).word

    def early(self, name: str, until: int) -> float:
        """Return a curve's last number before ``until``, or before the values leave what is possible."""
        until = min(until, self.passes(1.0) - 1)
        found = [value for step, value in zip(self.steps, self.curves[name]) if step <= until and not math.isnan(value)]
        return found[-1] if found else math.nan


def _or_infinite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def report(rows: Sequence[Row], output: Path) -> None:
    """Print the tables, and draw the picture."""
    runs = [Run(row, seed) for row in rows for seed in range(row["seeds"])]
    print(f"{machine()}; {len(rows)} rows, {len(runs)} runs, {sum(r.diverges for r in runs)} diverge")
    for alpha in (1.0, 0.03):
        grid = [row for row in rows if row["task"] == ANT and len(row["hidden"]) == 2 and row["alpha"] == alpha]
        print(f"\nGrid, alpha {alpha}: possible {grid[0]['bound']:.4g}\n{grid_table(grid)}" if grid else "")
    for stage, chosen in _by_stage(rows).items():
        print(f"\n{stage}\n{values_table(chosen)}")
    print(f"\nPrediction\n{prediction_table(runs)}")
    print(f"\nAlarms\n{alarm_table(runs)}")
    print(f"\nDiagnoses\n{verdict_table(rows)}")
    picture(rows, output / "instability.png")


def _by_stage(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        wide = ", 4 x 256" if len(row["hidden"]) > 2 else ""
        found.setdefault(f"{row['task']}{wide}, {row['steps']} updates", []).append(row)
    return found


def values_table(rows: Sequence[Row]) -> str:
    """Final mean |Q|: geometric mean and its t interval over seeds; how many diverge; returns."""
    lines = []
    for row in rows:
        runs = [Run(row, seed) for seed in range(row["seeds"])]
        values = [min(_or_infinite(run.value), 1e38) for run in runs]
        shown = ", ".join(f"{value:.3g}" for value in values)
        spread = ""
        if len(values) > 1:
            interval = mean_confidence_interval([math.log10(max(value, 1e-9)) for value in values])
            spread = f"{10**interval.mean:.3g} [{10**interval.low:.2g}, {10**interval.high:.2g}]"
        gains = [run.curves["discounted_gain"][-1] for run in runs if "discounted_gain" in run.curves]
        gains = [gain for gain in gains if math.isfinite(gain)]
        gain = f"{min(gains):.3g} to {max(gains):.3g}" if gains else ""
        played = [run.played for run in runs if not math.isnan(run.played)]
        score = ""
        if len(played) > 1:
            interval = mean_confidence_interval(played)
            score = f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]"
        elif played:
            score = f"{played[0]:.4g}"
        lines.append([*(words(row, name) for name in SHOWN), shown, spread, sum(r.diverges for r in runs), gain, score])
    header = [*SHOWN.values(), "final mean abs Q", "geometric mean", "diverge", "final gain", "return"]
    return markdown(header, lines)


def grid_table(rows: Sequence[Row]) -> str:
    """The grid at a glance: geometric mean of the final mean |Q| and how many seeds diverge, by normalization."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        runs = [Run(row, seed) for seed in range(row["seeds"])]
        values = [math.log10(min(_or_infinite(run.value), 1e38)) for run in runs]
        kinds = [run.kind for run in runs]
        grave = " / ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS[:2] if kind in kinds)
        cells.setdefault((row["norms"], row["mixer"]), {})[row["scale"]] = (
            f"{10 ** (sum(values) / len(values)):.3g}{f' ({grave})' if grave else ''}"
        )
    lines = [[*key, *(found.get(scale, "") for scale in SCALES)] for key, found in cells.items()]
    return markdown(["layer norms", "mixer", *SCALES], lines)


NAMES = {"trained": "trained mixer", "frozen": "frozen mixer", "vdn": "VDN"}
SHOWN = {"norms": "layer norms", "mixer": "mixer", "scale": "normalized", "cure": "other"}


def words(row: Row, name: str) -> str:
    """Return what a table says of a row's setting."""
    if name != "cure":
        return row["norms"] if name == "norms" and row["mixer"] != "vdn" else str(row[name])
    more = [] if row["alpha"] == 1.0 else [f"alpha {row['alpha']}"]
    more += [] if row["tau"] == 0.02 else [f"target rate {row['tau']}"]
    return ", ".join([*more, *([row["cure"]] if row["cure"] else [])])


def area_under_curve(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the chance that a number of ``positive`` exceeds one of ``negative``, ties counting half."""
    if not positive or not negative:
        return math.nan
    above = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return above / (len(positive) * len(negative))


def prediction_table(runs: Sequence[Run]) -> str:
    """Areas under the curve of numbers seen early, of runs whose values were possible until then."""
    lines = []
    for name, until in itertools.product(PREDICTORS, (100, 200, 500, 1000, 2000)):
        cells = []
        for kind in ("all", "mixers"):
            seen = [
                (run.early(name, until), run.diverges) for run in runs if kind == "all" or run.row["mixer"] != "vdn"
            ]
            seen = [(value, diverges) for value, diverges in seen if not math.isnan(value)]
            groups = [[value for value, diverges in seen if diverges is wanted] for wanted in (True, False)]
            cells += [f"{area_under_curve(*groups):.3f}", f"{len(groups[0])} of {len(seen)}"]
        lines.append([name, until, *cells])
    header = ["number", "by update", "area, all", "diverging, all", "area, mixers", "diverging, mixers"]
    return markdown(header, lines)


def alarm_table(runs: Sequence[Run]) -> str:
    """What alarms at so many times the possible value name, and how long before ten times."""
    lines = []
    kinds = {kind: [run for run in runs if run.kind == kind] for kind in KINDS}
    for times in (0.5, 1.0, 2.0, 3.0):
        named = {kind: [run for run in kinds[kind] if run.passes(times) < math.inf] for kind in KINDS}
        leads = sorted(run.passes(DIVERGED) - run.passes(times) for run in named["diverging"])
        lead = f"{leads[len(leads) // 2]:.0f} ({leads[0]:.0f} to {leads[-1]:.0f})" if leads else ""
        lines.append([times, lead, *(f"{len(named[kind])} of {len(kinds[kind])}" for kind in KINDS)])
    return markdown(["alarm at mean abs Q over the possible", "updates before ten times", *KINDS], lines)


def verdict_table(rows: Sequence[Row]) -> str:
    """What a diagnosis of each run's curves says at its end."""
    found = collections.Counter()
    for row in rows:
        for seed in range(row["seeds"]):
            run = Run(row, seed)
            found[run.kind, run.verdict()] += 1
    words = ("diverged", "suspicious", "sane")
    return markdown(["runs", *words], [[kind, *(found[kind, word] for word in words)] for kind in KINDS])


@figure_style()
def picture(rows: Sequence[Row], path: Path) -> None:
    """Draw values over the possible, and gains, of the rows that make the point."""
    chosen = [
        row for row in rows if row["task"] == ANT and row["scale"] in ("none", "eq. 4") and len(row["hidden"]) == 2
    ]
    chosen = [row for row in chosen if row["norms"] in ("none", "both") and row["alpha"] == 1.0]
    figure, axes = new_figure(2, size=(13, 4.6))
    for index, row in enumerate(chosen):
        runs = [Run(row, seed) for seed in range(row["seeds"])]
        length = min(len(run.steps) for run in runs)
        of_actor = "eq. 4" if row["scale"] == "eq. 4" else "no eq. 4"
        label = f"{NAMES[row['mixer']]}, layer norms: {row['norms']}, {of_actor}"
        curves = [[min(ratio, 1e30) for ratio in run.ratio[:length]] for run in runs]
        draw_seeds(axes[0], runs[0].steps[:length], curves, index=index, label=label)
        points = [i for i in range(length) if not math.isnan(runs[0].curves["discounted_gain"][i])]
        gains = [[run.curves["discounted_gain"][i] for i in points] for run in runs]
        if points:
            draw_seeds(axes[1], [runs[0].steps[i] for i in points], gains, index=index, label=label)
    axes[0].axhline(1.0, color=GREY, linewidth=1.2)
    axes[1].axhline(1.0, color=GREY, linewidth=1.2)
    axes[0].set(xlabel="updates", ylabel="mean |Q| over the largest possible", yscale="log")
    axes[1].set(xlabel="updates", ylabel="gain γ‖J‖", yscale="log")
    legend_beside(figure, axes[0])
    figure.suptitle("mamujoco/2ant, TD + BRAC: mean and range over seeds", x=0.01, ha="left")
    save_figure(figure, path)


def main() -> None:
    """Run the study, or report what is there."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=Path("runs/instability"))
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--workers", type=as_few, default=1)
    parser.add_argument("--steps", type=as_count, default=None, help="fewer, to try the command")
    parser.add_argument("--report", action="store_true", help="train nothing: report what is there")
    args = parser.parse_args()
    results = args.output / "results.jsonl"
    rows = [row for stage in args.stage for row in rows_of(stage)]
    if args.steps is not None:
        rows = [row | {"steps": args.steps} for row in rows]
    if args.report:
        found = [each["job"] | each["result"] for each in read_rows(results)]
        if not found:
            parser.error(f"there is no result in {results}; leave --report out.")
    else:
        for task in dict.fromkeys(row["task"] for row in rows):
            recorded(task, args.output / "data")
        jobs = [{"folder": str(args.output)} | row for row in rows]
        found = run_jobs(train_row, jobs, workers=args.workers, results=results)
    report(found, args.output)


if __name__ == "__main__":
    run_script(main)
