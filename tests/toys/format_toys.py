"""Small recordings in the formats that others publish, written with each format's own library."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest


def vault_arrays(
    lengths: list[int], *, seeds: int = 1, n: int = 2, discrete: bool = True, terminated: bool = True
) -> dict[str, np.ndarray]:
    """Seed b, episode e, time t: observation (100 b + e, t, agent), state (e, t), action (e + t) % 3 or t / 10.

    The reward of agent i is t + i, every action but 2 - i of agent i is legal where it is not taken.
    """
    e = np.concatenate([np.full(length, number) for number, length in enumerate(lengths)])
    t = np.concatenate([np.arange(length) for length in lengths])
    rows = len(e)
    last = np.zeros(rows, bool)
    last[np.cumsum(lengths) - 1] = True
    agent = np.arange(n)
    observations = np.stack(
        [
            np.broadcast_to(e[:, None], (rows, n)),
            np.broadcast_to(t[:, None], (rows, n)),
            np.broadcast_to(agent, (rows, n)),
        ],
        -1,
    )
    arrays = {
        "observations": np.stack([observations + np.array([100.0 * b, 0, 0]) for b in range(seeds)]),
        "rewards": np.broadcast_to(t[:, None] + agent, (seeds, rows, n)),
        "terminals": np.broadcast_to((last & terminated)[:, None], (seeds, rows, n)),
        "truncations": np.broadcast_to((last & (not terminated))[:, None], (seeds, rows, n)),
        "infos.state": np.broadcast_to(np.stack([e, t], -1), (seeds, rows, 2)),
    }
    if discrete:
        actions = np.broadcast_to(((e + t) % 3)[:, None], (rows, n))
        legal = np.ones((rows, n, 3))
        legal[np.arange(rows)[:, None], agent, (actions + 1) % 3] = 0
        arrays["actions"] = np.broadcast_to(actions, (seeds, rows, n)).astype(np.int32)
        arrays["infos.legals"] = np.broadcast_to(legal, (seeds, rows, n, 3))
    else:
        arrays["actions"] = np.broadcast_to((t / 10)[:, None, None], (seeds, rows, n, 2)).astype(np.float32)
    return {
        name: np.array(values, dtype=values.dtype if values.dtype in (np.bool_, np.int32) else np.float32)
        for name, values in arrays.items()
    }


def write_vault(folder: Path, arrays: dict[str, np.ndarray], *, rows: int | None = None, chunk_rows: int = 7) -> Path:
    """Write what flashbax writes: one OCDBT store, zarr arrays 1e13 rows long, ``vault_index``, ``metadata.json``."""
    tensorstore = pytest.importorskip("tensorstore")
    folder.mkdir(parents=True, exist_ok=True)
    shapes: dict = {"infos": {}}
    for name, values in arrays.items():
        shape = (values.shape[0], 10**13, *values.shape[2:])
        store = tensorstore.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "ocdbt", "base": folder.as_uri(), "path": f"{name}."},
                "metadata": {
                    "compressor": {"id": "gzip", "level": 5},
                    "chunks": [1, chunk_rows, *values.shape[2:]],
                },
            },
            shape=shape,
            dtype=values.dtype.name,
            create=True,
            open=True,
        ).result()
        store[:, : values.shape[1]].write(values).result()
        group, _, leaf = name.rpartition(".")
        (shapes[group] if group else shapes)[leaf] = str(values.shape)
    index = tensorstore.open(
        {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": folder.as_uri(), "path": "vault_index"}},
        shape=(1,),
        dtype="int32",
        create=True,
        open=True,
    ).result()
    index.write(np.array([arrays["rewards"].shape[1] if rows is None else rows], np.int32)).result()
    (folder / "metadata.json").write_text(json.dumps({"version": 1.2, "structure_shape": shapes}))
    return folder


def omiga_arrays(lengths: list[int], *, n: int = 2) -> dict[str, np.ndarray]:
    """Episode e of ``length`` transitions: ``length + 1`` rows, the last with ``d`` set; observation (e, t)."""
    e = np.concatenate([np.full(length + 1, number) for number, length in enumerate(lengths)])
    t = np.concatenate([np.arange(length + 1) for length in lengths])
    observations = np.broadcast_to(np.stack([e, t], -1)[:, None], (len(e), n, 2)).astype(np.float64)
    done = np.zeros((len(e), 1))
    done[np.cumsum([length + 1 for length in lengths]) - 1] = 1
    return {
        "s": np.concatenate([observations, observations[..., :1]], -1),
        "o": observations,
        "a": np.broadcast_to((t / 100)[:, None, None], (len(e), n, 1)).copy(),
        "r": t[:, None] + 1.0,
        "d": done,
    }


def d4rl_arrays() -> dict[str, np.ndarray]:
    """Three steps that terminate, two that time out, one more; observation (2 t, 2 t + 1), reward t."""
    return {
        "observations": np.arange(12, dtype=np.float32).reshape(6, 2),
        "actions": np.linspace(-1, 1, 6, dtype=np.float32)[:, None],
        "rewards": np.arange(6, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0], bool),
    }


def ogbench_arrays(lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """Trajectories of so many steps in OGBench's layout: one row more each, the last of which is terminal."""
    ends = np.cumsum(np.asarray(lengths) + 1) - 1
    rows, chance = int(ends[-1]) + 1, np.random.default_rng(0)
    terminals = np.zeros(rows, np.float32)
    terminals[ends] = 1
    observations = chance.normal(size=(rows, 29)).astype(np.float32)
    actions = chance.uniform(-1, 1, size=(rows, 8)).astype(np.float32)
    return {"observations": observations, "actions": actions, "terminals": terminals}


def write_omar(folder: Path, *, episodes: int, length: int, n: int = 2, seed: int = 0, states: bool = False) -> Path:
    """Episode e, time t, agent i: observation (seed, e, t) (agent 0 sees one number less), reward t + i."""
    folder.mkdir(parents=True, exist_ok=True)
    e, t = np.repeat(np.arange(episodes), length), np.tile(np.arange(length), episodes)
    for agent in range(n):

        def full(time, agent=agent):
            columns = np.stack([np.full_like(e, seed), e, time], -1).astype(np.float64)
            return columns[:, 1:] if agent == 0 else columns

        arrays = {
            "obs": full(t),
            "next_obs": full(t + 1),
            "acs": np.stack([t / 1000, -t / 1000], -1),
            "rews": (t + agent).astype(np.float64),
            "dones": np.zeros(len(t)),
        }
        if states:
            arrays["states"] = np.stack([e, t], -1).astype(np.float64)
            arrays["next_states"] = np.stack([e, t + 1], -1).astype(np.float64)
        for name, values in arrays.items():
            np.save(folder / f"{name}_{agent}.npy", values)
    return folder


def write_minari(folder: Path, monkeypatch, lengths: list[int], *, discrete: bool = False, name: str = "toy/chain-v0"):
    """Episode e, time t: observation (e, t), action t / 10 or t % 3, reward t; odd episodes are truncated."""
    minari = pytest.importorskip("minari")
    import gymnasium
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    buffers = []
    for e, length in enumerate(lengths):
        t = np.arange(length)
        observations = np.stack([np.full(length + 1, e), np.arange(length + 1)], -1).astype(np.float32)
        last = t == length - 1
        buffers.append(
            EpisodeBuffer(
                observations=list(observations),
                actions=list(t % 3 + 5 if discrete else (t[:, None] / 10).astype(np.float32)),
                rewards=[float(value) for value in t],
                terminations=list(last & (e % 2 == 0)),
                truncations=list(last & (e % 2 == 1)),
                infos=None,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the writer asks for a description, an environment and so on
        minari.create_dataset_from_buffers(
            name,
            buffers,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32),
            action_space=gymnasium.spaces.Discrete(3, start=5)
            if discrete
            else gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32),
            author="a",
            author_email="a@example.org",
            code_permalink="https://example.org",
            algorithm_name="none",
        )
    return folder / name
