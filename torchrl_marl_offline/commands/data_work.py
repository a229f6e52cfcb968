"""What the commands of ``marl-offline data`` do."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from typing import Any

from torchrl_marl_offline.commands.hub_options import pulling, pushing
from torchrl_marl_offline.data.hub import pull_dataset, push_dataset
from torchrl_marl_offline.data.published.cards import SOURCES, list_datasets
from torchrl_marl_offline.data.quality.card import can_be_described, describe
from torchrl_marl_offline.data.quality.inspection import compare
from torchrl_marl_offline.data.quality.loading import load_inspected
from torchrl_marl_offline.data.registry import convert_dataset, export_dataset, inspect_source, load_dataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetWarning
from torchrl_marl_offline.data.transitions.validation import validate
from torchrl_marl_offline.recording.graded import QUALITIES, record


def with_warnings(parsed: argparse.Namespace) -> int:
    """Do what was asked, and say warnings of the data in one line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DatasetWarning)
        warnings.showwarning = _show_warning
        return globals()[parsed.run](parsed)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _options(parsed: argparse.Namespace) -> dict[str, Any]:
    options = {}
    for text in parsed.option:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--option needs NAME=VALUE, got {text!r}.")
        if name in options:
            raise ValueError(f"--option {name} is given twice; leave one out.")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError as error:
            if value[:1] in ("{", "["):
                wanted = """'task_options={"max_steps": 20}'"""
                raise ValueError(f"--option {name}={value:.60} is no JSON ({error}); give it as {wanted}.") from None
            options[name] = value
    if getattr(parsed, "columns", None) is not None:
        options["columns"] = parsed.columns
    return options


def inspect(parsed: argparse.Namespace) -> int:
    """Say what is in datasets and what is wrong with them."""
    if parsed.picture and len(parsed.sources) > 1:
        raise ValueError("--picture draws one SOURCE; inspect the others by themselves.")
    if parsed.figures and not parsed.picture:
        raise ValueError("--figures is for the page of --picture; name its FILE, or leave --figures out.")
    options, reports, texts, readable, failed = _options(parsed), [], [], [], False
    for source in parsed.sources:
        inspection, dataset = inspect_source(source, lambda source=source: load_dataset(source, **options))
        failed |= bool(inspection.problems if parsed.strict else inspection.of_severity("error"))
        if dataset is None:
            reports.append(inspection.to_dict())
            texts.append(str(inspection))
            continue
        card = describe(dataset, inspection) if can_be_described(inspection) else inspection
        reports.append(card.to_dict())
        texts.append(str(card))
        readable.append((source, dataset))
        if parsed.picture and card is not inspection:
            card.save_picture(parsed.picture, parsed.figures)
    for index, (first, a) in enumerate(readable):
        for second, b in readable[index + 1 :]:
            for finding in compare(a, b):
                failed |= parsed.strict and finding.severity != "note"
                reports.append({"compared": [first, second], **finding.__dict__})
                texts.append(f"{first} and {second}\n{finding}")
    if parsed.json:
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1, ensure_ascii=False))
    else:
        print("\n\n".join(texts))
    return int(failed)


def convert(parsed: argparse.Namespace) -> int:
    """Write a dataset as a folder."""
    options = _options(parsed)
    if parsed.target.exists() and not parsed.overwrite:
        raise FileExistsError(f"{parsed.target} already exists; pass --overwrite or choose another folder.")
    if parsed.strict:
        dataset = load_inspected(
            parsed.source,
            lambda: load_dataset(parsed.source, **options),
            repair=parsed.repair,
            strict=True,
        )
        dataset.save(parsed.target, overwrite=parsed.overwrite)
    else:  # in blocks, however large it is
        convert_dataset(parsed.source, parsed.target, repair=parsed.repair, overwrite=parsed.overwrite, **options)
        dataset = load_dataset(parsed.target, verify=False)  # it warns of what the conversion found
    for sentence in dataset.metadata.get("repairs", []):
        print(f"repaired: {sentence}")
    print(f"wrote {len(dataset)} transitions in {dataset.n_episodes} episodes to {parsed.target}")
    return 0


def export(parsed: argparse.Namespace) -> int:
    """Write a dataset in a form that others read."""
    dataset = load_dataset(parsed.source, **_options(parsed))
    path = export_dataset(dataset, parsed.target, format=parsed.format, overwrite=parsed.overwrite)
    print(f"wrote {path}")
    return 0


def list_published(parsed: argparse.Namespace) -> int:
    """List the published datasets."""
    cards = list_datasets(parsed.source, parsed.task)
    if parsed.json:
        print(json.dumps({name: asdict(card) for name, card in cards.items()}, indent=1, ensure_ascii=False))
        return 0
    width = max(map(len, cards), default=0)
    print(f"{'':{width}}  transitions  episodes  agents    return  SACo  license     paper             evaluated in")
    for name, card in cards.items():
        if not card.is_known:
            figures = f"{'not fetched':>11}  {'-':>8}  {card.n_agents:6}  {'-':>8}  {'-':>4}"
        else:
            saco = "-" if card.joint_saco is None else f"{card.joint_saco:.2f}"
            rows, episodes = card.seeds * card.transitions, card.seeds * card.episodes
            figures = f"{rows:11,}  {episodes:8,}  {card.n_agents:6}  {card.returns[0]:8.2f}  {saco:>4}"
        rights = f"{card.license:10}  arXiv:{card.paper:10}"
        print(f"{name:{width}}  {figures}  {rights}  {card.env or '-'}")
    return 0


def verify(parsed: argparse.Namespace) -> int:
    """Compare every file with its checksum, and check every value."""
    options = _options(parsed)
    if parsed.source.partition(":")[0] in SOURCES:
        options.setdefault("verify", True)
    dataset = load_dataset(parsed.source, inspect=False, **options)
    validate(dataset)
    print(f"{parsed.source}: {len(dataset)} transitions in {dataset.n_episodes} episodes, every check passed")
    return 0


def push(parsed: argparse.Namespace) -> int:
    """Publish a dataset folder on the hub."""
    print(push_dataset(parsed.folder, parsed.name, **pushing(parsed)))
    return 0


def pull(parsed: argparse.Namespace) -> int:
    """Fetch a dataset from the hub."""
    print(pull_dataset(parsed.name, parsed.target, **pulling(parsed)))
    return 0


def record_graded(parsed: argparse.Namespace) -> int:
    """Record datasets of graded quality."""
    options = _options(parsed)
    own = {"qualities": parsed.qualities or QUALITIES, "transitions": parsed.transitions, "seed": parsed.seed}
    if twice := sorted(options.keys() & (own.keys() | {"task", "folder"})):
        raise ValueError(f"--option {twice[0]}=... is an argument of its own; give it as such, see --help.")
    for quality, dataset in record(parsed.task, parsed.folder, **own, **options).items():
        returns = dataset.episode_returns()
        print(
            f"{quality:14} {len(dataset):>8} transitions in {dataset.n_episodes:>6} episodes, return "
            f"{returns.mean():.4g} ± {returns.std(correction=0):.4g}, {parsed.folder / quality}"
        )
    return 0
