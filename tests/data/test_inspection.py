from __future__ import annotations

import json
import os
import sys
import warnings

import numpy as np
import processes
import pytest
import torch
from data_toys import episodes, pymarl_episode_arrays, recording, write_h5
from format_toys import vault_arrays, write_vault
from inspection_toys import ENDS, LENGTHS, STARTS, clean, put
from selection import thorough

from torchrl_marl_offline.data import (
    DatasetError,
    OfflineDataset,
    TaskSpec,
    concatenate,
    convert_dataset,
    from_arrays,
    load_dataset,
    validate,
)
from torchrl_marl_offline.data.quality.card import describe
from torchrl_marl_offline.data.quality.inspection import compare, inspect, inspection_of
from torchrl_marl_offline.data.quality.loading import load_inspected
from torchrl_marl_offline.data.quality.repairs import repair
from torchrl_marl_offline.data.quality.scan import Scan
from torchrl_marl_offline.data.registry import inspect_source
from torchrl_marl_offline.data.transitions import row_blocks
from torchrl_marl_offline.data.transitions.dataset_errors import (
    DatasetWarning,
    value_checks_deferred,
    values_are_checked,
)
from torchrl_marl_offline.data.transitions.fingerprints import content_checksum, joint_saco, repeated, row_hashes

OBSERVATION, ACTION, MASK = ("agents", "observation"), ("agents", "action"), ("collector", "mask")
NEXT_OBSERVATION, NEXT_ACTION = ("next", *OBSERVATION), ("next", *ACTION)
TERMINATED, TRUNCATED, DONE = ("next", "terminated"), ("next", "truncated"), ("next", "done")


def codes(dataset: OfflineDataset) -> list[str]:
    return [finding.code for finding in inspect(dataset).findings]


def discrete() -> OfflineDataset:
    return clean(discrete=True)


def truncated() -> OfflineDataset:
    return clean(truncated=True)


def fixed_length() -> OfflineDataset:
    return clean([12, 12, 12])


def pad(dataset):
    for key in (OBSERVATION, NEXT_OBSERVATION):
        dataset = put(key, (slice(None), 1, 2), -torch.inf)(dataset)
    return dataset


def cross(dataset):
    """Write the first observation and state of the next episode where episode 1 should have its final ones."""
    for key in (OBSERVATION, "state"):
        following = ("next", *key) if isinstance(key, tuple) else ("next", key)
        dataset = put(following, ENDS[1], dataset.data[key][STARTS[2]].clone())(dataset)
    return dataset


def copy_state(dataset):
    for key in ("state", ("next", "state")):
        dataset.data.set(key, dataset.data[key][:, :3].repeat(1, 2))
    return dataset


def repeat_episode(dataset):
    """Make episode 3 (4 steps) a copy of the first 4 steps of episode 0, and that one 4 steps long."""
    dataset = OfflineDataset(dataset.data[1:], dataset.spec)  # episodes of 4, 6, 7, 4
    parts = torch.cat([dataset.data[:17], dataset.data[:4]]).clone()
    parts["collector", "traj_ids"][17:] = 9
    return OfflineDataset(parts, dataset.spec)


def no_ends(dataset):
    rows = slice(None, -1)
    for key in (TERMINATED, TRUNCATED, DONE):
        dataset = put(key, rows, False)(dataset)
    dataset = put(("collector", "traj_ids"), slice(None), 0)(dataset)
    dataset = put(TRUNCATED, -1, True)(put(TERMINATED, -1, False)(dataset))
    for key in (OBSERVATION, "state"):  # as a reader without final observations has it
        following = ("next", *key) if isinstance(key, tuple) else ("next", key)
        dataset = put(following, rows, dataset.data[key][1:].clone())(dataset)
    return OfflineDataset(dataset.data, dataset.spec)


# code -> (a clean dataset, how it is spoiled, severity, rows, first row)
PLANTS = {
    "minus_inf_padding": (clean, pad, "error", 22, 0),
    "not_finite_placeholder": (clean, put(NEXT_OBSERVATION, (4, 0), torch.nan), "error", 1, 4),
    "not_finite": (truncated, put(NEXT_OBSERVATION, (4, 0), torch.nan), "error", 1, 4),
    "no_legal_action": (discrete, put(("agents", "action_mask"), (7, 0), False), "error", 1, 7),
    "illegal_action": (discrete, put(ACTION, (3, 1), 0), "error", 1, 3),
    "illegal_next_action": (discrete, put(NEXT_ACTION, (5, 1), 3), "error", 1, 5),
    "action_outside_bounds": (clean, put(ACTION, (6, 1), -1.5), "error", 1, 6),
    "episode_marks": (clean, put(DONE, 4, False), "error", 1, 4),
    "crosses_episode_end": (truncated, cross, "error", 1, ENDS[1]),
    "done_never_set": (clean, no_ends, "warning", 22, 0),
    "broken_episode": (clean, put(("next", "state"), 2, 0.5), "warning", 1, 2),
    "time_limit_as_termination": (fixed_length, lambda dataset: dataset, "warning", 3, 11),
    "replicated_state": (clean, copy_state, "warning", 22, 0),
    "duplicated_episodes": (clean, repeat_episode, "warning", 4, 17),
    "team_reward": (clean, put(("next", "agents", "reward"), slice(None), 1.0), "note", 22, 0),
    "masked_rows": (clean, put(MASK, [3, 8], False), "note", 2, 3),
    "card_disagreement": (
        clean,
        lambda d: OfflineDataset(d.data, d.spec, {"card_disagreements": ["its card says 3"]}),
        "warning",
        0,
        None,
    ),
    "reader": (clean, lambda d: OfflineDataset(d.data, d.spec, {"findings": ["a word."]}), "note", 0, None),
}


@pytest.mark.parametrize("make", [clean, discrete, truncated], ids=lambda make: make.__name__)
def test_a_clean_set_has_no_finding(make):
    inspection = inspect(make())
    # the discrete toy takes one action throughout, but its states differ
    assert inspection.findings == () and inspection.problems == ()
    assert inspection.facts["joint_saco"] == 1.0
    assert "no findings" in str(inspection)


@pytest.mark.parametrize("code", PLANTS)
def test_planted_defects_are_found_and_nothing_else(code):
    make, plant, severity, rows, first = PLANTS[code]
    inspection = inspect(plant(make()))
    assert [finding.code for finding in inspection.findings] == [code]
    finding = inspection[code]
    assert (finding.severity, finding.rows, finding.first_row) == (severity, rows, first)
    assert finding.what in str(inspection) and finding.remedy
    assert code in inspection and len(inspection.problems) == (severity != "note")


def test_low_coverage_counts_what_repeats():
    ends = torch.tensor([0, 1, 0, 1, 0, 1])
    dataset = from_arrays(
        observations=torch.tensor([0.0, 1, 0, 1, 0, 1]).reshape(6, 1, 1),
        actions=torch.zeros(6, 1, 1),
        rewards=torch.arange(6.0),
        terminals=ends,
    )
    assert joint_saco(dataset) == pytest.approx(2 / 6)
    assert inspect(dataset)["low_coverage"].rows == 4


def test_one_illegal_action_is_seen_from_both_rows():
    dataset = put(NEXT_ACTION, (2, 1), 0)(put(ACTION, (3, 1), 0)(discrete()))
    inspection = inspect(dataset)
    assert [(f.code, f.first_row) for f in inspection.findings] == [("illegal_action", 3), ("illegal_next_action", 2)]


def test_terminated_rows_may_have_any_successor():
    assert codes(cross(clean())) == []


def test_time_limits_need_a_spike_at_the_end():
    assert codes(clean([12, 12, 4])) == []  # two episodes are no pattern
    assert codes(clean([9, 9, 9, 9])) == []  # a game of nine steps
    assert codes(clean([12, 12, 12, 11, 10])) == ["time_limit_as_termination"]
    assert codes(clean([12, 12, 12, 11, 11])) == []  # they just take about so long
    known = OfflineDataset(clean().data, clean().spec, {"time_limit": 7})
    assert inspect(known)["time_limit_as_termination"].first_row == ENDS[2]


def test_successes_at_the_limit_are_no_time_limit():
    dataset = fixed_length()
    success = torch.zeros(36, 1, dtype=torch.bool)
    success[11] = True
    dataset.data["next", "success"] = success
    known = OfflineDataset(dataset.data, dataset.spec, {"time_limit": 12})
    assert inspect(known)["time_limit_as_termination"].rows == 2


def test_a_joint_observation_is_no_replicated_state():
    same = torch.rand(4, 1, 3).repeat(1, 2, 1)
    dataset = from_arrays(
        observations=same, actions=torch.rand(4, 2, 1), rewards=torch.rand(4, 2), terminals=torch.tensor([0, 1, 0, 1])
    )
    assert codes(dataset) == []


def test_a_few_duplicates_are_a_note():
    lengths = [5] * 30
    dataset = clean(lengths, truncated=True)
    data = dataset.data.clone()
    data[145:] = dataset.data[:5]
    data["collector", "traj_ids"] = dataset.data["collector", "traj_ids"]
    assert inspect(OfflineDataset(data, dataset.spec))["duplicated_episodes"].severity == "note"


def test_a_bare_tensordict_needs_a_spec():
    dataset = put(ACTION, 0, 7.0)(clean())
    assert "action_outside_bounds" in inspect(dataset.data, dataset.spec)
    with pytest.raises(DatasetError, match="spec=TaskSpec"):
        inspect(dataset.data)
    with pytest.raises(DatasetError, match="the task needs"):
        inspect(dataset.data, TaskSpec(2, 3, 5, 1))
    with pytest.raises(KeyError, match=r"No finding 'reader' .*action_outside_bounds"):
        inspect(dataset)["reader"]


def test_text_and_json_are_deterministic():
    first, second = (inspect(put(ACTION, 0, 7.0)(clean())) for _ in range(2))
    assert str(first) == str(second) and first.to_json() == second.to_json()
    assert json.loads(first.to_json())["findings"][0]["code"] == "action_outside_bounds"
    assert "1 error\n" in str(first)


# Fingerprints


def test_hashes_see_every_bit_but_the_sign_of_zero():
    dataset = clean()
    reference = row_hashes(dataset.data, ("state",))
    assert len(reference.unique()) == 22
    changed = put("state", (3, 5), dataset.data["state"][3, 5].nextafter(torch.tensor(2.0)))(clean())
    assert (row_hashes(changed.data, ("state",)) != reference).nonzero().flatten().tolist() == [3]
    swapped = put("state", 3, dataset.data["state"][3].flip(0))(clean())
    assert row_hashes(swapped.data, ("state",))[3] != reference[3]
    zero, minus = (row_hashes(put("state", 0, value)(clean()).data, ("state",))[0] for value in (0.0, -0.0))
    assert zero == minus
    assert repeated(torch.tensor([4, 2, 4, 4, 2])).tolist() == [False, False, True, True, True]


def test_blocks_do_not_change_a_hash(monkeypatch):
    whole = row_hashes(clean().data, ("state", ACTION)), content_checksum(clean()), inspect(clean())
    monkeypatch.setattr("torchrl_marl_offline.data.transitions.fingerprints._ROWS_AT_ONCE", 4)
    monkeypatch.setattr("torchrl_marl_offline.data.transitions.row_blocks._ROWS_AT_ONCE", 4)
    assert torch.equal(row_hashes(clean().data, ("state", ACTION)), whole[0])
    assert content_checksum(clean()) == whole[1] and inspect(clean()) == whole[2]
    for make, plant, *_ in PLANTS.values():
        assert len(inspect(plant(make())).findings) == 1


def test_qualities_that_are_the_same_file():
    a, b = clean(), clean()
    assert [finding.code for finding in compare(a, b)] == ["same_content"]
    turned = a.select_episodes([2, 0, 1, 3])
    assert content_checksum(turned) != content_checksum(a)
    (finding,) = compare(a, turned)
    assert (finding.code, finding.rows) == ("same_content", 22)
    (finding,) = compare(a.select_episodes([0, 1]), a.select_episodes([1, 2]))
    assert (finding.code, finding.severity, finding.rows) == ("shared_episodes", "note", 6)
    assert compare(a.select_episodes([0, 1]), a.select_episodes([2, 3])) == ()


# Repair


def repaired(code: str, **options) -> OfflineDataset:
    make, plant, *_ = PLANTS[code]
    spoiled = plant(make())
    before = content_checksum(spoiled)
    result = repair(spoiled, **options)
    assert content_checksum(spoiled) == before, "repair wrote into the dataset it was given"
    assert code not in inspect(result)
    validate(result)
    assert result.metadata["repairs"][0].startswith(f"{code}: ")
    assert result.metadata["provenance"] == [{"step": "repair", "done": result.metadata["repairs"]}]
    return result


def masked(dataset: OfflineDataset) -> list[int]:
    return (~dataset.data[MASK]).nonzero().flatten().tolist()


def test_repair_of_padding():
    result = repaired("minus_inf_padding")
    assert (result.data[OBSERVATION][:, 1, 2] == 0).all() and masked(result) == []
    assert torch.equal(result.data[OBSERVATION][:, 0], clean().data[OBSERVATION][:, 0])


@pytest.mark.parametrize(
    ("code", "rows"),
    [("not_finite", [4]), ("illegal_action", [3]), ("no_legal_action", [7]), ("crosses_episode_end", [10])],
)
def test_repair_by_masks(code, rows):
    assert masked(repaired(code)) == rows


def without_agent(dataset: OfflineDataset, row: int, agent: int) -> OfflineDataset:
    """Let an agent be gone on one row."""
    alive = torch.ones(len(dataset), dataset.spec.n_agents, dtype=torch.bool)
    dataset.data["agents", "mask"], dataset.data["next", "agents", "mask"] = alive, alive.clone()
    dataset.data["agents", "mask"][row, agent] = False
    dataset.data["next", "agents", "mask"][row - 1, agent] = False
    return dataset


@pytest.mark.parametrize(
    ("place", "key", "row", "left"),
    [
        ("after the end", NEXT_OBSERVATION, ENDS[1], "own"),
        ("after the end", ("next", "state"), ENDS[1], "own"),
        ("an absent agent", OBSERVATION, (7, 1), "zero"),
        ("an absent agent", ACTION, (7, 1), "zero"),
        ("an absent agent", ("next", "agents", "reward"), (7, 1), "zero"),
        ("an absent agent", NEXT_OBSERVATION, (6, 1), "own"),
        ("a masked row", OBSERVATION, 8, "zero"),
        ("a masked row", NEXT_OBSERVATION, 8, "own"),
    ],
)
def test_what_nobody_reads_is_written_over_and_every_row_goes_on_counting(place, key, row, left):
    dataset = clean()
    if place == "an absent agent":
        dataset = without_agent(dataset, 7, 1)
    if place == "a masked row":
        dataset.data[MASK][8] = False
    spoiled = put(key, row, torch.nan)(OfflineDataset(dataset.data, dataset.spec))
    inspection = inspect(spoiled)
    assert "not_finite" not in inspection and inspection["not_finite_placeholder"].rows == 1
    result = repair(spoiled, codes=["not_finite_placeholder"])
    assert torch.equal(result.data[MASK], dataset.data[MASK])
    own = dataset.data[key[1:]][row] if left == "own" else torch.zeros(())
    assert torch.equal(result.data[key][row], own.expand_as(result.data[key][row]))
    validate(result)


def test_rewards_at_the_ends_of_logs_that_have_no_last_observation_are_kept():
    dataset = clean().data
    after = dataset[NEXT_OBSERVATION].clone()
    after[ENDS] = torch.nan
    arrays = {"observations": dataset[OBSERVATION], "actions": dataset[ACTION], "next_observations": after}
    arrays |= {"rewards": dataset["next", "agents", "reward"], "terminals": dataset[TERMINATED].squeeze(-1)}
    with pytest.raises(DatasetError, match=r"is NaN or infinite \(first at row 4.*load with repair=True"):
        from_arrays(**arrays)
    result = from_arrays(**arrays, repair=True)
    assert result.data[MASK].all()
    assert torch.equal(result.episode_returns(), from_arrays(**arrays | {"next_observations": None}).episode_returns())


def test_repair_of_a_broken_episode():
    assert masked(repaired("broken_episode")) == [2]


def test_repaired_actions():
    assert repaired("illegal_action").data[ACTION][3].tolist() == [1, 1]
    result = repaired("illegal_next_action")
    assert result.data[NEXT_ACTION][5].tolist() == [1, 1] and masked(result) == []
    assert not result.data["collector", "has_next_action"][5]
    assert repaired("action_outside_bounds").data[ACTION][6, 1].item() == -1.0
    assert repaired("no_legal_action").data["agents", "action_mask"][7].tolist() == [[True] * 3, [False, True, True]]


def test_an_empty_mask_after_a_termination_is_opened_only():
    dataset = put(("next", "agents", "action_mask"), ENDS[0], False)(discrete())
    result = repair(dataset)
    assert masked(result) == [] and result.data["next", "agents", "action_mask"][ENDS[0]].all()


def test_repair_of_marks():
    result = repaired("episode_marks")
    assert result.episode_lengths.tolist() == LENGTHS and masked(result) == []
    silent = put(DONE, 4, False)(put(TERMINATED, 4, False)(clean()))  # only the ids change there
    result = repair(silent)
    assert result.data[TRUNCATED][4] and masked(result) == [4]
    inside = put(TERMINATED, 2, True)(clean())
    result = repair(inside)
    assert result.episode_lengths.tolist() == [3, 2, 6, 7, 4] and masked(result) == []
    assert not result.data["collector", "has_next_action"][2]


def test_repair_of_time_limits_keeps_true_successors():
    result = repaired("time_limit_as_termination")
    assert result.data[TRUNCATED].flatten().nonzero().flatten().tolist() == [11, 23, 35]
    assert not result.data[TERMINATED].any() and masked(result) == []


def test_repair_of_time_limits_masks_placeholders():
    source = fixed_length().data
    without = from_arrays(
        observations=source[OBSERVATION],
        actions=source[ACTION],
        rewards=torch.rand(36, 2),
        terminals=source[TERMINATED].flatten(),
    )
    assert masked(repair(without)) == [11, 23, 35]


def test_repair_of_time_limits_masks_the_next_episode():
    data = fixed_length().data
    for key, following in ((OBSERVATION, NEXT_OBSERVATION), ("state", ("next", "state"))):
        data[following][[11, 23]] = data[key][[12, 24]]
    assert masked(repair(OfflineDataset(data, fixed_length().spec))) == [11, 23]


def test_repair_of_a_replicated_state():
    result = repaired("replicated_state")
    assert result.spec.state_size == 3 and torch.equal(result.data["state"], clean().data["state"][:, :3])


def test_copies_are_dropped_if_asked_for_by_name():
    make, plant, *_ = PLANTS["duplicated_episodes"]
    assert repair(plant(make())).n_episodes == 4
    assert repaired("duplicated_episodes", codes=["duplicated_episodes"]).episode_lengths.tolist() == [4, 6, 7]


def test_episodes_of_known_length_are_cut():
    result = repaired("done_never_set", episode_length=11)
    assert result.episode_lengths.tolist() == [11, 11]
    assert result.data[TRUNCATED].flatten().nonzero().flatten().tolist() == [10, 21]
    # the observation after row 10 is another episode's; the last row has its own final observation
    assert 10 in masked(result)
    with pytest.raises(ValueError, match="must divide the 22 rows"):
        repair(no_ends(clean()), episode_length=7)


def test_repair_stays_out_of_the_rest():
    both = put(ACTION, (6, 1), -1.5)(put(("next", "state"), 2, 0.5)(clean()))
    result = repair(both, codes=["action_outside_bounds"])
    assert codes(result) == ["broken_episode"] and len(result.metadata["repairs"]) == 1
    with pytest.raises(ValueError, match="no repair of team_reward"):
        repair(both, codes=["team_reward"])
    untouched = repair(clean())
    assert "repairs" not in untouched.metadata and "provenance" not in untouched.metadata


def test_repair_refuses_to_mask_nearly_everything():
    shuffled = put(NEXT_OBSERVATION, slice(None), 0.5)(clean())
    with pytest.raises(DatasetError, match="would leave 4 of the 22 rows"):
        repair(shuffled)


REPAIRED = {
    code: {} for code, (*_, severity, _, _) in PLANTS.items() if severity != "note" and code != "card_disagreement"
}
REPAIRED |= {"done_never_set": {"episode_length": 11}, "duplicated_episodes": {"codes": ["duplicated_episodes"]}}


@pytest.mark.parametrize("rows_at_once", [thorough(1), 3, thorough(100)])
@pytest.mark.parametrize("code", REPAIRED)
def test_repair_block_by_block_is_repair(code, rows_at_once, tmp_path, monkeypatch):
    make, plant, *_ = PLANTS[code]
    whole = repair(plant(make()), **REPAIRED[code])
    OfflineDataset(plant(make()).data, plant(make()).spec, check=False).save(tmp_path / "set")
    monkeypatch.setattr("torchrl_marl_offline.data.transitions.row_blocks._ROWS_AT_ONCE", rows_at_once)
    spoiled = OfflineDataset.load(tmp_path / "set")
    parts = repair(spoiled, path=tmp_path / "mended", **REPAIRED[code])
    assert content_checksum(parts) == content_checksum(whole) and parts.spec == whole.spec
    assert torch.equal(parts.data["collector", "traj_ids"], whole.data["collector", "traj_ids"])
    assert parts.metadata["repairs"] == whole.metadata["repairs"]
    assert parts.metadata["n_episodes"] == parts.n_episodes == whole.n_episodes
    assert parts.inspection == inspect(parts)
    assert str(tmp_path / "mended") in parts.data["state"].filename
    OfflineDataset.load(tmp_path / "mended", verify=True)


def test_many_repairs_in_one_pass(tmp_path, monkeypatch):
    def spoil():
        dataset = copy_state(clean([12] * 8, discrete=True))
        for step in (
            put(NEXT_OBSERVATION, (4, 0), torch.nan),
            put(("agents", "action_mask"), (7, 0), False),
            put(ACTION, (3, 1), 0),
            put(NEXT_ACTION, (25, 1), 3),
            put(DONE, 35, False),
            pad,
        ):
            dataset = step(dataset)
        return OfflineDataset(dataset.data, dataset.spec, check=False)

    whole = repair(spoil())
    assert len(whole.metadata["repairs"]) == 9 and codes(whole) == ["masked_rows"]
    assert masked(whole) == [3, 4, 7]
    monkeypatch.setattr("torchrl_marl_offline.data.transitions.row_blocks._ROWS_AT_ONCE", 5)
    assert content_checksum(repair(spoil(), path=tmp_path / "set")) == content_checksum(whole)


def test_a_repair_that_is_refused_leaves_no_folder(tmp_path):
    shuffled = put(NEXT_OBSERVATION, slice(None), 0.5)(clean())
    with pytest.raises(DatasetError, match="would leave 4 of the 22 rows"):
        repair(shuffled, path=tmp_path / "set")
    with pytest.raises(DatasetError, match="lies outside its bounds"):
        repair(two_problems(put(ACTION, 0, 7.0)(clean())), codes=["broken_episode"], path=tmp_path / "set")
    with pytest.raises(DatasetError, match="disagree about where an episode ends on 1 rows; repair ends"):
        repair(put(DONE, 4, False)(clean()), codes=["broken_episode"], path=tmp_path / "set")
    assert not any(tmp_path.iterdir())
    repair(clean(), path=tmp_path / "set")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        repair(clean(), path=tmp_path / "set")
    assert len(repair(clean(), path=tmp_path / "set", overwrite=True)) == 22


SHORT_OF_MEMORY = """
import resource, sys
from torchrl_marl_offline.data import OfflineDataset, repair
from torchrl_marl_offline.data.transitions import row_blocks
row_blocks._BYTES_AT_ONCE = 2**20
dataset = OfflineDataset.load(sys.argv[1], verify=False)
repair(dataset.select_episodes([0]), path=sys.argv[2] + "-warm")  # whatever is imported on the way
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (taken + 32 * 2**20, -1))
print(repair(dataset, path=sys.argv[2]).metadata["repairs"])
try:
    repair(dataset)
except (MemoryError, RuntimeError):
    print("in memory it does not fit")
"""


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory only on Linux")
def test_repair_of_more_than_fits_into_memory(tmp_path):
    rows, generator = 8_000, torch.Generator().manual_seed(0)  # 128 MB
    ends = torch.arange(1, rows + 1) % 50 == 0
    dataset = from_arrays(
        observations=torch.rand(rows, 2, 500, generator=generator),
        actions=torch.rand(rows, 2, 1, generator=generator),
        rewards=torch.rand(rows, 2),
        terminals=ends & (torch.arange(rows) < 4_000),
        truncations=ends,
    )
    put(ACTION, (6_100, 1), -1.5)(dataset).save(tmp_path / "set")
    assert sum(file.stat().st_size for file in (tmp_path / "set").rglob("*.memmap")) > 120e6
    options = {"options": ("-W", "ignore"), "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    result = processes.run_new(SHORT_OF_MEMORY, tmp_path / "set", tmp_path / "mended", **options)
    assert "clipped the actions of 1 rows" in result.stdout, result.stderr
    assert "in memory it does not fit" in result.stdout  # so the limit is one
    assert inspect(OfflineDataset.load(tmp_path / "mended")).of_severity("error") == ()


def test_repair_of_a_memory_mapped_set(tmp_path):
    copy_state(clean()).save(tmp_path / "set")
    result = repair(OfflineDataset.load(tmp_path / "set"))
    assert result.spec.state_size == 3
    OfflineDataset.load(tmp_path / "set")  # the checksums still hold


# Loading


def spoiled_file(path):
    arrays = pymarl_episode_arrays([3, 2, 4], longest=4)
    arrays["avail_actions"][0, 1, 0] = [1, 0, 1]  # the action there is 1
    return write_h5(path, arrays)


def test_inspection_sees_what_loading_refuses(tmp_path):
    pytest.importorskip("h5py")
    source = f"pymarl:{spoiled_file(tmp_path / 'spoiled.h5')}"
    with pytest.raises(DatasetError, match="illegal"):
        load_dataset(source)
    inspection, dataset = inspect_source(source)
    assert inspection["illegal_action"].first_row == 1 and len(dataset) == 9
    assert values_are_checked()


def test_a_truncated_file_is_one_finding(tmp_path):
    pytest.importorskip("h5py")
    path = write_h5(tmp_path / "cut.h5", pymarl_episode_arrays([3] * 200, longest=3))
    path.write_bytes(path.read_bytes()[:5000])
    inspection, dataset = inspect_source(f"pymarl:{path}")
    assert dataset is None and [finding.code for finding in inspection.findings] == ["unreadable"]
    assert "damaged or truncated" in inspection["unreadable"].what


def test_switches_of_loading():
    def spoiled():
        dataset = put(ACTION, (6, 1), -1.5)(clean())
        return OfflineDataset(dataset.data, dataset.spec)

    with pytest.raises(DatasetError, match="outside its bounds"):
        load_inspected("toy", spoiled)
    with pytest.raises(DatasetError, match=r"toy: action_outside_bounds on 1 rows .*repair=True"):
        load_inspected("toy", spoiled, strict=True)
    for strict in (False, True):
        assert codes(load_inspected("toy", spoiled, repair=True, strict=strict)) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_inspected("toy", clean, strict=True)) == 22
        load_inspected("toy", clean)
    with pytest.warns(DatasetWarning, match="toy: episodes terminate after exactly 12 steps"):
        load_inspected("toy", fixed_length)
    with pytest.raises(DatasetError, match="time_limit_as_termination on 3 rows"):
        load_inspected("toy", fixed_length, strict=True)
    with pytest.raises(DatasetError, match=r"done_never_set.*inspect\.$"):
        load_inspected("toy", lambda: no_ends(clean()), repair=True, strict=True)
    with pytest.warns(DatasetWarning, match="no row before the last"):
        load_inspected("toy", lambda: no_ends(clean()), repair=True)
    with pytest.raises(DatasetError, match=r"^gone\.$"):
        load_inspected("toy", failing, repair=True)
    with value_checks_deferred():
        assert "action_outside_bounds" in inspect(load_inspected("toy", spoiled))


def failing():
    raise DatasetError("gone.")


def warnings_of(source, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_dataset(source, **options)
    assert all(warning.category is DatasetWarning and warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def two_problems(dataset: OfflineDataset) -> OfflineDataset:
    return put(("next", "state"), 2, 0.5)(copy_state(dataset))


def test_a_plain_load_warns_once_for_each_finding(tmp_path):
    pytest.importorskip("h5py")
    source = f"pymarl:{write_h5(tmp_path / 'limit.h5', pymarl_episode_arrays([12, 12, 12, 5], longest=12))}"
    (message,) = warnings_of(source)  # the team reward is a note
    assert message.startswith(f"{source}: episodes terminate after exactly 12 steps, without success")
    assert message.endswith("(3 rows); repair truncates them; leave them if the task always ends after so many steps.")
    assert warnings_of(source, inspect=False) == [] and warnings_of(source, repair=True) == []
    for switch in ("repair", "strict"):
        with pytest.raises(ValueError, match="leave inspect=False out"):
            load_dataset(source, inspect=False, **{switch: True})


def test_a_folder_warns_of_what_was_found_when_it_was_written(tmp_path, monkeypatch):
    dataset = two_problems(clean())
    dataset.inspection = inspect(dataset)
    dataset.save(tmp_path / "set")
    found = inspect(OfflineDataset.load(tmp_path / "set"))
    assert [finding.code for finding in found.problems] == ["broken_episode", "replicated_state"]
    assert OfflineDataset.load(tmp_path / "set").inspection == found

    def never(*_):
        raise AssertionError("the rows were read")

    monkeypatch.setattr("torchrl_marl_offline.data.quality.loading.inspect", never)
    broken, repeated_state = warnings_of(tmp_path / "set")
    assert broken.startswith(f"{tmp_path / 'set'}: the next observation or state within an episode is not")
    assert "one vector of 3 repeated" in repeated_state
    assert warnings_of(tmp_path / "set", inspect=False) == []
    assert "inspection" not in OfflineDataset.load(tmp_path / "set").metadata


def test_a_part_of_a_loaded_set_is_another_set(tmp_path):
    two_problems(clean()).save(tmp_path / "set")
    part = OfflineDataset.load(tmp_path / "set").select_episodes([1, 2])
    assert part.inspection is None
    part.save(tmp_path / "part")
    (message,) = warnings_of(tmp_path / "part")  # row 2, where episode 0 breaks, is not in it
    assert "one vector of 3 repeated for each agent (13 rows)" in message


def test_a_folder_without_findings_is_inspected(tmp_path):
    path = two_problems(clean()).save(tmp_path / "set")
    assert OfflineDataset.load(path).inspection is None and len(warnings_of(path)) == 2


def test_converting_finds_what_inspecting_finds(tmp_path):
    pytest.importorskip("tensorstore")
    source = f"vault:{write_vault(tmp_path / 'v', vault_arrays([12, 12, 12, 5]))}"
    (message,) = warnings_of(source)
    assert "time limit" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_dataset(source, tmp_path / "out")  # says nothing: loading does
    (stored,) = warnings_of(tmp_path / "out")
    assert stored.partition(": ")[2] == message.removeprefix(f"{source}: ")
    loaded = OfflineDataset.load(tmp_path / "out")
    assert loaded.inspection == inspect(loaded)


# Cards


def test_card_in_numbers(tmp_path):
    dataset = episodes([3, 1])
    card = describe(dataset)
    assert card.facts["return"] == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "quartiles": [1.5, 2.0, 2.5]}
    assert card.facts["actions"]["mean"] == [[0.0075], [0.0075]]  # 0, .01, .02 and 0
    assert card.facts["actions"]["at_bound"] == [[0.0], [0.0]]
    assert card.facts["reward_per_agent"] == {"mean": [1.0, 1.0], "std": [0.0, 0.0]}
    assert json.loads(card.to_json())["findings"][0]["code"] == "team_reward"
    assert "4 in 2 episodes of 2 ± 1 (1 to 3)" in str(card) and "return       2.00 ± 1.00" in str(card)
    share = describe(discrete()).facts["actions"]["share"]
    assert share == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]


def test_the_license_and_citation_on_a_card_are_those_that_were_given(tmp_path):
    dataset = episodes([3, 1])
    silent = describe(dataset)
    assert (silent.facts["license"], silent.facts["citation"]) == ("not stated", "not stated")
    assert "license      not stated\ncitation     not stated" in str(silent)
    dataset.metadata |= {"license": "CC-BY-4.0", "citation": "Doe 2026, Robots"}
    dataset.save(tmp_path / "own")
    saved = OfflineDataset.load(tmp_path / "own")
    assert "license      CC-BY-4.0\ncitation     Doe 2026, Robots" in str(describe(saved))
    assert json.loads(describe(saved).to_json())["license"] == "CC-BY-4.0"
    both = concatenate([concatenate([saved, episodes([2])]), saved])
    assert describe(both).facts["license"] == "CC-BY-4.0; not stated"
    with pytest.raises(DatasetError, match="3 as 'license' in its metadata, where text stands"):
        OfflineDataset(dataset.data, dataset.spec, {"license": 3})


@pytest.mark.parametrize("make", [clean, discrete, lambda: episodes([3]), fixed_length])
def test_card_picture(make, tmp_path):
    matplotlib = pytest.importorskip("matplotlib.image")
    path = describe(make()).save_picture(tmp_path / "cards" / "card.png")
    image = matplotlib.imread(path)
    assert image.shape[:2] == (864, 1260)
    assert 0.01 < (image[..., :3].min(-1) < 0.9).mean() < 0.6  # something is drawn, and not all over


# Recordings

TEAM = ("team_reward", "note")
EXPECTED = {
    # file: (time_limit, SACo, findings with their rows)
    "smac-3m-medium": ("auto", 0.721586, [(*TEAM, 50_450), ("reader", "note", 0)]),
    "cn-2-expert": ("auto", 0.990964, [("duplicated_episodes", "note", 22), (*TEAM, 3_984)]),
    "cn-2-medium": (
        None,
        0.338872,
        [
            ("time_limit_as_termination", "warning", 1_123),
            ("duplicated_episodes", "note", 1_242),
            (*TEAM, 70_894),
            ("reader", "note", 0),
            ("low_coverage", "note", 46_870),
        ],
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_findings_on_the_recordings(name):
    pytest.importorskip("h5py")
    time_limit, saco, findings = EXPECTED[name]
    source = f"pymarl:{recording(f'{name}.h5')}"
    inspection, dataset = inspect_source(source, lambda: load_dataset(source, time_limit=time_limit))
    assert [(f.code, f.severity, f.rows) for f in inspection.findings] == findings
    assert inspection.facts["joint_saco"] == saco
    if name == "cn-2-medium":  # the repair makes of the file what the reader makes of it where it knows the task
        result = repair(dataset, inspection)
        assert content_checksum(result) == content_checksum(load_dataset(source))
        assert inspect(result).problems == ()


def test_findings_on_a_vault():
    pytest.importorskip("tensorstore")
    folder = recording("smac-3m-medium.h5").parents[1] / "vaults" / "og_marl" / "smac_v1" / "3m.vlt" / "Medium"
    inspection, dataset = inspect_source(f"vault:{folder}")
    found = [(f.code, f.severity, f.rows, f.first_row) for f in inspection.findings]
    assert found == [("time_limit_as_termination", "warning", 9, 220), (*TEAM, 7_614, 0)]
    assert inspection.facts["joint_saco"] == 0.788153
    result = repair(dataset, inspection)  # a vault has no final observations
    assert len(masked(result)) == 9 and result.data[TRUNCATED].sum() == 9 and inspect(result).problems == ()


def truncated_row(arrays):
    return {name: values[:1] for name, values in arrays.items()} | {"terminals": np.zeros(1)}


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays | {"agent_mask": np.zeros((4, 2))},
        truncated_row,
        lambda arrays: arrays | {"terminals": np.zeros(4), "truncations": np.ones(4)},
    ],
)
def test_a_dataset_of_which_no_row_counts_has_an_error(change):
    arrays = {"observations": np.zeros((4, 2, 3)), "actions": np.zeros((4, 2, 1)), "rewards": np.zeros(4)}
    dataset = from_arrays(**change(arrays | {"terminals": np.ones(4)}))
    finding = inspect(dataset)["no_row_counts"]
    assert finding.severity == "error" and finding.rows == len(dataset) and "no row counts: " in str(finding)
    assert "no_row_counts" not in inspect(from_arrays(**arrays, terminals=np.ones(4)))


def test_rows_that_all_repeat_are_counted_however_many(monkeypatch):
    scan = Scan.of(row_blocks.blocks(clean().data), clean().spec, 22)
    scan.length, scan.distinct_pairs = 10**8, 1
    assert "occurs 100000000.0 times" in inspection_of(scan, {})["low_coverage"].what
