"""Files that a run reads: no input may be more than one clear line, nor take long."""

from __future__ import annotations

import pytest
from outcomes import fuzz


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "inputs"), [("settings", 200), ("state", 300)])
def test_hostile_files(reader, inputs, seed):
    counts, failures = fuzz(reader, seed, inputs)
    print(dict(counts))
    assert failures == []
    # Some of each kind, or nothing was tried.
    assert counts["clean"] > inputs / 4
    assert counts["accepted"] > inputs / 50
