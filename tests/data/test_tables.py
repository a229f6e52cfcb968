"""Logs as tables: each shape of them gives the right data, or one sentence with file, row, column and remedy."""

from __future__ import annotations

import json
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from data_toys import CountingEnv, episodes
from file_mutations import declare
from payloads import Payload
from table_toys import long_log, rows_of, wide_log, without_rows, write_table

from torchrl_marl_offline import OfflineDataset, collect, convert_dataset, from_arrays, load_dataset
from torchrl_marl_offline.commands.data import main
from torchrl_marl_offline.core.layout import ACTION_LOG_PROB, AGENT_MASK, MASK, OBSERVATION, STATE
from torchrl_marl_offline.data import DatasetError, DatasetWarning, TaskSpec, export_dataset
from torchrl_marl_offline.data.formats import table_files

pytest.importorskip("pyarrow")

KINDS = (".parquet", ".csv", ".csv.gz", ".npz")
MAP = {"episode": "episode", "time": "step", "agent": "agent", "observations": "obs_*", "actions": "action"}
MAP |= {"reward": "reward", "terminal": "terminated", "timeout": "truncated"}
WIDE = {"episode": "episode", "time": "step", "observations": "robot_{agent}_obs_*"}
WIDE |= {"actions": "robot_{agent}_action", "reward": "robot_{agent}_reward"}
WIDE |= {"terminal": "terminated", "timeout": "truncated"}
LONG_ROWS = len(long_log()["step"])  # 3 + 2 steps of 2 agents


def read(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)  # that short episodes repeat
        return load_dataset(path, **options)


def leaves(dataset):
    return dict(dataset.data.items(include_nested=True, leaves_only=True))


def assert_same_rows(one, other):
    first, second = leaves(one), leaves(other)
    assert first.keys() == second.keys()
    for key, values in first.items():
        assert values.dtype == second[key].dtype and values.shape == second[key].shape, key
        assert values.contiguous().numpy().tobytes() == second[key].contiguous().numpy().tobytes(), key


def assert_is_the_log(dataset, lengths=(3, 2)):
    """Every value of ``long_log`` or ``wide_log``."""
    e = torch.cat([torch.full((length,), float(number)) for number, length in enumerate(lengths)])
    t = torch.cat([torch.arange(length, dtype=torch.float32) for length in lengths])
    agent = torch.tensor([0.0, 1.0])
    observation = torch.stack([e[:, None].expand(-1, 2), t[:, None] + agent / 10], -1)
    torch.testing.assert_close(dataset.data[OBSERVATION], observation)
    torch.testing.assert_close(dataset.data["agents", "action"][..., 0], t[:, None] / 10 - agent / 100)
    torch.testing.assert_close(dataset.data["next", "agents", "reward"][..., 0], t[:, None] + agent)
    last = torch.zeros(len(t), dtype=torch.bool)
    last[torch.tensor(lengths).cumsum(0) - 1] = True
    assert torch.equal(dataset.data["next", "terminated"][:, 0], last & (e % 2 == 0))
    assert torch.equal(dataset.data["next", "truncated"][:, 0], last & (e % 2 == 1))
    assert dataset.data["collector", "traj_ids"].tolist() == e.tolist()
    assert dataset.data[OBSERVATION].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log", [long_log, wide_log])
def test_both_layouts_in_every_kind_of_file_are_known_by_their_content(tmp_path, kind, log):
    path = write_table(tmp_path / f"log{kind}", log())
    dataset = read(path)
    assert_is_the_log(dataset)
    assert dataset.metadata["source"] == f"table:{path}" and not dataset.spec.discrete
    assert any(one.startswith("columns were told by their names: episode") for one in dataset.metadata["findings"])
    by_map = read(f"table:{path}", columns=MAP if log is long_log else WIDE)
    assert_same_rows(by_map, dataset)
    assert by_map.metadata["columns"]["reward"] == (MAP if log is long_log else WIDE)["reward"]
    assert not any("told by their names" in one for one in by_map.metadata["findings"])


def shuffled(seed=0):
    return rows_of(long_log(), np.random.default_rng(seed).permutation(LONG_ROWS).tolist())


def with_final_rows():
    """One more row for each episode and agent, which has observations alone."""
    log = long_log((4, 3))
    ends = [row for row in range(14) if log["step"][row] == (3 if log["episode"][row] == 0 else 2)]
    log["terminated"] = [log["episode"][row] == 0 and log["step"][row] == 2 for row in range(14)]
    log["truncated"] = [log["episode"][row] == 1 and log["step"][row] == 1 for row in range(14)]
    for row in ends:
        log["action"][row] = log["reward"][row] = None
    return log


def set_to(log, column, values, rows=None):
    changed = dict(log)
    if rows is None:
        changed[column] = values
    else:
        changed[column] = [values if row in rows else one for row, one in enumerate(log[column])]
    return changed


def times(log, scale, offset=0.0):
    return set_to(log, "step", [scale * one + offset for one in log["step"]])


def numbers_as_text(log):
    return set_to(log, "episode", [f"run-{one}" for one in log["episode"]])


def dates(log, text="2024-05-01T00:00:0{}.5"):
    return set_to(log, "step", [text.format(one) for one in log["step"]])


RIGHT = {
    "rows in any order": (shuffled(), {}),
    "rows in another order": (shuffled(1), {}),
    "episodes named by text": (numbers_as_text(long_log()), {}),
    "agents numbered": (long_log(agents=(0, 1)), {}),
    "agents numbered from 7": (long_log(agents=(7, 11)), {}),
    "ten before two is two before ten": (long_log(agents=("r2", "r10")), {}),
    "time in tenths of a second": (times(long_log(), 0.1, 12.5), {}),
    "time every fifth step": (times(long_log(), 5), {}),
    "time in nanoseconds since 1970": (times(long_log(), 20_000_000, 1_700_000_000_000_000_000), {}),
    "float64 becomes float32": (long_log(), {}),
    "flags as 0 and 1": (long_log(terminated=[int(one) for one in long_log()["terminated"]]), {}),
    "flags as 0.0 and 1.0": (long_log(truncated=[float(one) for one in long_log()["truncated"]]), {}),
    "a mean that is not read": (long_log(mean_reward=[0.5] * LONG_ROWS), {}),
    "wide, a total that is not read": (wide_log(total_reward=[0.5] * 5), {}),
    "a column that is not read": (long_log(battery=[0.5] * LONG_ROWS), {}),
    "text that is not read": (long_log(note=["ok"] * LONG_ROWS), {}),
    "a map with patterns": (long_log(), MAP),
    "a map with a list": (long_log(), MAP | {"observations": ["obs_x", "obs_y"]}),
    "wide, rows in any order": (rows_of(wide_log(), [3, 1, 4, 0, 2]), {}),
    "wide, by patterns": (wide_log(), WIDE),
    "wide, agents named": (wide_log(), WIDE | {"agents": ["0", "1"]}),
    "wide, without time": (wide_log(step=None), {}),
    "wide, without episodes: cut by flags": (wide_log(episode=None, step=None), {}),
    "wide, without episodes: cut by time": (wide_log(episode=None), {}),
    "done beside a timeout": (
        {("done" if k == "terminated" else k): v for k, v in long_log().items()}
        | {"done": [a or b for a, b in zip(long_log()["terminated"], long_log()["truncated"])]},
        {},
    ),
    "final rows without actions": (with_final_rows(), {}),
    "times as dates": (dates(long_log()), {}),
    "times as dates with an offset from UTC": (dates(long_log(), "2024-05-01 00:00:0{}+02:00"), {}),
    "times with nine digits": (dates(long_log(), "2024-05-01T00:00:00.12345678{}"), {}),
    "agents that int() takes for one": (long_log(agents=("1_1", "11")), {}),
    "agents that are one number": (long_log(agents=("007", "7")), {}),
    "episodes that int() takes for one": (set_to(long_log(), "episode", [f"1_{e}" for e in long_log()["episode"]]), {}),
    "episodes of twenty digits": (
        set_to(long_log(), "episode", [str(12345678901234567890 + e) for e in long_log()["episode"]]),
        {},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_shapes_that_are_the_same_log(tmp_path, name):
    log, columns = RIGHT[name]
    given = {"columns": columns} if columns else {}
    for kind in (".parquet", ".csv"):
        dataset = read(write_table(tmp_path / f"log{kind}", log), **given)
        assert_is_the_log(dataset)
    if name == "rows in any order":
        assert any("sorted by time" in one for one in dataset.metadata["findings"])
    if "not read" in name:
        assert any(one.startswith("columns that are not read: ") for one in dataset.metadata["findings"])


def cell(row):
    return f"line {row + 2}"


WRONG = {
    "a step twice": (
        rows_of(long_log(), [*range(10), 3]),
        {},
        "log.csv, line 12: episode 0, time 1, agent b is there already, at .*line 5; drop one",
    ),
    "a step is missing": (
        without_rows(long_log(), 2, 3),
        {},
        'line 4 .episode 0, time 2.: time goes on by 2 from 0, .* gaps = "split"',
    ),
    "an observation is empty": (
        set_to(long_log(), "obs_y", None, {4}),
        {},
        "line 6 .episode 0, time 2, agent a.: 'obs_y' is empty or NaN, in 1 rows",
    ),
    "a reward is NaN": (set_to(long_log(), "reward", float("nan"), {7}), {}, "line 9 .*: 'reward' is empty or NaN"),
    "an observation is infinite": (
        set_to(long_log(), "obs_x", float("inf"), {0}),
        {},
        "line 2 .*: 'obs_x' is infinite",
    ),
    "too large for float32": (
        set_to(long_log(), "obs_x", 1e300, {0}),
        {},
        "line 2 .*: 'obs_x' is infinite, or too large for float32",
    ),
    "an action is empty": (set_to(long_log(), "action", None, {2}), {}, "line 4 .*: 'action' is empty or NaN"),
    "an episode is empty": (set_to(long_log(), "episode", None, {5}), {}, "line 7: 'episode' is empty"),
    "an agent is empty": (set_to(long_log(), "agent", None, {5}), {}, "line 7: 'agent' is empty"),
    "a time is text": (
        set_to(long_log(), "step", "noon", {5}),
        {},
        "line 7: the time 'step' is the text 'noon'; give numbers, .* or dates and times",
    ),
    "text among numbers": (
        set_to(long_log(), "obs_x", "left", {6}),
        {},
        "line 8: 'obs_x' holds the text 'left', and a number is wanted",
    ),
    "a decimal comma": (set_to(long_log(), "obs_x", "0,5", {6}), {}, "line 8: .*'0,5'.*write decimals with a point"),
    "a flag is empty": (set_to(long_log(), "terminated", None, {6}), {}, "line 8 .*: 'terminated' is empty"),
    "no reward": (long_log(reward=None), {}, "do not say which columns are reward .*log.toml beside it"),
    "names that say nothing": (
        {f"c{i}": v for i, v in enumerate(long_log().values())},
        {},
        "which columns are observations and actions and reward",
    ),
    "no episode": (long_log(episode=None), {}, "needs an episode and a time, and no column is its episode"),
    "no time": (long_log(step=None), {}, "needs an episode and a time, and no column is its time"),
    "the map names no such column": (
        long_log(),
        MAP | {"actions": "actoin"},
        "has no column 'actoin', which is 'actions' by columns=; did you mean 'action'",
    ),
    "a pattern fits nothing": (long_log(), MAP | {"observations": "lidar_*"}, "has no column that fits 'lidar_.'"),
    "a key that no map has": (
        long_log(),
        MAP | {"rewards": "reward"},
        "has the key 'rewards', which no column map has; did you mean 'reward'",
    ),
    "a map without actions": (
        long_log(),
        {k: v for k, v in MAP.items() if k != "actions"},
        "says nothing of 'actions'",
    ),
    "two roles": (long_log(), MAP | {"reward": "action"}, "names 'action' as 'actions' and as 'reward'"),
    "agents in both ways": (wide_log(), WIDE | {"agent": "step"}, "has both an agent column and patterns with {agent}"),
    "an agent that the map does not know": (
        long_log(),
        MAP | {"agents": ["a", "c"]},
        "line 3: 'agent' is 'b', which is none of the agents",
    ),
    "a flag within an episode": (
        set_to(long_log(), "terminated", True, {2, 3}),
        {},
        "line 4 .episode 0, time 1.: a flag ends the episode there, and its rows go on",
    ),
    "nothing ends": (
        wide_log(episode=None, step=None, terminated=None, truncated=None),
        {},
        "nothing says where episodes end",
    ),
    "whole floats as actions": (
        long_log(action=[float(i % 4) for i in range(LONG_ROWS)]),
        {},
        "hold whole numbers up to 3; set discrete = true",
    ),
    "negative actions": (
        long_log(action=[i % 3 - 1 for i in range(LONG_ROWS)]),
        {},
        "'action' is -1, which is no index of an action",
    ),
    "two columns of discrete actions": (
        long_log(action=None, action_0=[1] * 10, action_1=[2] * 10),
        {},
        "are 2 columns of discrete actions",
    ),
    "agents never meet": (
        times(long_log(), 1) | {"step": [2 * i for i in range(10)]},
        {},
        "no two of the agents a, b have a row at the same time",
    ),
    "a state that differs": (
        long_log(state=[float(i) for i in range(10)]),
        {},
        "'state' differs from that of another agent",
    ),
    "actions out of bounds": (long_log(action=[1.5] * 10), {}, r"outside its bounds \[-1, 1\]"),
    "two columns of one name": (None, "episode,step,obs,obs,action,reward\n0,0,1,2,0.5,1\n", "has two columns 'obs'"),
    "no header": (None, "0,0,0.5,1\n0,1,0.25,1\n", "has numbers in its first line"),
    "an empty file": (None, "", "is empty, which names no columns|begins with"),
    "a header alone": (None, "episode,step,obs_x,action,reward\n", "holds no row"),
    "a short row": (
        None,
        "episode,step,obs_x,action,reward\n0,0,1,0.5,1\n0,1,1\n",
        "line 3 has 3 values for 5 columns",
    ),
    "no text": (None, b"\xff\xfe\x00\x01episode,step,obs", "is no Parquet, npz or CSV file"),
    "an open quote": (
        None,
        'episode,step,obs_x,action,reward\n0,0,"1,0.5,1\n',
        "line 2 is no line of a CSV file|values for 5 columns",
    ),
    "a flag of 2": (
        set_to(long_log(), "terminated", 2, {4, 5}),
        {},
        "line 6 .*: 'terminated' is 2, and 'terminal' is true",
    ),
    "a flag of -1": (set_to(long_log(), "truncated", -1, {8, 9}), {}, "line 10 .*: 'truncated' is -1"),
    "half alive": (long_log(mask=[0.5] * 10), {}, "line 2 .*: 'mask' is 0.5, and 'mask' is true or false"),
    "half legal": (
        long_log(action=[0] * 10, avail_0=[1] * 10, avail_1=[0.5] * 10),
        {},
        "line 2 .*: 'avail_1' is 0.5, and 'action_mask' is true or false",
    ),
    "yes and no": (set_to(long_log(), "terminated", "no", {0}), {}, "holds the text 'no', .*true and false"),
    "whole floats of 0 and 1 as actions": (
        long_log(action=[float(i % 2) for i in range(LONG_ROWS)]),
        {},
        r"csv: 'action' of the actions hold whole numbers up to 1; set discrete = true",
    ),
    "one-hot actions as floats": (
        long_log(action=None, action_0=[1.0] * 10, action_1=[0.0] * 10),
        {},
        "'action_0', 'action_1' of the actions hold whole numbers up to 1",
    ),
    "an action that is a number of another kind": (
        long_log(action=[10**6] * 10),
        {},
        "'action' is 1000000, which is no index",
    ),
    "underscores are no digits' separators": (
        set_to(long_log(), "obs_x", "1_000", {3}),
        {},
        "line 5: 'obs_x' holds the text '1_000'",
    ),
    "a time that is not finite": (
        set_to(long_log(), "step", "inf", {2}),
        {},
        "line 4: the time 'step' is the text 'inf'",
    ),
    "times with an offset from UTC and without": (
        set_to(dates(long_log()), "step", "2024-05-01T00:00:01Z", {2, 3}),
        {},
        "some of the times 'step' have an offset from UTC and others none",
    ),
    "probabilities for their logarithms": (
        long_log(action=[0] * 10, log_prob=[0.5] * 10),
        {},
        "'action_log_prob'. is above 0 .*; give the logarithms",
    ),
    "a probability beside an action": (
        long_log(action_prob=[0.5] * 10),
        {},
        "do not say whether 'action_prob' belong to its actions; .* as in actions = ..action",
    ),
    "a value among states": (
        long_log(state_x=[0.5] * 10, state_value=[0.5] * 10),
        {},
        "do not say whether 'state_value' belong to its state; .* as in state = ..state_x",
    ),
    "an agent's name as an observation": (
        long_log(),
        MAP | {"observations": ["obs_x", "agent"]},
        "columns= names 'agent' as 'observations', and it is text",
    ),
    "bounds that are no numbers": (
        long_log(),
        MAP | {"action_bounds": [float("nan"), 1]},
        "as 'action_bounds', where two fin",
    ),
    "bounds in another order": (long_log(), MAP | {"action_bounds": [1, -1]}, "as 'action_bounds', where two finite"),
    "continuous actions with a number": (
        long_log(),
        MAP | {"discrete": False, "n_actions": 3},
        "has discrete = false and n_actions, which discrete actions have; drop one",
    ),
    "discrete actions with bounds": (
        long_log(),
        MAP | {"n_actions": 3, "action_bounds": [0, 1]},
        "has n_actions and action_bounds, which continuous actions have; drop one",
    ),
    "a map of another type": (long_log(), 3, "columns= is 3; give a column map as a dictionary"),
    "time goes back, and nothing numbers episodes": (
        set_to(wide_log((5,), episode=None), "step", [0, 1, 3, 2, 4]),
        {},
        "line 5 .*: time goes on with 2 after 3, within what no flag ends; sort the rows",
    ),
    "a step twice, and nothing numbers episodes": (
        set_to(wide_log((5,), episode=None), "step", [0, 1, 1, 2, 3]),
        {},
        "line 4 .*: time goes on with 1 after 1",
    ),
    "Latin-1": (None, "episode,step,obs_\xf6,action,reward\n".encode("latin-1"), "in UTF-8 .*; save it in UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_shapes_that_are_refused_in_one_sentence(tmp_path, name):
    log, columns, match = WRONG[name]
    path = tmp_path / "log.csv"
    if log is None:
        path.write_bytes(columns if isinstance(columns, bytes) else columns.encode())
        columns = {}
    else:
        write_table(path, log)
    with pytest.raises(DatasetError, match=match) as caught:
        read(f"table:{path}", **({"columns": columns} if columns else {}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("role", ["reward", "terminated", "mask", "log_prob"])
def test_a_list_in_the_place_of_one_number_is_refused(tmp_path, role):
    log = long_log(**{role: [[1.0, 0.0]] * LONG_ROWS})
    with pytest.raises(DatasetError, match=rf"{role}' holds lists of 2 numbers, and .* is one number in each row"):
        read(write_table(tmp_path / "log.parquet", log))
    assert_is_the_log(
        read(write_table(tmp_path / "one.parquet", long_log(reward=[[one] for one in long_log()["reward"]])))
    )


def test_times_of_every_type_of_parquet_and_numpy(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    step = long_log()["step"]
    types = [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.duration("ms"), pa.timestamp("s", "Europe/Berlin")]
    for number, kind in enumerate([*types, pa.date32(), pa.decimal128(20, 3), pa.uint64()]):
        columns = {name: pa.array(values) for name, values in long_log().items()}
        whole = pa.int64() if kind.bit_width == 64 and not pa.types.is_uint64(kind) else pa.int32()
        columns["step"] = pa.array(step, whole).cast(kind)
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table(columns), path)
        assert_is_the_log(read(path))
    for kind in ("datetime64[ms]", "timedelta64[s]"):
        log = {name: np.array(values) for name, values in long_log().items()}
        np.savez(tmp_path / "log.npz", **log | {"step": np.array(step).astype(kind)})
        assert_is_the_log(read(tmp_path / "log.npz"))
        log["step"] = np.array(["NaT", *step[1:]]).astype(kind)
        np.savez(tmp_path / "nat.npz", **log)
        with pytest.raises(DatasetError, match="row 0: 'step' is empty"):
            read(tmp_path / "nat.npz")


def test_a_column_in_which_parquet_has_nothing_is_empty(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array(values) for name, values in wide_log().items()}
    columns |= {f"robot_2_{part}": pa.nulls(5) for part in ("obs_x", "obs_y", "action", "reward")}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    found = read(tmp_path / "log.parquet")
    assert found.data[AGENT_MASK].tolist() == [[True, True, False]] * 5


@pytest.mark.parametrize(
    "given", [{}, WIDE | {"action_mask": "robot_{agent}_avail_*", "observations": "robot_{agent}_obs_*"}]
)
def test_numbered_columns_are_in_the_order_of_their_numbers(tmp_path, given):
    order = [0, 1, 10, 11, *range(2, 10)]
    log = {name: values for name, values in wide_log().items() if "obs" not in name}
    for agent in range(2):
        log[f"robot_{agent}_action"] = [10] * 5
        log |= {f"robot_{agent}_obs_{i}": [float(i)] * 5 for i in order}
        log |= {f"robot_{agent}_avail_{i}": [i in (2, 10)] * 5 for i in order}
    found = read(write_table(tmp_path / "log.parquet", log), **({"columns": given} if given else {}))
    assert found.data[OBSERVATION][0, 1].tolist() == list(range(12))
    assert found.data["agents", "action_mask"][0, 1].nonzero()[:, 0].tolist() == [2, 10]


def test_whole_numbers_with_bounds_are_continuous(tmp_path):
    path = write_table(tmp_path / "log.csv", long_log(action=[i % 3 for i in range(LONG_ROWS)]))
    found = read(path, action_bounds=(0.0, 2.0))
    assert not found.spec.discrete and found.data["agents", "action"].max() == 2


def test_an_end_that_one_agent_alone_is_told_of_is_among_the_findings(tmp_path):
    log = set_to(long_log(), "terminated", False, {5})  # agent b in the last row of episode 0
    found = read(write_table(tmp_path / "log.csv", log))
    assert any(one.startswith("1 agents without a flag in the last row") for one in found.metadata["findings"])
    assert not any(
        "without a flag" in one for one in read(write_table(tmp_path / "all.csv", long_log())).metadata["findings"]
    )


def test_names_may_have_lines_and_be_long_and_a_block_may_be_blank(tmp_path, monkeypatch):
    header = 'episode,step,"obs_\nx",' + ",".join(f"obs_of_a_sensor_{i:05d}" for i in range(4000)) + ",action,reward\n"
    rows = [f"0,{t},{t}," + ",".join(["1"] * 4000) + ",0.5,1\n" for t in range(2)]
    (tmp_path / "log.csv").write_text(header + rows[0] + "\n" * 9 + rows[1])
    monkeypatch.setattr(table_files, "_ROWS", 1)
    columns = {"observations": ["obs_\nx", "obs_of_*"], "actions": "action", "reward": "reward", "episode": "episode"}
    found = read(tmp_path / "log.csv", columns=columns)
    assert found.spec.observation_size == 4001 and found.data[OBSERVATION][:, 0, 0].tolist() == [0, 1]


def test_text_that_is_no_utf_8_far_into_a_file_names_where(tmp_path):
    line = b"0,%d,0.5,0.5,1\n"
    rows = b"".join(line % t for t in range(3000))
    (tmp_path / "log.csv").write_bytes(b"episode,step,obs_x,action,reward\n" + rows + b"0,3000,\xe4,0,1\n")
    with pytest.raises(DatasetError, match=r"after line [0-9]+ is no text in UTF-8 .*; save it in UTF-8"):
        read(tmp_path / "log.csv")


def test_parts_of_a_log_are_in_the_order_of_their_numbers(tmp_path):
    for number in (1, 2, 10):
        (tmp_path / f"part_{number}.csv").write_text(f"obs_x,action,reward,terminated\n{number},0.5,1,1\n")
    assert read(tmp_path).data[OBSERVATION].flatten().tolist() == [1, 2, 10]


def test_an_episode_does_not_go_on_in_the_next_file_unless_that_is_known(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.csv").write_text(f"obs_x,action,reward\n{number},0.5,1\n{number + 0.5},0.5,1\n")
    with pytest.raises(
        DatasetError, match=r"1.csv, line 2: nothing says whether this file goes on .*episodes_per_file = true"
    ):
        read(tmp_path)
    (tmp_path / "columns.toml").write_text(
        'observations = "obs_x"\nactions = "action"\nreward = "reward"\nepisodes_per_file = true\n'
    )
    assert read(tmp_path).episode_lengths.tolist() == [2, 2]


def test_a_packed_csv_is_known_by_its_first_bytes(tmp_path):
    packed = write_table(tmp_path / "log.csv.gz", long_log())
    assert_is_the_log(read(packed.rename(tmp_path / "log.csv")))


@pytest.mark.parametrize("kind", (".parquet", ".npz"))
@pytest.mark.parametrize(
    "name", ["a step twice", "an observation is infinite", "text among numbers", "a reward is NaN", "negative actions"]
)
def test_other_files_name_their_rows_from_0(tmp_path, kind, name):
    log = WRONG[name][0]
    if name == "text among numbers":
        log = set_to(log, "obs_x", ["left"] * LONG_ROWS)
    with pytest.raises(DatasetError) as caught:
        read(write_table(tmp_path / f"log{kind}", log))
    row = {"a step twice": 10, "a reward is NaN": 7}.get(name, 0)
    assert f"log{kind}, row {row}" in str(caught.value)


# Agents that are not there


def test_unequal_agents_and_agents_that_leave_are_masked(tmp_path):
    log = without_rows(long_log((3, 2), agents=("a", "b", "c")), 5, 8, 11, 14)  # c leaves, and is not in episode 1
    dataset = read(write_table(tmp_path / "log.csv", log))
    assert dataset.data[AGENT_MASK].int().tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert (dataset.data[OBSERVATION][1:, 2] == 0).all() and dataset.metadata["agent_names"] == ["a", "b", "c"]
    assert dataset.data["next", "terminated"][:, 0].tolist() == [False, False, True, False, False]


def test_an_agent_whose_own_flag_ends_it_is_dead_from_then_on(tmp_path):
    log = set_to(long_log((4,)), "terminated", True, {3, 6})  # b at step 1; a at 3, where the log ends
    dataset = read(write_table(tmp_path / "log.csv", without_rows(log, 5, 7)))
    assert dataset.data[AGENT_MASK].int().tolist() == [[1, 1], [1, 1], [1, 0], [1, 0]]
    assert dataset.data["next", "terminated"][:, 0].int().tolist() == [0, 0, 0, 1]


def test_wide_columns_that_are_empty_are_an_agent_that_is_not_there(tmp_path):
    log = wide_log()
    for part in ("obs_x", "obs_y", "action", "reward"):
        log = set_to(log, f"robot_1_{part}", None, {3, 4})
    for kind in (".csv", ".parquet", ".npz"):
        dataset = read(write_table(tmp_path / f"log{kind}", log))
        assert dataset.data[AGENT_MASK].int().tolist() == [[1, 1]] * 3 + [[1, 0]] * 2


def test_a_mask_and_names_that_differ_between_episodes(tmp_path):
    log = long_log(mask=[1, 1, 1, 0, 1, 0, 1, 1, 1, 1])
    assert read(write_table(tmp_path / "a.csv", log)).data[AGENT_MASK].int().tolist()[1:3] == [[1, 0], [1, 0]]
    names = [f"car{10 * e + ord(a)}" for e, a in zip(log["episode"], log["agent"])]
    path = write_table(tmp_path / "b.parquet", long_log(agent=names))
    assert read(path).spec.n_agents == 4
    ordered = read(path, columns=MAP | {"agent_places": "order"})
    assert_is_the_log(ordered)
    many = long_log((1,) * 20, agent=[f"car{i}" for i in range(40)])
    with pytest.raises(DatasetError, match='agent_places = "order"'):
        read(write_table(tmp_path / "c.csv", many))


def test_observations_of_unequal_widths_are_filled_up(tmp_path):
    long = read(write_table(tmp_path / "a.csv", set_to(long_log(), "obs_y", None, {0, 2, 4, 6, 8})))
    assert (long.data[OBSERVATION][:, 0, 1] == 0).all() and any("[1, 2] of 2" in f for f in long.metadata["findings"])
    wide = read(write_table(tmp_path / "b.csv", wide_log(robot_1_obs_x=None)))
    assert wide.data[OBSERVATION][:, 1, 1].eq(0).all() and wide.metadata["observation_sizes"] == [2, 1]


# Episodes


def test_gaps_are_split_or_ignored_where_the_map_says_so(tmp_path):
    path = write_table(tmp_path / "log.parquet", without_rows(long_log((6, 3)), 4, 5))
    split = read(path, gaps="split")
    assert split.episode_lengths.tolist() == [2, 3, 3] and split.data[MASK].int().tolist() == [1, 0, 1, 1, 1, 1, 1, 0]
    assert any(one.startswith("1 gaps in time") for one in split.metadata["findings"])
    assert read(path, columns=MAP | {"gaps": "ignore"}).episode_lengths.tolist() == [5, 3]


@pytest.mark.parametrize("flags", ["neither", "timeout alone"])
def test_logs_without_a_terminal_column(tmp_path, flags):
    more = {} if flags == "timeout alone" else {"truncated": None}
    dataset = read(write_table(tmp_path / "log.csv", long_log(terminated=None, **more)))
    assert dataset.data["next", "truncated"][:, 0].int().tolist() == [0, 0, 1, 0, 1]
    assert not dataset.data["next", "terminated"].any()
    assert any("no episode counts as terminated" in one for one in dataset.metadata["findings"])


def test_final_observations_make_the_last_row_count(tmp_path):
    dataset = read(write_table(tmp_path / "log.csv", with_final_rows()))
    assert dataset.data[MASK].all()
    torch.testing.assert_close(dataset.data["next", "agents", "observation"][-1, 0], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(dataset.data["next", "agents", "observation"][2, 1], torch.tensor([0.0, 3.1]))


def test_a_folder_is_one_table_in_the_order_of_its_names(tmp_path):
    log = long_log((3, 2, 4))
    halves = [row for row in range(18) if log["episode"][row] == 0], [r for r in range(18) if log["episode"][r] > 0]
    write_table(tmp_path / "logs" / "part-1.csv", rows_of(log, halves[1]))
    write_table(tmp_path / "logs" / "part-0.parquet", rows_of(log, halves[0]))
    (tmp_path / "logs" / "_SUCCESS").write_text("")
    assert_is_the_log(read(tmp_path / "logs"), (3, 2, 4))
    write_table(tmp_path / "twice" / "a.csv", long_log((3,)))
    write_table(tmp_path / "twice" / "b.csv", long_log((3,)))
    with pytest.raises(
        DatasetError, match=r"b.csv, line 2: episode 0, time 0, agent a .* at .*a.csv, line 2; set episo"
    ):
        read(tmp_path / "twice")
    both = read(tmp_path / "twice", columns=MAP | {"episodes_per_file": True})
    assert both.episode_lengths.tolist() == [3, 3]
    write_table(tmp_path / "twice" / "b.csv", long_log((3,), obs_x=None))
    with pytest.raises(DatasetError, match=r"b.csv has no column 'obs_x', which a.csv has"):
        read(tmp_path / "twice")


# Values


def test_discrete_actions_masks_states_and_log_probabilities(tmp_path):
    more = {"action": [0, 1, 2, 0, 1, 1, 2, 0, 0, 1], "action_mask_0": [1] * 10, "action_mask_1": [True] * 10}
    more |= {"action_mask_2": [1, 0, 1, 1, 0, 1, 1, 1, 1, 1], "logp": [-0.1 * i for i in range(10)]}
    more |= {"state_a": [float(i // 2) for i in range(10)], "success": [0] * 6 + [1] * 4}
    for kind in KINDS:
        dataset = read(write_table(tmp_path / f"log{kind}", long_log(**more)))
        assert dataset.spec == TaskSpec(2, 2, 1, 3, discrete=True, has_action_mask=True)
        assert dataset.data["agents", "action"].flatten().tolist() == more["action"]
        assert dataset.data["agents", "action_mask"][..., 2].int().flatten().tolist() == more["action_mask_2"]
        assert dataset.data[STATE][:, 0].tolist() == [0, 1, 2, 3, 4]
        torch.testing.assert_close(dataset.data[ACTION_LOG_PROB].flatten(), torch.tensor(more["logp"]))
        assert dataset.data[ACTION_LOG_PROB].dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)
        saved = OfflineDataset.load(dataset.save(tmp_path / "saved"))
        converted = OfflineDataset.load(convert_dataset(tmp_path / "log.parquet", tmp_path / "converted"))
    assert_same_rows(saved, dataset)
    assert_same_rows(converted, dataset)
    assert saved.metadata["columns"] == dataset.metadata["columns"]


@pytest.mark.parametrize("kind", (".csv", ".parquet"))
def test_integers_and_bools_are_discrete_and_their_number_is_said(tmp_path, kind):
    steps = read(write_table(tmp_path / f"a{kind}", long_log(action=[i % 4 for i in range(LONG_ROWS)])))
    assert steps.spec.discrete and steps.spec.action_size == 4
    assert any(one.startswith("there are 4 actions, one more than the largest") for one in steps.metadata["findings"])
    given = read(tmp_path / f"a{kind}", n_actions=6)
    assert given.spec.action_size == 6
    flags = read(write_table(tmp_path / f"b{kind}", long_log(action=[i % 3 == 0 for i in range(LONG_ROWS)])))
    assert flags.spec.action_size == 2 and flags.data["agents", "action"].flatten().tolist()[:4] == [1, 0, 0, 1]
    real = read(tmp_path / f"a{kind}", columns=MAP | {"discrete": False, "action_bounds": [0, 3]})
    assert not real.spec.discrete and real.spec.action_high == 3
    one_hot = long_log(action=None, action_0=[1] * 5 + [0] * 5, action_1=[0] * 5 + [1] * 5)
    hot = read(write_table(tmp_path / f"c{kind}", one_hot))
    assert hot.spec.action_size == 2 and hot.data["agents", "action"].flatten().tolist() == [0] * 5 + [1] * 5
    gone = set_to(long_log((3, 2), action=[i % 2 for i in range(LONG_ROWS)]), "action", None, {4, 5})
    assert read(write_table(tmp_path / f"d{kind}", gone)).spec.discrete  # integers, though some rows have none


def test_lists_in_a_column_and_one_agent(tmp_path):
    single = {"episode": [0, 0, 1], "t": [0, 1, 0], "obs": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "act": [0.5, 0.1, 0.2]}
    single |= {"rew": [1.0, 2.0, 3.0], "done": [False, True, True]}
    for kind in (".parquet", ".npz"):
        dataset = read(write_table(tmp_path / f"log{kind}", single))
        assert dataset.spec.n_agents == 1
        assert dataset.data[OBSERVATION][:, 0].tolist() == single["obs"]
        assert dataset.episode_returns().tolist() == [3.0, 3.0]
    ragged = single | {"obs": [[1.0, 2.0], [3.0], [5.0, 6.0]]}
    with pytest.raises(DatasetError, match=r"row 1: 'obs' is a list of 1 numbers, and of 2 before"):
        read(write_table(tmp_path / "ragged.parquet", ragged))


def test_a_value_that_is_not_a_number_is_mended_where_that_is_asked_for(tmp_path):
    path = write_table(tmp_path / "log.csv", set_to(long_log((3, 4)), "obs_y", None, {4}))
    dataset = read(path, repair=True)
    assert dataset.data[MASK].int().tolist() == [1, 0, 0, 1, 1, 1, 0]  # the row, and the one before it
    assert dataset.metadata["repairs"]


def test_numbers_that_float32_rounds_are_told_of(tmp_path):
    log = long_log((40,), action=[0.0] * 80, obs_x=[1.7e9 + 0.5 * i for i in range(80)])
    with pytest.warns(
        DatasetWarning, match=r"obs_x changes by less than float32 can tell .*1700000039.5; subtract an offset"
    ):
        load_dataset(write_table(tmp_path / "log.csv", log))


# The map as a file, and the commands


def test_the_map_beside_a_file_and_in_a_folder(tmp_path):
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in MAP.items())
    log = {{"obs_x": "x", "obs_y": "y"}.get(name, name): values for name, values in long_log().items()}
    path = write_table(tmp_path / "log.csv.gz", log)
    with pytest.raises(DatasetError, match=r"known by no name: 'x', 'y'"):
        read(path)
    (tmp_path / "log.toml").write_text(text.replace('"obs_*"', '["x", "y"]') + '\ntask = "robots"\n')
    dataset = read(path)
    assert_is_the_log(dataset)
    assert dataset.spec.task == "robots"
    (tmp_path / "log.toml").write_text("episode = [")
    with pytest.raises(DatasetError, match=r"log.toml is no TOML"):
        read(path)
    write_table(tmp_path / "logs" / "a.csv", log)
    (tmp_path / "logs" / "columns.toml").write_text(text.replace('"obs_*"', '["x", "y"]'))
    assert_is_the_log(read(tmp_path / "logs"))


def test_inspect_shows_the_map_and_convert_takes_one(tmp_path, capsys):
    path = write_table(tmp_path / "log.csv", long_log())
    assert main(["inspect", str(path)]) == 0
    assert "columns were told by their names: episode = 'episode'" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "map.toml").write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in MAP.items()))
    map_file = ["--columns", str(tmp_path / "map.toml")]
    assert main(["convert", f"table:{path}", str(tmp_path / "out"), *map_file]) == 0
    assert_is_the_log(OfflineDataset.load(tmp_path / "out"))
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "out.parquet")]) == 0
    assert_is_the_log(read(tmp_path / "out.parquet"))
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "out.parquet")]) != 0  # it is there


def test_a_parquet_file_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = write_table(tmp_path / "log.parquet", long_log())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow; pip install 'torchrl-marl-offline\[tables\]'"):
        read(path)
    assert_is_the_log(read(write_table(tmp_path / "log.csv", long_log())))


# Round trips


def masked():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 3, generator=generator) > 0.3
    mask[:, 0] = True
    ends = torch.arange(20) % 10
    return from_arrays(
        observations=torch.randn(20, 3, 4, generator=generator),
        actions=torch.rand(20, 3, 2, generator=generator) * 4,
        rewards=torch.randn(20, 3, generator=generator),
        terminals=ends == 4,
        truncations=ends == 9,
        agent_mask=mask,
        success=ends == 4,
        state=torch.randn(20, 5, generator=generator),
        action_bounds=(0.0, 4.0),
        task="toys/masked",
        metadata={"source": "toys", "license": "MIT", "time_limit": 10},
    )


def with_log_probabilities():
    dataset = episodes([3, 1, 4], n=3)
    dataset.data[ACTION_LOG_PROB] = torch.linspace(-3, 0, 24).reshape(8, 3)
    return dataset


def marked_by_a_repair():
    dataset = collect(CountingEnv(), steps=40, seed=1)
    dataset.data[MASK][3] = False
    dataset.data["collector", "has_next_action"][:2] = False
    return dataset


DATASETS = {
    "continuous": lambda: episodes([3, 1, 4]),
    "truncated": lambda: episodes([3, 1, 4], terminated=False),
    "discrete with masks": lambda: collect(CountingEnv(), steps=60, seed=0),
    "masked agents, a state": masked,
    "log-probabilities": with_log_probabilities,
    "rows that do not count": marked_by_a_repair,
    "one agent": lambda: episodes([5, 2], n=1),
}


@pytest.mark.parametrize("name", DATASETS)
def test_an_exported_table_is_read_back_bit_for_bit(tmp_path, name):
    dataset = DATASETS[name]()
    path = export_dataset(dataset, tmp_path / "out.parquet")
    again = read(path)
    assert_same_rows(again, dataset)
    assert again.spec == dataset.spec
    if name == "masked agents, a state":
        assert again.metadata["license"] == "MIT" and again.metadata["time_limit"] == 10
    assert_same_rows(read(export_dataset(again, path, overwrite=True)), dataset)


def test_what_an_export_leaves_out_is_said(tmp_path):
    dataset = episodes([3, 1])
    dataset.data["mine"] = torch.zeros(4)
    with pytest.warns(DatasetWarning, match="mine: a table does not keep this"):
        export_dataset(dataset, tmp_path / "out.parquet")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_dataset(dataset, tmp_path / "out.parquet")
    with pytest.raises(ValueError, match=r"does not end in .parquet"):
        export_dataset(dataset, tmp_path / "out.csv", format="parquet")


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.npz", "out.h5"])
def test_a_file_of_another_format_is_not_made_a_folder(tmp_path, name):
    with pytest.raises(ValueError, match=r"not written; end it in .parquet, or pass format='minari'"):
        export_dataset(single_agent(False), tmp_path / name)
    assert not list(tmp_path.iterdir())


def single_agent(discrete):
    ends = torch.arange(9) % 5 == 4
    return from_arrays(
        observations=torch.arange(18.0).reshape(9, 1, 2),
        next_observations=torch.arange(18.0).reshape(9, 1, 2) + 2,
        actions=torch.arange(9).reshape(9, 1) % 3 if discrete else torch.linspace(-1, 1, 9).reshape(9, 1, 1),
        rewards=torch.linspace(0, 1, 9).reshape(9, 1),
        terminals=ends,
        n_actions=3 if discrete else None,
    )


@pytest.mark.parametrize("discrete", [False, True])
def test_minari_reads_what_is_exported_and_so_does_load_dataset(tmp_path, monkeypatch, discrete):
    minari = pytest.importorskip("minari")
    dataset = single_agent(discrete)
    path = export_dataset(dataset, tmp_path / "toys" / "line-v0")
    again = read(path)
    assert_same_rows(again, dataset)
    assert (again.spec.action_size, again.spec.discrete) == (dataset.spec.action_size, discrete)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "toys"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari's own
        theirs = minari.load_dataset("line-v0")
    first = next(iter(theirs.iterate_episodes()))
    assert theirs.total_steps == 9 and first.observations.shape == (6, 2) and first.terminations.tolist()[-1]


def test_minari_has_no_place_for_some_data(tmp_path):
    for dataset, match in ((episodes([3]), "has 2; export it as a Parquet"), (marked_by_a_repair(), "has 2")):
        with pytest.raises(DatasetError, match=match):
            export_dataset(dataset, tmp_path / "out-v0")
    open_ended = from_arrays(
        observations=torch.zeros(4, 1, 2),
        actions=torch.zeros(4, 1, 1),
        rewards=torch.ones(4),
        terminals=torch.zeros(4),
        truncations=torch.arange(4) % 2 == 1,
    )
    with pytest.warns(DatasetWarning, match="2 last rows of episodes"):
        export_dataset(open_ended, tmp_path / "out-v0")
    assert read(tmp_path / "out-v0").episode_lengths.tolist() == [1, 1]
    assert not list(tmp_path.glob(".*"))  # nothing is left beside it


# Files of others


def test_objects_in_an_npz_are_never_unpickled(tmp_path):
    mark = tmp_path / "mark"
    columns = {name: np.array(values) for name, values in long_log().items()}
    for name in ("obs_x", "agent", "never read"):
        path = tmp_path / "log.npz"
        np.savez(path, **columns | {name: np.array([Payload(mark)] * LONG_ROWS, dtype=object)})
        for source in (path, f"table:{path}"):
            with pytest.raises(DatasetError, match=f"'{name}' holds Python objects, which are never read"):
                read(source)
    assert not mark.exists()


def test_declared_sizes_cost_no_memory(tmp_path, monkeypatch):
    rng = random.Random(0)
    for _ in range(5):
        path = write_table(tmp_path / "log.npz", long_log(agents=(0, 1)))
        declare(path, rng)
        with pytest.raises(DatasetError, match=r"declares '\w+' as"):
            read(path)
    monkeypatch.setattr(table_files, "_SLACK_BYTES", 0)
    monkeypatch.setattr(table_files, "_LARGER", 1)
    zeros = long_log((4000,), obs_x=[0.0] * 8000, obs_y=[0.0] * 8000, action=[0.0] * 8000, reward=[0.0] * 8000)
    for kind in (".parquet", ".csv.gz"):
        with pytest.raises(DatasetError, match="bytes would become"):
            read(write_table(tmp_path / f"zeros{kind}", zeros))


def test_long_lists_of_which_a_file_holds_none_cost_no_memory(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array(values) for name, values in long_log(obs_x=None, obs_y=None).items()}
    pq.write_table(
        pa.table(columns | {"obs": pa.nulls(LONG_ROWS, pa.list_(pa.float32(), 2_000_000))}), tmp_path / "log.parquet"
    )
    with pytest.raises(DatasetError, match=r"bytes would become 80,000,\d+ bytes"):
        read(tmp_path / "log.parquet")


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    import os

    write_table(tmp_path / "logs" / "a.csv", long_log())
    os.mkfifo(tmp_path / "logs" / "b.csv")
    with pytest.raises(DatasetError, match=r"b.csv is a named pipe"):
        read(f"table:{tmp_path / 'logs'}")


def test_no_other_text_is_taken_for_a_table(tmp_path):
    for name, text in {"a.txt": "hello, world, this\n", "b.md": "# Title\n", "c.log": "1,2,3\n4,5,6\n"}.items():
        (tmp_path / name).write_text(text)
    assert [table_files.looks_like_table(tmp_path / name) for name in ("b.md", "c.log")] == [False, False]


def test_what_is_known_of_the_task_is_kept_by_a_table(tmp_path):
    dataset = episodes([3, 1, 4]).with_bounds("data")
    dataset.metadata["team_reward"] = True
    again = read(export_dataset(dataset, tmp_path / "out.parquet"))
    assert again.spec == dataset.spec and again.task_spec == dataset.task_spec != again.spec
    assert again.metadata["team_reward"] is True


@pytest.mark.parametrize("bounds", [5, "ab", [1.0], [[1.0], [2.0, 3.0, 4.0, 5.0, 6.0]], [2.0, -2.0], None, {"low": 1}])
def test_bounds_in_a_table_that_are_none_are_refused(tmp_path, bounds):
    dataset = episodes([3, 1, 4])
    dataset.metadata["declared_bounds"] = bounds
    path = export_dataset(dataset, tmp_path / "out.parquet")
    with pytest.raises(DatasetError, match="damaged declared_bounds"):
        read(path)
