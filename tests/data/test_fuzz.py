"""Damaged files through every reader: each ends in a DatasetError or in a dataset that keeps to the layout.

``TORCHRL_MARL_OFFLINE_FUZZ`` sets the number of files of each reader, 14 by default; ``benchmarks/mutated_files.py``
tries 200 and measures the memory. A flipped bit inside a number of a format without checksums gives another number,
which nothing can notice; what must never happen is a crash, a hang, another exception, or a dataset that
:func:`validate` would refuse; and, where the format has checksums, other data. (A vault's chunks have checksums, its
files have not: a whole file in another's place is not noticed.)
"""

from __future__ import annotations

import os
import random
import zlib

import pytest
from file_mutations import KINDS, READERS, original, try_one

FILES = int(os.environ.get("TORCHRL_MARL_OFFLINE_FUZZ", "14"))


@pytest.mark.fault("5.6")
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # NumPy's about NaN, Minari's about versions
@pytest.mark.parametrize("prefix", READERS)
def test_damaged_files_end_in_our_error_or_a_correct_load(tmp_path, monkeypatch, prefix):
    for library in ("h5py", "tensorstore", "minari"):
        pytest.importorskip(library)
    rng = random.Random(zlib.crc32(prefix.encode()))
    whole = original(prefix, tmp_path / "whole", monkeypatch)
    kinds = sorted({*KINDS})
    outcomes: list[str] = []
    # a vault's files have names of chance, so that now and then the first damages are all beside the point
    while len(outcomes) < FILES or ("refused" not in outcomes and len(outcomes) < 5 * FILES):
        kind = kinds[len(outcomes) % len(kinds)]
        outcomes.append(try_one(prefix, whole, tmp_path / "copy", rng, kind)[0])
    assert "refused" in outcomes
