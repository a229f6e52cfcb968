"""Policies on the Hugging Face Hub: published with what the run says of them, and fetched."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from torchrl_marl_offline.algorithms.algorithm import ALGORITHMS, settings_of
from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.hub_client import (
    MARK,
    PREFIX,
    README,
    Repository,
    check_login,
    escaped,
    front_matter,
    markdown_table,
    push,
    without_paths,
)
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.evaluation.training_videos import VIDEOS
from torchrl_marl_offline.training.run.fetched_policy import POLICY_FILE, fetched_policy
from torchrl_marl_offline.training.run.logging import CsvTable, Row, read_csv
from torchrl_marl_offline.training.run.run_settings import CONFIG_FILE
from torchrl_marl_offline.training.run.saved_policies import SavedPolicy, load_policy, policy_file, save_policy

EVAL_FILE, VIDEO_FILE, _SUMMARY_FILE = "eval.csv", "video.gif", "summary.json"
_LAST_ROWS = 5
_NAME = re.compile(r"[a-z]\w{0,63}", re.ASCII)
OF_RUNS = frozenset(
    [
        *("actor_every", "anneal", "batch_size", "bounds", "capacity", "checkpoint_every", "clip_grad_norm", "cloning"),
        *("compile", "dataset", "episodes", "eval_episodes", "eval_every", "exploration", "figures", "from_"),
        *(
            "critic_first",
            "grid",
            "hindsight",
            "hindsight_per",
            "hindsight_share",
            "logger",
            "lr",
            "lr_schedule",
            "normalize_inputs",
            "num_envs",
            "offline_fraction",
            "online",
            "online_steps",
            "precision",
        ),
        *("preset", "profile", "seed", "seeds", "started_with", "steps", "steps_per_round", "task", "tau"),
        *("updates_per_round", "video_every", "video_format", "video_size"),
    ]
)
"""Settings of a run that are published, beside the algorithm's; those of the machine are not."""
_OF_EVERY_RUN = {"batch_size", "preset", "seed", "steps"}
_TAGS = ("offline-rl", "multi-agent", "torchrl", "reinforcement-learning")


@dataclass(frozen=True)
class PublishedRun:
    """What of a run is published beside its policy.

    Attributes:
        config: its settings, without what is of the machine.
        rows: the last ones of ``eval.csv``, of each evaluator.
        finals: ``"method, way"`` -> the evaluation after training.
        video: a GIF, or ``None``.
    """

    config: Mapping[str, Any]
    rows: Sequence[Row]
    finals: Mapping[str, Mapping[str, Any]]
    video: Path | None

    @classmethod
    def around(cls, file: Path, named: Path) -> PublishedRun:
        """Look at what lies beside a policy's file, and for settings and results up to the folder that was named.

        A file that is not called ``policy.pt``, or that was named itself and has no settings of a run beside it, is of
        no run: what lies beside it is left alone.

        Raises:
            ValueError: one of the files is damaged.
        """
        nothing = cls({}, (), {}, None)
        if file.name != POLICY_FILE:
            return nothing
        folders = [file.parent]
        while named.is_dir() and folders[-1] != named and named in folders[-1].parents:
            folders.append(folders[-1].parent)
        config = _of_a_run(_first(folders, CONFIG_FILE))
        if not config and not named.is_dir():
            return nothing
        summary = _first(folders, _SUMMARY_FILE)
        finals = {name: final for name, told in summary.items() if (final := _final(told))}
        table, videos = file.parent / EVAL_FILE, [video for folder in folders for video in _videos(folder)]
        rows = _last_of_each(read_csv(table)) if table.is_file() else []
        newest = max(videos, key=lambda video: video.stat().st_mtime, default=None)
        return cls(without_paths(config), without_paths(rows), without_paths(finals), newest)


def _of_a_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a file of settings what is known; nothing where it is no run's, as other programs have such files."""
    algorithm, settings = config.get("algorithm"), config.get("settings", {})
    if not isinstance(algorithm, str) or not isinstance(settings, dict):
        return {}
    if algorithm in ALGORITHMS:
        known = settings_of(algorithm).keys()
    elif _NAME.fullmatch(algorithm) and config.keys() >= _OF_EVERY_RUN:  # one that is not registered here
        known = {name for name in settings if _NAME.fullmatch(name)}
    else:
        return {}
    own = {name: value for name, value in settings.items() if name in known}
    rest = {name: value for name, value in config.items() if name in OF_RUNS}
    return {"algorithm": algorithm, "settings": own, **rest}


def _final(told: Any) -> dict[str, Any]:
    final = told.get("final") if isinstance(told, dict) else None
    return {k: v for k, v in final.items() if isinstance(v, int | float)} if isinstance(final, dict) else {}


def _videos(folder: Path) -> list[Path]:
    """Return the GIFs that a run wrote, links left out: they may lead to anything."""
    found = [*(folder / VIDEOS).glob("*.gif"), folder / VIDEO_FILE]
    return [video for video in found if video.is_file() and not video.is_symlink()]


def _first(folders: Sequence[Path], name: str) -> dict[str, Any]:
    for file in (folder / name for folder in folders):
        if file.is_file():
            try:
                return dict(read_json(file).items())
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{file} is damaged ({error}); restore it, or move it away.") from error
    return {}


def _last_of_each(rows: Sequence[Row]) -> list[Row]:
    by_evaluator: dict[Any, list[Row]] = {}
    for row in rows:
        by_evaluator.setdefault(row.get("evaluator"), []).append(row)
    kept = [row for own in by_evaluator.values() for row in own[-_LAST_ROWS:]]
    return sorted(kept, key=lambda row: row["step"])


@checked
def push_policy(
    source: str | Path,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    licence: str | None = None,
    message: str | None = None,
) -> str:
    """Publish a policy on the Hugging Face Hub, with a card and what its run says of it, in one commit.

    Uploaded are ``policy.pt``, a card and, of a run, what is known of its ``config.json``, the last rows of
    ``eval.csv`` and the newest GIF (``videos/*.gif``, ``video.gif``). A file without a run's
    ``config.json`` beside it is published alone. Of absolute paths only the last name is left; settings of the machine
    are left out.

    Args:
        source: a file of :func:`~torchrl_marl_offline.save_policy`, or a run's folder.
        name: of the model repository, ``"OWNER/NAME"``.
        private: make the repository private; one that is there and public is refused.
        revision: the branch to write to; by default ``main``.
        licence: by the hub's short name, ``"mit"``; by default none.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: there is no policy.
        ValueError: the policy, or a file of its run, is damaged.
        HubError: nobody is logged in, the repository may not be written to or has files that no push wrote, or the hub
            cannot be reached.
        ImportError: huggingface_hub is not installed.

    Example:
        >>> push_policy("runs/omar", "me/omar-spread", licence="mit")  # doctest: +SKIP
        'https://huggingface.co/me/omar-spread/commit/8c1f...'
    """
    repository, file = Repository.named("model", name, revision), policy_file(source)
    saved = load_policy(file)
    run = PublishedRun.around(file.absolute(), user_path(source).absolute())
    check_login(repository)
    files: dict[str, bytes | Path] = {POLICY_FILE: _without_paths(saved, file)}
    if run.config:
        files[CONFIG_FILE] = (json.dumps(run.config, indent=2) + "\n").encode()
    if run.rows:
        files[EVAL_FILE] = _csv(run.rows)
    if run.video is not None:
        files[VIDEO_FILE] = run.video
    files[README] = policy_card(saved, run, repository, licence=licence).encode()
    message = message or f"A policy for {saved.spec.task or 'an unnamed task'}"
    ours = (CONFIG_FILE, EVAL_FILE, VIDEO_FILE)
    return push(repository, files, private=private, message=message, is_ours=lambda entry: entry in ours)


@checked
def pull_policy(
    name: str,
    file: str | Path | None = None,
    *,
    revision: str | None = None,
    cache: str | Path | None = None,
    offline: bool | None = None,
    max_bytes: Annotated[int | None, COUNT] = None,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Fetch a policy from the Hugging Face Hub, load it once, and return its file; nothing in it is executed.

    Args:
        name: ``"OWNER/NAME"`` or ``"OWNER/NAME@REVISION"``.
        file: where to copy it to; by default it stays in the cache folder.
        revision: a branch, a tag or a commit; by default ``main``.
        cache: the cache folder; see :func:`~.cache_folder.cache_folder`.
        offline: whether to use only what was fetched before; by default what ``HF_HUB_OFFLINE`` says.
        max_bytes: the most that is fetched, by the size that the hub states.
        overwrite: whether to replace a file that is there.
        announce: is called with a sentence that has the size, before the file is fetched.

    Raises:
        HubError: there is no such repository, it holds no policy of this library, or it cannot be had.
        ValueError: the policy is damaged.
        FileExistsError: something is at ``file``.
        ImportError: huggingface_hub is not installed.

    Example:
        >>> pull_policy("me/omar-spread", "policies/omar.pt")  # doctest: +SKIP
        PosixPath('policies/omar.pt')
    """
    target = None if file is None else user_path(file)
    if target is not None and target.exists() and (target.is_dir() or not overwrite):
        remedy = "name a file" if target.is_dir() else "pass overwrite=True (--overwrite), or name another file"
        raise FileExistsError(f"{target} already exists; {remedy}.")
    options = {"revision": revision, "cache": cache, "offline": offline, "max_bytes": max_bytes}
    found = fetched_policy(name, announce=announce, **options)
    load_policy(found)
    if target is None:
        return found
    with replacing_file(target) as temporary:
        shutil.copyfile(found, temporary)
    return target


def _without_paths(saved: SavedPolicy, file: Path) -> bytes:
    metadata = without_paths(saved.metadata)
    if metadata == saved.metadata:
        return file.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        return save_policy(Path(folder) / POLICY_FILE, saved.policy, metadata).read_bytes()


def _csv(rows: Sequence[Row]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        table = CsvTable(Path(folder) / EVAL_FILE)
        for row in rows:
            table.append(row)
        return table.path.read_bytes()


# The card


def policy_card(saved: SavedPolicy, run: PublishedRun, repository: Repository, *, licence: str | None = None) -> str:
    """Return the card of a model repository, in Markdown with its facts for the hub at the top.

    Args:
        saved: the policy.
        run: what its run says.
        repository: where it is to lie.
        licence: see :func:`push_policy`.
    """
    spec, algorithm = saved.spec, run.config.get("algorithm")
    facts = {
        "license": licence,
        "library_name": "torchrl-marl-offline",
        "pipeline_tag": "reinforcement-learning",
        "tags": _TAGS,
    }
    title = ", ".join(str(part) for part in (spec.task or repository.name, algorithm) if part)
    settings = {name: value for name, value in run.config.items() if name not in ("algorithm", "settings")}
    settings |= dict(run.config.get("settings") or {})
    shown = [(name, value) for name, value in settings.items() if value not in (None, [], {}, "")]
    parts = [
        front_matter(facts),
        f"# {escaped(title)}",
        "A policy for a team of agents, from offline multi-agent reinforcement learning.",
        f"![one episode]({VIDEO_FILE})" if run.video is not None else None,
        markdown_table(_rows(saved, algorithm), ("", "")),
        "## Loading",
        f'```python\nfrom torchrl_marl_offline import load_policy\n\npolicy = load_policy("{PREFIX}{repository}")\n```',
        f"`marl-offline evaluate {PREFIX}{repository}` plays it. Both need `pip install 'torchrl-marl-offline[hub]'`; "
        "nothing in the repository is executed.",
        *_evaluations(run),
        *(["## Settings", markdown_table(shown, ("setting", "value"))] if shown else []),
        f"{MARK} {version('torchrl-marl-offline')}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(saved: SavedPolicy, algorithm: Any) -> list[tuple[str, Any]]:
    spec = saved.spec
    kind = f"discrete, one of {spec.action_size}" if spec.discrete else f"continuous, {spec.action_size} components"
    numbers = sum(parameter.numel() for parameter in saved.policy.parameters())
    rows = [
        ("task", spec.task or "unnamed"),
        ("algorithm", algorithm),
        ("agents", spec.n_agents),
        ("observation", spec.observation_size),
        ("actions", kind),
        ("network", f"{saved.policy.build['builder']}, {numbers:,} parameters"),
        ("updates", saved.metadata.get("step")),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _evaluations(run: PublishedRun) -> list[str]:
    """Return the evaluations after training, or the last ones during it."""
    if run.finals:
        note = "After training; the intervals are 95 % across episodes of one run, not across seeds."
        return ["## Evaluation", _results(run.finals), note]
    last = {f"{row.get('evaluator')}, step {row['step']}": row for row in _newest(run.rows)}
    note = "The last evaluations during training; the intervals are 95 % across episodes of one run, not across seeds."
    return ["## Evaluation", _results(last), note] if last else []


def _newest(rows: Sequence[Row]) -> list[Row]:
    return list({row.get("evaluator"): row for row in rows}.values())


def _results(results: Mapping[str, Mapping[str, Any]]) -> str:
    left_out = {"step", "evaluator"}
    names = list(dict.fromkeys(name for row in results.values() for name in row if name not in left_out))
    bounds = {f"{name}_{end}" for name in names for end in ("low", "high") if f"{name}_{end}" in names}
    shown = [name for name in names if name not in bounds]
    lines = [(label, *(_cell(row, name) for name in shown)) for label, row in results.items()]
    return markdown_table(lines, ("", *shown))


def _cell(row: Mapping[str, Any], name: str) -> str:
    def text(key: str) -> str:
        return f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key])

    if row.get(name) is None:
        return ""
    low, high = f"{name}_low", f"{name}_high"
    return text(name) + (f" [{text(low)}, {text(high)}]" if {low, high} <= row.keys() else "")
