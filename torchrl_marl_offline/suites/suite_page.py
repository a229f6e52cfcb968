"""The page of a suite that was made: one line a dataset, and each card in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_marl_offline.core.document import Block, Heading, Link, Table, Text, to_markdown
from torchrl_marl_offline.suites.entries import Suite

SCALE = "On the scale of scores 0 is a uniformly random team and 1 the optimum."
HEADER = ("dataset", "optimum", "known by", "random team", "best recorded", "as a score", "mean recorded", "stitchable")


def suite_page(suite: Suite, cards: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return the Markdown of a suite's folder.

    Args:
        suite: its table.
        cards: of the datasets that are there, with ``bytes`` and ``seconds``.
        folder: where the page lies.
    """
    size = sum(card["bytes"] for card in cards) / 2**20
    seconds = [card["seconds"] for card in cards if card["seconds"] is not None]
    seeds = ", ".join(map(str, sorted({card["seed"] for card in cards})))
    text = (
        f"{suite.about} {len(cards)} of {len(suite.entries)} datasets are here, {size:.1f} MiB, seed {seeds or '-'}; "
    )
    text += f"making {len(seconds)} of them took {sum(seconds):.0f} s. {SCALE}"
    blocks: list[Block] = [Heading(f"{suite.name}, version {suite.version}", 1), Text(text)]
    if cards:
        blocks.append(Table(HEADER, [_line(card) for card in cards]))
    for card in cards:
        blocks += [Heading(card["name"]), Text(card["about"]), Table(["fact", "value"], list(_facts(card)))]
    return to_markdown(blocks, folder)


def _line(card: Mapping[str, Any]) -> list[str | Link]:
    share = card["stitchable"]["share"]
    values = [card["random"]["value"], card["best_recorded"]["value"], card["normalized"]["best_recorded"]]
    return [
        Link(card["name"], card["name"]),
        f"{card['optimum']['value']:.4g}",
        card["optimum"]["kind"],
        *(f"{value:.4g}" for value in values),
        f"{card['recorded_return']:.4g}",
        "all recorded" if share is None else f"{share:.3f}",
    ]


def _facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    stitchable, options = card["stitchable"], card["task_options"]
    told = ", ".join(f"{name} {value}" for name, value in options.items())
    facts = {
        "task": card["task"] + (f", {told}" if told else ""),
        "agents": str(card["agents"]),
        "behaviour": str(card["behaviour"]),
        "data": f"{card['transitions']:,} transitions in {card['episodes']:,} episodes, {card['bytes']:,} bytes",
        "seed": str(card["seed"]),
        "optimum": f"{card['optimum']['value']:.6g}, {card['optimum']['kind']}: {card['optimum']['how']}",
        "random team": f"{card['random']['value']:.6g}, {card['random']['how']}",
        "best recorded": f"{card['best_recorded']['value']:.6g}, {card['best_recorded']['how']}",
        "mean recorded": f"{card['recorded_return']:.6g}",
        "stitchable share": f"{'all recorded' if stitchable['share'] is None else stitchable['share']}, "
        f"{stitchable['how']}",
    }
    if shares := card.get("shares"):
        gini = "none" if shares["gini"] is None else f"{shares['gini']:.4g}"
        facts["recorded shares"] = f"sum {shares['total']:.6g}, least {shares['least']:.6g}, Gini {gini}"
    return list(facts.items())
