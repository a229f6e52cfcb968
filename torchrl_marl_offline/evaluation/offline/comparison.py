"""Policies against the team that logged the data, and the best of several, from the logged data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import Mode
from torchrl_marl_offline.core.layout import ACTION, AGENT_MASK, REWARD, next_key
from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.core.ranges import DISCOUNT, OPEN_UNIT, POSITIVE, SEED
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.validation import validate
from torchrl_marl_offline.evaluation.offline import importance
from torchrl_marl_offline.evaluation.offline.answers import LOGGED, Candidate, EvaluatedPolicy, as_policies
from torchrl_marl_offline.evaluation.offline.behaviour_model import (
    BehaviourClone,
    CloningSettings,
    behaviour_log_probs,
)
from torchrl_marl_offline.evaluation.offline.checks import (
    LoggedCalibration,
    impossible_values,
    of_clipped,
    of_imagination,
    of_likelihood,
    of_masked_rows,
    of_other_task,
    of_sample_size,
    of_support,
    unlikely_share,
    unsupported_share,
)
from torchrl_marl_offline.evaluation.offline.estimates import (
    BY_CRITICS,
    BY_MODELS,
    BY_WEIGHTS,
    Method,
    OfflineEstimate,
    ValueDifference,
    paired_difference,
)
from torchrl_marl_offline.evaluation.offline.fitted_q import FittedQ, FittedQSettings
from torchrl_marl_offline.evaluation.offline.horizon import EvaluationRows, Horizon, evaluation_rows
from torchrl_marl_offline.evaluation.offline.imagined_play import ImaginedGame, ImaginedPlay
from torchrl_marl_offline.evaluation.offline.learned_model import LearnedModel, LearnedModelSettings
from torchrl_marl_offline.evaluation.run_report import format_table
from torchrl_marl_offline.objectives.functional import team_reward as team_reward_of

REPLICATES = 1000
"""Resamples of the held-out episodes for what needs no training."""
_FEWEST = 4
REPLAYED = ("The learned models", "the actions of held-out episodes, replayed in them, earn")
FEWEST_EPISODES = 2 * _FEWEST
"""Without which nothing is estimated: half of them for the critics, half to average over."""


@dataclass(frozen=True)
class OfflineComparison:
    """What :func:`compare_offline` found.

    Attributes:
        estimates: method -> policy's name -> its estimate.
        differences: method -> policy's name -> how much better than the logged team it is.
        logged: the logged team's own mean over the held-out episodes, with the interval over episodes.
        best_of_data: the largest discounted return of a logged episode: what choosing among episodes in hindsight would
            earn. An estimate above it says more than the data shows.
        calibration: of the fitted values of the logged team; ``None`` without ``"fqe"`` and ``"dr"``, and with
            ``horizon="endless"`` where time limits ended episodes.
        gamma: discount.
        warnings: sentences, each a reason not to trust some of it.
        model_calibration: what learned models say that the logged actions of held-out episodes earn against what they
            earned; ``None`` without ``"model"``.
    """

    estimates: Mapping[str, Mapping[str, OfflineEstimate]]
    differences: Mapping[str, Mapping[str, ValueDifference]]
    logged: OfflineEstimate
    best_of_data: float
    calibration: LoggedCalibration | None
    gamma: float
    warnings: tuple[str, ...]
    model_calibration: LoggedCalibration | None = None

    def table(self) -> str:
        """Return what was found, in lines of a terminal's width."""
        rows = [[LOGGED, "data", self.logged.mean, _ends(*self.logged.interval), None, None, None]]
        for method, estimates in self.estimates.items():
            for name, estimate in estimates.items():
                better = self.differences[method][name]
                gained = [better.mean, _ends(better.low, better.high), f"{better.probability:.2f}"]
                rows.append([name, method, estimate.mean, _ends(*estimate.interval), *gained])
        header = ["policy", "by", "value", "95 % interval", "better than logged by", "95 % interval", "P(better)"]
        lines = [
            f"Discounted return of an episode (gamma {self.gamma:g}), from logged data; best logged episode "
            f"{self.best_of_data:.4g}",
            format_table(rows, header=header),
        ]
        effective = next((found for found in self.estimates.values() if "ess" in next(iter(found.values())).facts), {})
        for name, estimate in effective.items():
            size, count = estimate.facts["ess"], estimate.facts["episodes"]
            lines.append(f"Effective sample size of {name}: {size:.1f} of {count:.0f} episodes.")
        lines += filter(None, dict.fromkeys(self.verdict(method) for method in self.estimates))
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])

    def calibration_of(self, method: str) -> LoggedCalibration | None:
        """Return the check of a method on the logged team; ``None`` where it has none."""
        if method in BY_MODELS:
            return self.model_calibration
        return self.calibration if method in BY_CRITICS else None

    def verdict(self, method: str) -> str:
        """Say in a sentence whether a method works on this dataset; empty where that was not checked."""
        found = self.calibration_of(method)
        if found is None:
            return ""
        return found.verdict(*REPLAYED) if method in BY_MODELS else found.verdict()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        methods = {
            method: {
                name: estimate.summary() | {"better": self.differences[method][name]._asdict()}
                for name, estimate in found.items()
            }
            for method, found in self.estimates.items()
        }
        checks = {"calibration": self.calibration, "model_calibration": self.model_calibration}
        judged = {name: None if check is None else vars(check) for name, check in checks.items()}
        facts = {"logged": self.logged.summary(), "best_of_data": self.best_of_data, "gamma": self.gamma}
        return facts | {"methods": methods, **judged, "warnings": list(self.warnings)}


def _ends(low: float, high: float) -> str:
    return f"[{low:.4g}, {high:.4g}]"


@checked
def compare_offline(
    policies: Mapping[str, Candidate] | Candidate,
    dataset: OfflineDataset,
    *,
    by: Sequence[Method] | Method = ("fqe",),
    gamma: Annotated[float, DISCOUNT] = 0.99,
    mode: Mode = "mode",
    horizon: Horizon = "episode",
    team_reward: Literal["mean", "sum"] = "mean",
    held_out: Annotated[float, OPEN_UNIT] = 0.25,
    fitting: FittedQSettings = FittedQSettings(),  # noqa: B008
    cloning: CloningSettings = CloningSettings(),  # noqa: B008
    modelling: LearnedModelSettings = LearnedModelSettings(),  # noqa: B008
    weights: Literal["joint", "agent"] = "joint",
    clip: Annotated[float | None, POSITIVE] = None,
    seed: Annotated[int, SEED] = 0,
    progress: bool = False,
) -> OfflineComparison:
    r"""Estimate what policies earn, and how much more than the team that logged the data, from that data alone.

    All numbers are in one unit: the discounted return of the team's reward from an episode's first step, averaged over
    the first steps of held-out episodes. With ``"fqe"``, each policy's critics learn on resamples of the other
    episodes, as the logged team's own do on the same resamples: the difference is between those two, pair by pair. With
    the others, the difference is to what the same resamples of held-out episodes earned.

    Policies that learned from the very episodes that are given are judged too well; hold some out first
    (:meth:`OfflineDataset.split`), and give those. The global random generators stay as they are.

    Args:
        policies: name -> policy: a module or function that writes ``("agents", "action")``, a loss with an actor, what
            :func:`~torchrl_marl_offline.load_policy` returned, or the path of a policy or of a run; or one of these.
        dataset: whole logged episodes.
        by: of ``"fqe"``, fitted Q evaluation, see :mod:`~.fitted_q`; ``"is"``, ``"wis"`` and ``"dr"``, per-decision
            importance sampling, its self-normalized form, and weighted doubly robust, see :mod:`~.importance`. These
            need log-probabilities: of the policies, and of the logged team (``("agents", "action_log_prob")`` in the
            data, or a clone). ``"dr"`` trains critics, too. ``"model"``: what the policies earn in models of the task
            that are learned from the data, see :mod:`~.learned_model` and :mod:`~.imagined_play`.
        gamma: discount. At 1, values of tasks without an end are not bounded.
        mode: evaluate the policies' deterministic actions, or what they draw.
        horizon: ``"episode"``: time limits are ends, as of what an episode earns; ``"endless"``: they are bootstrapped,
            of ``"fqe"`` alone. See :mod:`~.horizon`.
        team_reward: the team's reward is the mean or the sum of the agents'.
        held_out: share of the episodes over whose first steps values are averaged, and on which weights are formed.
        fitting: of the critics.
        cloning: of the logged team, where its log-probabilities are not in the data, and to tell whether a policy does
            what that team might have done (for ``"fqe"`` alone with no more updates than the critics).
        modelling: of the task, by ``"model"``.
        weights: ``"joint"``: the product of all agents' ratios. ``"agent"``: each agent's reward weighted by its own
            ratios alone, then averaged (or summed): smaller weights, and right only where no agent's actions change
            what another earns; of ``"is"`` and ``"wis"``.
        clip: largest importance weight, which makes estimates steadier, and draws them to the logged team's;
            ``None`` for none. The share of clipped weights is among the facts.
        seed: of the split, the resamples, the critics and the draws.
        progress: show bars on a terminal.

    Raises:
        DatasetError: the data keeps not to the layout, or has a value that is no number.
        PolicyError: a policy was made for other sizes, or writes no action of the task.
        TypeError: ``dataset`` is none.
        ValueError: an argument does not go with another, a policy has no log-probabilities where they are needed, or
            there are too few episodes. All of it is said before anything is trained.

    Examples:
        >>> found = compare_offline({"new": "runs/new/policy.pt"}, dataset, by=("fqe", "wis"))       # doctest: +SKIP
        >>> print(found.table())                                                                     # doctest: +SKIP
    """
    methods = checked_methods(by, horizon, weights)
    _check_read(methods, weights=weights, clip=clip, fitting=fitting, modelling=modelling)
    if not isinstance(dataset, OfflineDataset):
        raise TypeError(f"dataset is a {type(dataset).__name__}; give what load_dataset() or from_arrays() returned.")
    validate(dataset)
    if dataset.n_episodes < FEWEST_EPISODES:
        raise ValueError(
            f"Evaluation from logged data needs {FEWEST_EPISODES} episodes or more, the data has {dataset.n_episodes}."
        )
    with preserved_rng():
        named = as_policies(policies, dataset, mode)  # a file's networks are drawn before they are filled
        torch.manual_seed(seed)
        work = _Evaluation(dataset, named, horizon, gamma, team_reward, held_out, seed, fitting, modelling)
        return _compare(work, methods, cloning, weights, clip, progress)


def _compare(
    work: _Evaluation,
    methods: Sequence[str],
    cloning: CloningSettings,
    weights: Literal["joint", "agent"],
    clip: float | None,
    progress: bool,
) -> OfflineComparison:
    weighted = bool(set(methods) & set(BY_WEIGHTS))
    work.cloning = cloning if weighted else replace(cloning, steps=min(cloning.steps, work.fitting.steps))
    if weighted:
        work.ask_log_probs()  # refuses policies without any
    if set(methods) & set(BY_CRITICS):
        work.fit(progress)
    if weighted:
        work.weigh(clip, progress)
    if set(methods) & set(BY_MODELS):
        work.learn_model(progress)
    estimates: dict[str, dict[str, OfflineEstimate]] = {}
    differences: dict[str, dict[str, ValueDifference]] = {}
    for method in methods:
        estimates[method], differences[method] = {}, {}
        for name in work.policies:
            estimate, better = work.estimate(method, name, weights)
            estimates[method][name], differences[method][name] = estimate, better
    told = [warning for found in estimates.values() for estimate in found.values() for warning in estimate.warnings]
    warnings = tuple(dict.fromkeys([*work.general_warnings(methods), *told]))
    best = work.rows.returns[work.rows.starts].max().item()
    told = warnings, work.model_calibration
    return OfflineComparison(estimates, differences, work.logged(), best, work.calibration, work.gamma, *told)


def _check_read(
    methods: Sequence[str], *, weights: str, clip: float | None, fitting: FittedQSettings, modelling: Any
) -> None:
    """Refuse what was given and no estimate reads."""
    given = {
        "weights": weights != "joint",
        "clip": clip is not None,
        "fitting": fitting != FittedQSettings(),
        "modelling": modelling != LearnedModelSettings(),
    }
    read_by = {"weights": ("is", "wis"), "clip": BY_WEIGHTS, "fitting": BY_CRITICS, "modelling": BY_MODELS}
    for name in (name for name, is_given in given.items() if is_given and not set(read_by[name]) & set(methods)):
        readers = " and ".join(map(repr, read_by[name]))
        raise ValueError(f"{name}= is read by {readers} alone, and by= is {', '.join(methods)}; leave it out.")


def checked_methods(by: Any, horizon: str, weights: str) -> list[str]:
    """Return the methods of estimation that are asked for, in a list.

    Raises:
        ValueError: one is none, or does not go with the horizon or the weights.
    """
    methods = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    if not methods or set(methods) - set(get_args(Method)):
        known = ", ".join(map(repr, get_args(Method)))
        raise ValueError(f"by must be some of {known}, got {by!r}.")
    if horizon == "endless" and set(methods) & set(BY_MODELS):
        raise ValueError("'model' plays whole episodes, which end with them; use horizon='episode', or by='fqe'.")
    weighted = [method for method in methods if method in BY_WEIGHTS]
    if horizon == "endless" and weighted:
        raise ValueError(
            f"{weighted[0]!r} weighs what episodes earned, which ends with them; use horizon='episode', or by='fqe'."
        )
    if weights == "agent" and "dr" in methods:
        raise ValueError("'dr' needs the weights of the joint action; use weights='joint', or leave it out.")
    return methods


class _Evaluation:
    """One comparison in the making: rows, splits, resamples, and what was learned on them."""

    def __init__(
        self,
        dataset: OfflineDataset,
        policies: Mapping[str, EvaluatedPolicy],
        horizon: Horizon,
        gamma: float,
        how: Literal["mean", "sum"],
        held_out: float,
        seed: int,
        fitting: FittedQSettings,
        modelling: LearnedModelSettings,
    ) -> None:
        self.dataset, self.policies, self.horizon = dataset, policies, horizon
        self.gamma, self.how, self.seed, self.fitting = gamma, how, seed, fitting
        self.rows: EvaluationRows = evaluation_rows(dataset, horizon=horizon, gamma=gamma, how=how)
        g = torch.Generator().manual_seed(seed)
        count = dataset.n_episodes
        kept = min(max(round(held_out * count), _FEWEST), count - _FEWEST)
        order = torch.randperm(count, generator=g)
        self.held_out, self.train = order[:kept].sort().values, order[kept:].sort().values  # episodes
        size = (fitting.resamples, len(self.train)), (fitting.resamples, kept)
        self.trained_on = self.train[torch.randint(len(self.train), size[0], generator=g)]  # [R, E]
        self.starts_of = torch.randint(kept, size[1], generator=g)  # [R, H] of the held-out
        drawn = torch.randint(kept, (REPLICATES, kept), generator=g)
        self.counts = torch.zeros(REPLICATES, kept, dtype=torch.float64)
        self.counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        self.held_out_rows = self.rows.rows_of(self.held_out)
        self.earned = self.rows.returns[self.rows.starts[self.held_out]]  # [H]
        self.source = dataset.data.cpu()
        self.modelling = modelling
        self.calibration: LoggedCalibration | None = None
        self.model_calibration: LoggedCalibration | None = None
        self.cloning = CloningSettings()
        self._clone: BehaviourClone | None = None
        self._logged_log_probs: Tensor | None = None
        self._fitted: FittedQ | None = None
        self._held_out_actions: dict[str, Tensor] = {}
        self._start_values: dict[str, Tensor] = {}
        self._played: dict[str, ImaginedPlay] = {}
        self._played_from: Tensor | None = None
        self._log_probs: dict[str, Tensor] = {}
        self._logs: dict[str, Tensor] = {}
        self._facts: dict[str, float] = {}

    # ------------------------------------------------------------------------ fitted values

    def fit(self, progress: bool) -> None:
        """Train critics of all policies and of the logged team, and calibrate."""
        samples = self.fitting.samples
        given: dict[str, Tensor | None] = {LOGGED: None}
        for name, policy in self.policies.items():  # all that is asked, before anything is trained
            seen = policy.seen(self.source)
            given[name] = policy.actions(seen.get("next"), samples=samples, seed=self.seed)
            here = seen.exclude("next")[self.held_out_rows]
            self._held_out_actions[name] = policy.actions(here, samples=samples, seed=self.seed + 1)
        settings = {"gamma": self.gamma, "how": self.how, "seed": self.seed}
        self._fitted = FittedQ(self.rows, given, self.trained_on, self.fitting, **settings)
        self._fitted.train(progress=progress)
        if self.horizon == "episode" or not self.rows.truncated.any():
            self.calibration = LoggedCalibration.of(self.start_values(LOGGED).mean(0), self.earned)

    def start_values(self, name: str) -> Tensor:
        """Return the values of held-out episodes' first steps by each resample's critics, ``[R, H]``."""
        if name not in self._start_values:
            index = self.rows.starts[self.held_out]
            self._start_values[name] = self._fitted.values(name, self.rows, index, self._here(name, index))
        return self._start_values[name]

    def _here(self, name: str, index: Tensor) -> Tensor:
        """Return what a policy does in states of held-out rows, ``[k, K, n, a]``; of the logged team, what it did."""
        if name == LOGGED:
            return self.rows.data.get(ACTION)[index].unsqueeze(1)
        return self._held_out_actions[name][torch.searchsorted(self.held_out_rows, index)]

    def by_fqe(self, name: str) -> tuple[OfflineEstimate, ValueDifference]:
        """Return the fitted estimate of a policy, and its difference to that of the logged team."""
        found = {each: self.start_values(each) for each in (name, LOGGED)}
        own = {each: values.gather(1, self.starts_of).mean(1) for each, values in found.items()}
        mean, logged = (found[each].mean().item() for each in (name, LOGGED))
        share = self._unsupported(name)
        impossible = self._impossible(name)
        unlikely = self._unlikely(name)
        told = [impossible, of_support(name, share), of_likelihood(name, unlikely)]
        facts = {"unsupported": share, "unlikely": unlikely, "logged_value": logged}
        facts["episodes"] = float(len(self.held_out))
        warnings = tuple(filter(None, told))
        told_of_it = {"gains": own[name] - own[LOGGED], "is_possible": impossible is None}
        estimate = OfflineEstimate("fqe", mean, own[name], self.gamma, "t", facts, warnings, **told_of_it)
        return estimate, paired_difference(mean, own[name], logged, own[LOGGED], "t")

    def _impossible(self, name: str) -> str | None:
        return impossible_values(name, self.start_values(name), self.rows, self.gamma)

    def _unsupported(self, name: str) -> float:
        g = torch.Generator().manual_seed(self.seed)
        asked = self.held_out_rows[torch.randperm(len(self.held_out_rows), generator=g)[:2000]]
        known = torch.zeros(len(self.source), dtype=torch.bool)
        known[self.rows.rows_of(self.train)] = True
        return unsupported_share(self.rows, known, asked, self._here(name, asked)[:, 0], seed=self.seed)

    def _unlikely(self, name: str) -> float:
        rows, clone = self.source[self.held_out_rows], self._clone_of_logged()
        if self._logged_log_probs is None:
            self._logged_log_probs = self._of_living(clone.log_probs(rows, rows.get(ACTION)))
        own = clone.log_probs(rows, self._held_out_actions[name][:, 0].contiguous())
        return unlikely_share(self._logged_log_probs, self._of_living(own), discrete=self.dataset.spec.discrete)

    def _of_living(self, log_probs: Tensor) -> Tensor:
        alive = self.source.get(AGENT_MASK, None)
        return log_probs if alive is None else torch.where(alive[self.held_out_rows], log_probs, 0.0)

    # ------------------------------------------------------------------------ learned models

    def learn_model(self, progress: bool) -> None:
        """Learn models of the task, hold them against held-out episodes, and let all policies play in them."""
        for policy in self.policies.values():  # what it does in logged states is refused before anything is trained
            policy.actions(policy.seen(self.source), samples=1)
        g, settings = torch.Generator().manual_seed(self.seed), self.modelling
        count = len(self.train)
        drawn = self.train[torch.randint(count, (settings.resamples, count), generator=g)]
        starts = torch.randint(len(self.held_out), (settings.resamples, settings.episodes), generator=g)
        how = {"seed": self.seed, "progress": progress}
        model = LearnedModel(self.source, self.rows, drawn, settings, **how)
        game = ImaginedGame(model, self.source, self.rows, self.held_out, gamma=self.gamma, seed=self.seed)
        self.model_calibration = game.replay()
        self._played = {name: game.play(policy, starts) for name, policy in self.policies.items()}
        self._played_from = self.earned[starts].mean(1)

    def by_model(self, name: str) -> tuple[OfflineEstimate, ValueDifference]:
        """Return what a policy earns in the learned models, and its difference to what the logged team earned."""
        play, earned = self._played[name], self._played_from
        low, high = play.lows.mean().item(), play.highs.mean().item()
        facts = {"outside": play.outside, "imagined": play.plain.mean().item(), "ceiling": high}
        facts["episodes"] = float(len(self.held_out))
        warnings = tuple(filter(None, [of_imagination(name, play.outside, low, high)]))
        told = {"gains": play.lows - earned, "ceilings": play.highs}
        estimate = OfflineEstimate("model", low, play.lows, self.gamma, "t", facts, warnings, **told)
        mean = self.earned.mean().item()
        worse, better = (
            paired_difference(end, values, mean, earned, "t") for end, values in ((low, play.lows), (high, play.highs))
        )
        return estimate, worse._replace(high=better.high)

    # ------------------------------------------------------------------------ weights

    def ask_log_probs(self) -> None:
        """Ask every policy how likely it is to do what was logged in the held-out episodes."""
        rows = self.source[self.held_out_rows]
        self._log_probs = {name: policy.log_probs(rows) for name, policy in self.policies.items()}

    def weigh(self, clip: float | None, progress: bool) -> None:
        """Form the logarithms of all weights, ``[H, T, n + 1]``: of each agent, then of all together."""
        held = self.dataset.select_episodes(self.held_out)
        train = self.dataset.select_episodes(self.train)
        logged, self._facts = behaviour_log_probs(train, held, lambda: self._clone_of_logged(progress))
        alive = held.data.get(AGENT_MASK, None)
        for name, own in self._log_probs.items():
            ratios = own - logged
            if alive is not None:
                ratios = torch.where(alive.cpu(), ratios, 0.0)
            ratios = torch.cat([ratios, ratios.sum(-1, keepdim=True)], -1)  # [rows, n + 1]
            found, clipped = importance.log_weights(self._padded(ratios), clip)
            self._logs[name] = found
            self._facts[f"clipped/{name}"] = clipped

    def _clone_of_logged(self, progress: bool = False) -> BehaviourClone:
        if self._clone is None:
            train = self.dataset.select_episodes(self.train)
            self._clone = BehaviourClone(train, self.cloning, seed=self.seed, progress=progress)
        return self._clone

    def _padded(self, values: Tensor) -> Tensor:
        lengths = self.rows.lengths[self.held_out]
        return importance.padded(values, lengths.cumsum(0) - lengths, lengths)

    def by_weights(self, method: str, name: str, weights: str) -> tuple[OfflineEstimate, ValueDifference]:
        """Return the estimate of a policy by importance sampling, and its difference to what was earned."""
        logs, once = self._logs[name], torch.ones(1, len(self.held_out), dtype=torch.float64)
        counts = torch.cat([once, self.counts])
        if method == "dr":
            values = self._doubly_robust(name, logs[..., -1], counts)
        else:
            function = importance.per_decision if method == "is" else importance.weighted_per_decision
            rewards = self._rewards(weights)
            parts = [function(logs[..., i], rewards[..., i], self.gamma, counts) for i in rewards_of(weights, rewards)]
            values = parts[0] if weights == "joint" else torch.stack(parts).sum(0)
        effective = importance.effective_episodes(logs[..., -1])
        agents = [importance.effective_episodes(logs[..., i]) for i in range(logs.shape[-1] - 1)]
        facts = {name: value for name, value in self._facts.items() if not name.startswith("clipped/")}
        facts |= {"ess": effective, "episodes": float(len(self.held_out)), "clipped": self._facts[f"clipped/{name}"]}
        facts |= {f"ess_agent_{i}": size for i, size in enumerate(agents)}
        judged = effective if weights == "joint" else min(agents)
        impossible = self._impossible(name) if method == "dr" else None
        said = [impossible, of_sample_size(name, judged, len(self.held_out)), of_clipped(name, facts["clipped"])]
        told = tuple(filter(None, said))
        earned = self._earned_by_resample()
        told_of_it = {"gains": values[1:] - earned, "is_possible": impossible is None}
        estimate = OfflineEstimate(
            method, values[0].item(), values[1:], self.gamma, "percentiles", facts, told, **told_of_it
        )
        return estimate, paired_difference(
            estimate.mean, estimate.values, self.earned.mean().item(), earned, "percentiles"
        )

    def _rewards(self, weights: str) -> Tensor:
        """Return rewards ``[H, T, n + 1]``: each agent's share of the team's, then the team's."""
        agents = self.source.get(next_key(REWARD))[self.held_out_rows].double().squeeze(-1)  # [rows, n]
        share = agents / agents.shape[-1] if self.how == "mean" else agents
        team = team_reward_of(agents.unsqueeze(-1), self.how).reshape(-1, 1)
        return self._padded(torch.cat([share, team], -1))

    def _doubly_robust(self, name: str, logs: Tensor, counts: Tensor) -> Tensor:
        """Return the estimate by all critics, then those of resamples, each by one of them: ``[1 + R]``."""
        index, rewards = self.held_out_rows, self._rewards("joint")[..., -1]
        logged = self._here(LOGGED, index)
        action = self._fitted.values(name, self.rows, index, logged)  # [R, rows]
        state = self._fitted.values(name, self.rows, index, self._here(name, index))
        action, state = (torch.stack([self._padded(each) for each in values]) for values in (action, state))
        options = {"rewards": rewards, "gamma": self.gamma}
        critics = len(action)
        values = torch.empty(len(counts), dtype=torch.float64)
        of = {"action_values": action.mean(0), "state_values": state.mean(0)}
        values[:1] = importance.weighted_doubly_robust(logs, **of, **options, counts=counts[:1])
        for r in range(critics):
            of = {"action_values": action[r], "state_values": state[r]}
            part = importance.weighted_doubly_robust(logs, **of, **options, counts=counts[1 + r :: critics])
            values[1 + r :: critics] = part
        return values

    # ------------------------------------------------------------------------ the logged team

    def _earned_by_resample(self) -> Tensor:
        return self.counts @ self.earned / self.counts.sum(1)

    def logged(self) -> OfflineEstimate:
        """Return what the logged team earned in the held-out episodes."""
        facts = {"episodes": float(len(self.held_out)), "deviation": self.earned.std(correction=0).item()}
        values = self._earned_by_resample()
        return OfflineEstimate("data", self.earned.mean().item(), values, self.gamma, "percentiles", facts)

    def estimate(self, method: str, name: str, weights: str) -> tuple[OfflineEstimate, ValueDifference]:
        """Return a policy's estimate and its difference to the logged team."""
        if method == "model":
            return self.by_model(name)
        return self.by_fqe(name) if method == "fqe" else self.by_weights(method, name, weights)

    def general_warnings(self, methods: Sequence[str]) -> list[str]:
        """Return what is to be said of the dataset."""
        others = [of_other_task(name, each.task, self.dataset.spec.task) for name, each in self.policies.items()]
        told = [one for one in (of_masked_rows(self.source, self.rows.lengths), *others) if one]
        if self.calibration is not None and not self.calibration.passed:
            told.append(self.calibration.verdict())
        if self.model_calibration is not None and not self.model_calibration.passed:
            told.append(self.model_calibration.verdict(*REPLAYED))
        if self._fitted is not None and self.calibration is None:
            told.append(
                "Values are of the task without its time limit, and no episode earned such a return: they cannot be "
                "checked on this data; horizon='episode' can."
            )
        if self._fitted is not None:
            told += filter(None, [self._impossible(LOGGED)])
        return told


def rewards_of(weights: str, rewards: Tensor) -> range:
    """Return which columns of rewards ``[H, T, n + 1]`` are weighted: the team's, or each agent's."""
    last = rewards.shape[-1] - 1
    return range(last, last + 1) if weights == "joint" else range(last)
