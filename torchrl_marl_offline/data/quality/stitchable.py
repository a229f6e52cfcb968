"""How many of the joint actions that were never recorded an additive critic can know from those that were."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, MASK, STATE
from torchrl_marl_offline.core.ranges import COUNT, SEED, SEVERAL, Range
from torchrl_marl_offline.data.transitions.fingerprints import leaf_hashes, mixed

if TYPE_CHECKING:
    from torchrl_marl_offline.data.transitions.dataset import OfflineDataset

_SAMPLES = Range(1, limit=1_000_000)
_ENUMERATED = 20_000  # joint actions of one cluster
_STATES = 2_000  # looked at one by one
_ROWS_A_STATE = 10  # on average, so that looking at states one by one says something
_CLUSTERS, _ROWS_A_CLUSTER = 64, 50
_WORK = 1e10  # clusters times the cube of their columns
_BINS_OF_AN_AGENT = 32
_ZERO = 1e-9
_DENSE = 1_000  # columns of indicator rows of which a matrix is decomposed
_DIRECTIONS = 4  # drawn of what is not determined: none of them moves a joint action that is
_LOOKS, _ITERATIONS = 3e9, 3_000  # at entries of indicator rows, in search of these


class StateCoverage(NamedTuple):
    """The joint actions of one cluster of states.

    Attributes:
        rows: transitions in it.
        recorded: different joint actions that were recorded.
        possible: all joint actions.
        components: connected parts of the hypergraph whose vertices are the agents' recorded actions, and whose edges
            are the recorded joint actions.
        determined: share of the unrecorded joint actions that an additive critic can know; ``None`` where all were
            recorded.
    """

    rows: int
    recorded: int
    possible: int
    components: int
    determined: float | None


class StitchableShare(NamedTuple):
    """What :func:`stitchable_share` found.

    Attributes:
        share: mean of ``determined`` over the clusters, weighted by their rows; ``None`` where in every one all joint
            actions were recorded.
        recorded: mean share of the possible joint actions that were recorded, weighted likewise.
        components: mean number of components, weighted likewise.
        clusters: of each cluster, the most rows first.
        how: what was counted: states, clusters of states, bins of actions, samples.
    """

    share: float | None
    recorded: float
    components: float
    clusters: tuple[StateCoverage, ...]
    how: str

    def to_dict(self) -> dict[str, Any]:
        """Return the means, JSON-ready."""
        share = None if self.share is None else round(self.share, 6)
        numbers = {"recorded": round(self.recorded, 6), "components": round(self.components, 6)}
        return {"share": share, **numbers, "clusters": len(self.clusters), "how": self.how}


@checked
def stitchable_share(
    dataset: OfflineDataset,
    *,
    clusters: Annotated[int, COUNT] | Literal["exact", "auto"] = "auto",
    bins: Annotated[int | None, SEVERAL] = None,
    rows: Annotated[int, COUNT] = 100_000,
    samples: Annotated[int, _SAMPLES] = 1000,
    seed: Annotated[int, SEED] = 0,
) -> StitchableShare:
    """Return the share of the unrecorded joint actions whose value an additive critic can know.

    In a state, a critic ``Q(s, a) = Σ_i q_i(s, a_i)`` that is right on the recorded joint actions knows the value of
    another one, whatever the ``q_i`` are, exactly if the latter's indicator row (one-hot of each agent's action, side
    by side) lies in the row space of the recorded ones' indicator rows. For two agents that is: both actions lie in one
    component of the graph whose edges are the recorded joint actions. So two teams that share no action know nothing of
    their mixtures, and one joint action of an agent of each makes all of them known. Whether the true values *are*
    additive is another question, and so is what a critic makes of values that are not determined.

    States: each by itself, if there are no more than 2,000 and each has 10 rows on average; otherwise clusters by
    k-means of the standardized states (up to 64, of 50 rows on average; fewer where agents have many actions), each
    taken for one state; where agents take turns, one cluster can have joint actions that none of its states allows.
    Actions: discrete ones that are legal in some row of the cluster; of continuous ones each
    component falls into ``bins`` intervals of equal width between the smallest and the largest recorded, and an agent's
    possible actions are the combinations that it recorded anywhere. Two agents are counted exactly, more of them up to
    20,000 combinations of recorded actions in a cluster; beyond, ``samples`` of the unrecorded joint actions are drawn.
    Where the agents of a cluster play more than 1,000 different actions together, what is not determined is found by
    iterations instead of a decomposition; ``how`` says so if they end early, and the share is a lower bound then.
    Rows that do not count in training are left out.

    Args:
        dataset: of two agents or more.
        clusters: number of clusters of states; ``"exact"``: each state by itself.
        bins: of a component of continuous actions; by default up to 5, so that an agent has about 32 actions.
        rows: at most so many rows are looked at, drawn without replacement.
        samples: of unrecorded joint actions where they are too many to be counted.
        seed: of all that is drawn.

    Raises:
        ValueError: the dataset has one agent, or ``bins`` is given for discrete actions.

    Examples:
        >>> import torch
        >>> from torchrl_marl_offline.data import from_arrays, stitchable_share
        >>> teams = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3], [3, 2], [3, 3]])
        >>> def share(actions):
        ...     ones = torch.ones(len(actions))
        ...     seen = torch.zeros(len(actions), 2, 1)
        ...     ends = {"rewards": ones, "terminals": ones.bool()}
        ...     data = from_arrays(observations=seen, actions=actions, n_actions=4, **ends)
        ...     return stitchable_share(data).share
        >>> share(teams), share(torch.cat([teams, torch.tensor([[0, 2]])]))
        (0.0, 1.0)
    """
    spec = dataset.spec
    if spec.n_agents < 2:
        raise ValueError("stitchable_share is about joint actions; the dataset has one agent.")
    if spec.discrete and bins is not None:
        raise ValueError("bins are of continuous actions; leave them out.")
    generator = torch.Generator().manual_seed(seed)
    index = dataset.data.get(MASK).reshape(len(dataset), -1).any(-1).cpu().nonzero().squeeze(-1)
    if len(index) == 0:
        raise ValueError("no row of the dataset counts in training, so that nothing was recorded; correct its masks.")
    how = []
    if len(index) > rows:
        how.append(f"{rows:,} of {len(index):,} rows")
        index = index[torch.randperm(len(index), generator=generator)[:rows]].sort().values
    action = dataset.data.get(ACTION)[index].cpu()
    if not spec.discrete:
        bins = max(2, min(5, int(_BINS_OF_AN_AGENT ** (1 / spec.action_size)))) if bins is None else bins
        action = _binned(action, bins)
    action = action.numpy()
    legal = None
    if spec.discrete:
        mask = dataset.data.get(ACTION_MASK, None)
        legal = None if mask is None else mask[index].cpu().numpy()
    state = dataset.data.get(STATE)[index].cpu()
    cluster, words = _clusters(state, clusters, columns=spec.n_agents * (int(action.max()) + 1), generator=generator)
    how.append(words)
    if not spec.discrete:
        how.append(f"{bins} bins of each component")
    sizes = [spec.action_size if spec.discrete else len(np.unique(own)) for own in action.T]
    found, notes = [], set()
    order = np.argsort(cluster, kind="stable")
    chance = np.random.default_rng(seed)
    for part in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        if legal is None:
            allowed = [np.arange(size) for size in sizes]
        else:  # what was played was allowed, whatever the mask says
            open_to = legal[part].any(0)
            allowed = [np.union1d(np.flatnonzero(open_to[i]), action[part, i]) for i in range(spec.n_agents)]
        coverage, told = _coverage(action[part], allowed, samples, chance)
        notes |= told
        found.append(coverage)
    if "sampled" in notes:
        how.append(f"{samples:,} joint actions sampled where they are too many")
    if "unfinished" in notes:
        how.append("a lower bound, as the search in too many different actions was ended")
    found.sort(key=lambda coverage: -coverage.rows)
    unknown = [coverage for coverage in found if coverage.determined is not None]
    return StitchableShare(
        _mean(unknown, [coverage.determined for coverage in unknown]) if unknown else None,
        _mean(found, [coverage.recorded / coverage.possible for coverage in found]),
        _mean(found, [float(coverage.components) for coverage in found]),
        tuple(found),
        ", ".join(how),
    )


def _mean(coverages: list[StateCoverage], values: list[float]) -> float:
    return float(np.average(values, weights=[coverage.rows for coverage in coverages]))


def _binned(action: torch.Tensor, bins: int) -> torch.Tensor:
    """Return a number for each agent's combination of bins, from 0 without gaps: ``[T, n, a]`` -> int64 ``[T, n]``."""
    action = action.double()
    low, high = action.amin(0), action.amax(0)  # [n, a]
    width = torch.where(high > low, (high - low) / bins, 1.0)
    place = ((action - low) / width).long().clamp(0, bins - 1)  # [T, n, a]
    numbers = [torch.unique(own, dim=0, return_inverse=True)[1] for own in place.unbind(1)]
    return torch.stack(numbers, -1)


def _clusters(
    state: torch.Tensor, clusters: int | str, *, columns: int, generator: torch.Generator
) -> tuple[np.ndarray, str]:
    """Return the cluster of each row, ``[T]``, and how they were found."""
    if clusters in ("exact", "auto"):
        hashes = mixed(leaf_hashes(state, STATE)).view(np.int64)
        states, number = torch.unique(torch.from_numpy(hashes), return_inverse=True)
        if clusters == "exact" or len(states) <= min(_STATES, len(state) // _ROWS_A_STATE) or len(states) == 1:
            return number.numpy(), _counted(len(states), "state")
        wanted = min(_CLUSTERS, len(state) // _ROWS_A_CLUSTER, int(_WORK / columns**3))
    else:
        wanted = clusters
    wanted = max(1, min(int(wanted), len(state)))
    number = _k_means(state.float(), wanted, generator)
    return number.numpy(), f"{_counted(len(torch.unique(number)), 'cluster')} of states"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _k_means(rows: torch.Tensor, count: int, generator: torch.Generator, rounds: int = 10) -> torch.Tensor:
    """Return the nearest of ``count`` centres of each row, ``[T]``, by Lloyd's algorithm from rows that are drawn."""
    rows = rows.nan_to_num(neginf=0.0, posinf=0.0)  # padding of short states
    spread = rows.std(0, correction=0)
    rows = (rows - rows.mean(0)) / torch.where(spread > 0, spread, 1.0)
    centres = rows[torch.randperm(len(rows), generator=generator)[:count]]
    nearest = torch.zeros(len(rows), dtype=torch.int64)
    for _ in range(rounds):
        nearest = (centres.square().sum(-1) - 2 * rows @ centres.T).argmin(-1)  # [T]
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        members = torch.bincount(nearest, minlength=count).unsqueeze(-1)
        centres = torch.where(members > 0, sums / members.clamp_min(1), centres)
    return nearest


def _coverage(
    action: np.ndarray, allowed: list[np.ndarray], samples: int, chance: np.random.Generator
) -> tuple[StateCoverage, set[str]]:
    """Count one cluster, and say what was not: actions ``[R, n]``, and those that each agent could have taken."""
    joint = np.unique(action, axis=0)
    played = [np.unique(own) for own in joint.T]
    own = np.stack([np.searchsorted(actions, column) for actions, column in zip(played, joint.T)], 1)  # [J, n]
    sizes = [len(actions) for actions in played]
    vertices = own + np.cumsum([0, *sizes[:-1]])
    component = _components(vertices, sum(sizes))
    possible, recorded = math.prod(map(len, allowed)), len(joint)
    notes = set()
    if possible == recorded:
        share = None
    elif len(sizes) == 2:
        in_both = (np.bincount(part, minlength=sum(sizes)) for part in np.split(component, sizes[:1]))
        share = (int(math.prod(in_both).sum()) - recorded) / (possible - recorded)
    else:
        free, is_found = _undetermined(vertices, sizes, chance)
        notes = set() if is_found else {"unfinished"}
        parts = np.split(free, np.cumsum(sizes)[:-1])
        if free.shape[1] == 0:  # all that the agents have played is known in any combination
            share = (math.prod(sizes) - recorded) / (possible - recorded)
        elif math.prod(sizes) <= _ENUMERATED:
            total = parts[0]
            for part in parts[1:]:
                total = (total[:, None] + part[None]).reshape(-1, free.shape[1])  # [cells so far, d]
            share = (int((np.abs(total).max(-1) < _ZERO**0.5).sum()) - recorded) / (possible - recorded)
        else:
            notes.add("sampled")
            share = _sampled(parts, joint, played, allowed, samples, chance)
    return StateCoverage(len(action), recorded, possible, len(np.unique(component)), share), notes


def _components(vertices: np.ndarray, count: int) -> np.ndarray:
    """Return the smallest vertex of each vertex's component, ``[V]``: hyperedges ``[J, n]`` hold vertices together."""
    label = np.arange(count)
    while True:
        smaller = label.copy()
        np.minimum.at(smaller, vertices, label[vertices].min(1, keepdims=True))
        smaller = smaller[smaller]
        if (smaller == label).all():
            return label
        label = smaller


def _undetermined(vertices: np.ndarray, sizes: list[int], chance: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Return directions of values that the indicator rows do not see, ``[Σ sizes, d]``, and whether they are exact.

    They are all of them, or some that are drawn. A joint action of recorded actions is determined where none moves it.
    """
    if sum(sizes) <= _DENSE:
        return _null_space(vertices, sizes), True
    return _drawn_of_null_space(vertices, sum(sizes), chance)


def _null_space(vertices: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Return a basis of what the indicator rows do not determine, ``[Σ sizes, d]``.

    Moving a constant from one agent's values to another's changes no joint action, and is not in it.
    """
    columns = sum(sizes)
    agent = np.repeat(np.eye(len(sizes)), sizes, axis=0)  # [Σ sizes, n]
    trivial = agent[:, 1:] - agent[:, :-1]
    gram = trivial @ trivial.T
    for some in np.array_split(vertices, 1 + len(vertices) // 10_000):
        indicators = np.zeros((len(some), columns))
        np.put_along_axis(indicators, some, 1.0, axis=1)
        gram += indicators.T @ indicators
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, values < _ZERO * max(values[-1], 1.0)]


def _drawn_of_null_space(vertices: np.ndarray, columns: int, chance: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Return normal draws projected on what the indicator rows do not determine, ``[columns, d]``, and if they are.

    By conjugate gradients on the normal equations (CGLS), each draw by itself.
    """
    places = torch.from_numpy(vertices)

    def seen(values: torch.Tensor) -> torch.Tensor:  # [columns, d] -> [J, d]
        return sum(values[place] for place in places.unbind(1))

    def spread(rows: torch.Tensor) -> torch.Tensor:  # [J, d] -> [columns, d]
        onto = torch.zeros(columns, _DIRECTIONS, dtype=torch.float64)
        for place in places.unbind(1):
            onto.index_add_(0, place, rows)
        return onto

    free = torch.from_numpy(chance.standard_normal((columns, _DIRECTIONS)))
    left = -seen(free)
    slope = way = spread(left)
    steep = first = slope.square().sum(0)
    for _ in range(min(_ITERATIONS, max(50, int(_LOOKS / (vertices.size * _DIRECTIONS))))):
        if (steep <= 1e-24 * first).all():
            return free.numpy(), True
        along = seen(way)
        step = steep / along.square().sum(0).clamp_min(1e-300)
        free, left = free + step * way, left - step * along
        slope = spread(left)
        before, steep = steep, slope.square().sum(0)
        way = slope + steep / before.clamp_min(1e-300) * way
    return free.numpy(), False


def _sampled(
    parts: list[np.ndarray],
    joint: np.ndarray,
    played: list[np.ndarray],
    allowed: list[np.ndarray],
    samples: int,
    chance: np.random.Generator,
) -> float | None:
    """Return the share of drawn unrecorded joint actions that are determined; ``None`` where none is drawn."""
    drawn = np.stack([chance.choice(actions, samples) for actions in allowed], 1)  # [samples, n]
    recorded = set(map(bytes, np.ascontiguousarray(joint)))
    drawn = drawn[[bytes(row) not in recorded for row in np.ascontiguousarray(drawn.astype(joint.dtype))]]
    if len(drawn) == 0:
        return None
    total, there = np.zeros((len(drawn), parts[0].shape[1])), np.ones(len(drawn), dtype=bool)
    for part, actions, column in zip(parts, played, drawn.T):
        place = np.searchsorted(actions, column).clip(max=len(actions) - 1)
        there &= actions[place] == column
        total += part[place]
    return float((there & (np.abs(total).max(-1) < _ZERO**0.5)).mean())
