"""What the commands of ``marl-offline benchmark`` do."""

from __future__ import annotations

import argparse
import json
import os

from torchrl_marl_offline.study.runner import Machine
from torchrl_marl_offline.suites import SUITES, SuiteEntry, make_suite, run_suite, suite_of, write_suite_report

RECORDINGS = "TORCHRL_MARL_OFFLINE_DATA"
"""Environment variable that names a folder of recordings by others."""


def list_suites(parsed: argparse.Namespace) -> int:
    """List the suites, or the datasets of one."""
    if parsed.suite is None:
        for suite in SUITES.values():
            core = sum(entry.core for entry in suite.entries)
            more = len(suite.entries) - core
            print(f"{suite.name}: {suite.about} {core} datasets, and {more} with --more.")
        return 0
    entries = suite_of(parsed.suite).entries
    if parsed.json:
        print(json.dumps([_facts(entry) for entry in entries], indent=1))
        return 0
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        print(f"{entry.name:{width}}  {'' if entry.core else '(--more) '}{entry.about}")
    return 0


def _facts(entry: SuiteEntry) -> dict[str, object]:
    names = ("name", "group", "task", "core", "about")
    return {name: getattr(entry, name) for name in names} | {"task_options": dict(entry.options)}


def make(parsed: argparse.Namespace) -> int:
    """Make what is not there yet."""
    recordings = parsed.recordings or os.environ.get(RECORDINGS) or None
    options = {"more": parsed.more, "only": parsed.only, "seed": parsed.seed, "recordings": recordings}
    outcome = make_suite(suite_of(parsed.suite), parsed.output, say=_say, **options)
    _say(
        f"{len(outcome.made)} datasets were made, {len(outcome.found)} were there, {len(outcome.failed)} failed; "
        f"cards: {outcome.folder / 'README.md'}"
    )
    return 1 if outcome.failed else 0


def run(parsed: argparse.Namespace) -> int:
    """Train what is left, and write the report of what is finished."""
    suite = suite_of(parsed.suite)
    outcome = run_suite(
        suite,
        parsed.output,
        algorithms=parsed.algorithms,
        only=parsed.only,
        seeds=parsed.seeds,
        updates=parsed.updates,
        episodes=parsed.episodes,
        runs=parsed.runs,
        machine=Machine(workers=parsed.workers, threads=parsed.threads, hours=parsed.hours),
        say=_say,
    )
    if outcome.finished:
        report(parsed)
    if outcome.failed:
        return 1
    return 130 if outcome.interrupted and outcome.remaining else 3 if outcome.remaining else 0


def report(parsed: argparse.Namespace) -> int:
    """Write the report."""
    files = write_suite_report(suite_of(parsed.suite), parsed.output, runs=parsed.runs)
    _say(f"wrote {files.html}, {files.markdown} and {files.picture}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
