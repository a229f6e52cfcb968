"""The example of logs without a simulator, in small, as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

from torchrl_marl_offline import load_dataset
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, next_key

SCRIPT = Path(__file__).parents[1] / "examples" / "from_logs.py"
SMALL = [
    "--episodes",
    "24",
    "--steps",
    "4",
    "--fit-steps",
    "4",
    "--resamples",
    "2",
    "--played",
    "20",
    "--compile",
    "off",
]
WITHOUT = """
import runpy, sys
sys.modules["pyarrow"] = sys.modules["onnxscript"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("pyarrow", "onnxscript") else found(name, *rest)
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def example():
    """The script, as a module."""
    specification = importlib.util.spec_from_file_location("from_logs", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["from_logs"] = module  # where the types of its settings are looked up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A whole run without the extras, as a user starts it, and what it printed."""
    cwd = tmp_path_factory.mktemp("runs")
    process = processes.run("-c", WITHOUT.format(arguments=[str(SCRIPT), *SMALL, "--output", "run"]), cwd=cwd)
    assert process.returncode == 0, process.stderr
    return cwd / "run", process.stdout


def test_it_ends_with_a_page_that_says_the_truth_too(finished):
    folder, out = finished
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "estimate from logs" in page and "data:image/png;base64" in page
    for sentence in ("Chosen from the logs: ", "In truth it is better by ", "The truly best of the policies is "):
        assert sentence in out and sentence in text
    assert ("which the interval covers" in out) != ("which the interval does NOT cover" in out)
    assert (folder / "comparison.png").stat().st_size > 5_000
    assert "Exported actions beside the policy's" in out and "DIFFERS" not in out
    assert sorted(file.name for file in (folder / "exported").iterdir()) == [
        "team.pt2",
        *(f"team_agent_{agent}.pt2" for agent in range(3)),
        "team_agents.json",
    ]
    told = json.loads((folder / "exported" / "team_agents.json").read_text())
    assert told["agents"][0]["outputs"][0]["high"] == [0.5, 0.5]


def test_what_is_missing_is_said_in_a_sentence(finished):
    folder, out = finished
    assert (folder / "logs.csv").is_file() and not (folder / "logs.parquet").exists()
    assert "pyarrow is missing" in out and "the logs are CSV instead of Parquet." in out
    assert "onnx is missing" in out and "policies are exported for torch alone." in out


def test_a_run_that_is_done_may_be_started_again(finished):
    folder, out = finished
    code = WITHOUT.format(arguments=[str(SCRIPT), "--resume", "run"])
    again = processes.run("-c", code, cwd=folder.parent)
    assert again.returncode == 0, again.stderr
    truths = [text.partition("The truth, which")[2] for text in (out, again.stdout)]
    assert truths[0] and truths[0] == truths[1]
    refused = processes.run("-c", WITHOUT.format(arguments=[str(SCRIPT), "--output", "run"]), cwd=folder.parent)
    assert refused.returncode == 1 and "--resume" in refused.stderr


def test_the_table_reads_back_as_what_the_robots_did(tmp_path, example):
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    path = example.write_logs(tmp_path, example.Args(episodes=10))
    assert path.name == "logs.parquet"
    data = load_dataset(str(path))
    rng = np.random.default_rng(0)
    played = example.play(example.logged_team(10, rng), 10, rng)
    going = played["going"].T
    assert data.n_episodes == 10 and data.episode_lengths.tolist() == going.sum(1).tolist()
    assert len(set(data.episode_lengths.tolist())) > 1
    for key, name in ((OBSERVATION, "observation"), (ACTION, "command")):
        expected = torch.as_tensor(played[name].swapaxes(0, 1)[going]).float()
        torch.testing.assert_close(data.data[key], expected, rtol=0.0, atol=1e-6)
    ended = data.data[next_key("terminated")].squeeze(-1)
    assert ended.sum() == played["met"].any(0).sum() and ("agents", "action_log_prob") not in data.data.keys(True)
    earned = data.data["next", "agents", "reward"][:, 0, 0].sum().item()
    assert earned == pytest.approx((played["score"] * played["going"]).sum(), rel=1e-4)


def test_straight_driving_is_better_than_the_logged_team(example):
    rng = np.random.default_rng(0)
    logged = example.returns(example.play(example.logged_team(300, rng), 300, rng)).mean()
    straight = example.returns(example.play(lambda seen: seen[..., 2:4] + seen[..., 4:6], 300, rng)).mean()
    assert straight > logged + 3
