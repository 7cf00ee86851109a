"""The two planes: `fastpath` is complete without `sidecar`."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = [path for kind in ("py", "pyx", "pxd", "pyi") for path in sorted((ROOT / "fastpath").rglob(f"*.{kind}"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_data_plane_imports_nothing_of_the_control_plane(path: pathlib.Path) -> None:
    """What decides must not depend on what may be slow and may fail; the other way round is the only way."""
    assert not re.findall(r"^\s*(?:from|import|cimport)\s+sidecar\b.*", path.read_text(encoding="utf-8"), re.MULTILINE)
