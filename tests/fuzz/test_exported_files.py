"""A few hundred exported files changed at random; `exported_files.py` tries any number."""

from __future__ import annotations

import pytest
from exported_files import FORMS, fuzz


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMS)
def test_hostile_files_are_refused_or_harmless(kind):
    counts, failures = fuzz(kind, 200)
    assert failures == {}
    assert counts["refused"] + counts["accepted"] == 200
    assert counts["refused"] >= 100  # else the changes would not reach the reader
