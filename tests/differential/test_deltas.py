"""A delta over its base answers as the edited set compiled anew, and as cedarpy, after any sequence of edits."""

from __future__ import annotations

import pytest

from tests.differential.deltas import check


@pytest.mark.parametrize("seed", range(1000, 1016))
def test_a_delta_answers_like_a_fresh_compile_and_like_cedarpy(seed: int):
    """Policies and entities put, changed, removed and put again, near roots and leaves: the same decision, reasons in
    the same order, errors, obligation and trace. `python -m tests.differential --deltas` runs as many as asked for."""
    assert check(seed) == 8
