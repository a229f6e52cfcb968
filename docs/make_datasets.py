"""The page of the published datasets, made of their cards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from markup import DASH, inline, simple_table, table

from torchrl_marl_offline.data.published.cards import SOURCES, DatasetCard, list_datasets
from torchrl_marl_offline.data.quality import inspection

PAGE = Path(__file__).parent / "datasets.md"
PUBLISHERS = {
    "og_marl": "OG-MARL (Formanek et al. 2023, [arXiv:2302.00521](https://arxiv.org/abs/2302.00521))",
    "omiga": "OMIGA (Wang et al. 2023, [arXiv:2307.11620](https://arxiv.org/abs/2307.11620))",
    "omar": "OMAR (Pan et al. 2022, [arXiv:2111.11188](https://arxiv.org/abs/2111.11188))",
    "cfcql": "CFCQL (Shao et al. 2023, [arXiv:2309.12696](https://arxiv.org/abs/2309.12696))",
    "alberdice": "AlberDICE (Matsunaga et al. 2023, [arXiv:2311.02194](https://arxiv.org/abs/2311.02194))",
}
"""Who published a source first; all of them are fetched from OG-MARL's repository of datasets."""

HEADER = ("name", "environment here", "transitions", "episodes", "agents", "observation", "state", "actions")
HEADER = (*HEADER, "return: mean ± std [min, max]", "SACo", "score")
NO_BREAK = "\u00a0"
"""Between the numbers of a cell, which would be broken into lines in a wide table."""

OPENING = """# Published datasets

{count} recorded sets of {tasks} tasks are known by name. `load_dataset("NAME")` fetches one, checks it against its card
and inspects it; `marl-offline data list` and `list_datasets()` print what stands here. Fetching needs the extras
`vaults` and `hub` of this library, and a network.

Numbers are those of the published cards: transitions and episodes of all recordings of a set together, the width of an
observation and of the state, the width of a continuous action or the number of discrete ones. SACo is the number of
different pairs of state and joint action, divided by that of transitions. The score is the data's mean return between
two reference returns, 0 and 100, where the field has such. "{dash}" stands where nothing is published: such a set is
described once it has been loaded.

What may be wrong with a set is found in the data itself: see [defects](#defects).

This page is made of the cards by `python docs/make_pages.py`.
"""


def page() -> str:
    """Return the whole page."""
    with TemporaryDirectory() as empty:  # what this machine has loaded before is no part of the page
        cards = list_datasets(cache=empty)
    tasks = {(card.source, card.task) for card in cards.values()}
    parts = [OPENING.format(count=len(cards), tasks=len(tasks), dash=DASH)]
    for source in SOURCES:
        parts.append(section(source, [card for card in cards.values() if card.source == source]))
    return "\n".join([*parts, references(cards.values()), defects()])


def section(source: str, cards: Sequence[DatasetCard]) -> str:
    """Return the table of one source, and why some of its sets have no environment here."""
    text = f"## {source}\n\nPublished by {PUBLISHERS[source]}.\n\n{table(HEADER, [row(card) for card in cards])}\n"
    reasons: dict[str, list[str]] = {}
    for card in cards:
        if card.env is None:
            tasks = reasons.setdefault(card.why_no_env, [])
            if f"`{card.task}`" not in tasks:
                tasks.append(f"`{card.task}`")
    lines = [f"- {', '.join(tasks)}: {reason}." for reason, tasks in reasons.items()]
    return text + ("\nWithout an environment here:\n\n" + "\n".join(lines) + "\n" if lines else "")


def row(card: DatasetCard) -> list[str]:
    """Return one set's cells."""

    def number(value: int | None) -> str:
        return DASH if value is None else f"{value:,}"

    name = f"`{card.id}`" if card.quality else f"`{card.id}` (qualities not published)"
    total = [None if value is None else card.seeds * value for value in (card.transitions, card.episodes)]
    sizes = [*total, card.n_agents, card.observation_size, card.state_size]
    actions = f"{card.action_size}{NO_BREAK}{'discrete' if card.discrete else 'continuous'}"
    returns = DASH
    if card.returns is not None:
        mean, deviation, low, high = card.returns
        returns = f"{mean:,g} ± {deviation:,g} [{low:,g}, {high:,g}]".replace(" ", NO_BREAK)
    saco = DASH if card.joint_saco is None else f"{card.joint_saco:.2f}"
    score = DASH if card.normalized_score is None else f"{card.normalized_score:.0f}"
    env = f"`{card.env}`" if card.env else DASH
    return [name, env, *map(number, sizes), actions, returns, saco, score]


def references(cards: Iterable[DatasetCard]) -> str:
    """Return the table of the returns that score 0 and 100."""
    rows = {
        card.task: [f"`{card.task}`", *(f"{value:,g}" for value in card.reference_returns), card.reference_source]
        for card in cards
        if card.reference_returns is not None
    }
    return f"## Reference returns\n\n{table(['task', 'score 0', 'score 100', 'source'], list(rows.values()))}\n"


def defects() -> str:
    """Return the table of what inspection finds, from the docstring of its module."""
    header, *rows = simple_table(inspection.__doc__.splitlines())
    cells = [list(map(inline, row)) for row in rows]
    return f"""## Defects

`marl-offline data inspect NAME` lists what is wrong with a dataset, published or your own, with counts and remedies.
`load_dataset` warns of it, `repair=True` mends what can be mended, `strict=True` refuses it.

{table(header, cells)}

An `error` makes a dataset unfit for training, a `warning` is likely to mislead it, a `note` is good to know.
"""
