"""`fastpath` is one library: each of its modules is found in it, and what is wrong with it is said."""

import importlib
import importlib.machinery
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastpath
from fastpath import journal, wire

SOURCE = Path(fastpath.__file__)


def said(folder: Path) -> str:
    """The last line of what the interpreter says to `import fastpath` in a folder."""
    done = subprocess.run([sys.executable, "-c", "import fastpath"], cwd=folder, capture_output=True, text=True)
    return done.stderr.splitlines()[-1]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with the package, and no library in it."""
    (tmp_path / "fastpath").mkdir()
    shutil.copy(SOURCE, tmp_path / "fastpath")
    return tmp_path


def test_all_modules_come_from_one_file() -> None:
    """And each is itself: names, functions and stubs are a module's."""
    assert wire.__file__ == journal.__file__
    assert wire.__name__ == "fastpath.wire"
    assert journal.Journal.__module__ == "fastpath.journal"


def test_it_counts_nothing() -> None:
    """The build that counts branches is slow, and writes files; it only teaches the one that is used."""
    assert b"__gcov_" not in Path(wire.__file__).read_bytes()


def test_a_module_that_is_not_in_it_is_not_found() -> None:
    """As for any package: a build without the native doors is noticed by it."""
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'fastpath\.nothing'"):
        importlib.import_module("fastpath.nothing")


def test_a_module_in_a_file_of_its_own_is_left_alone(tmp_path: Path) -> None:
    """What an older build left beside the library is not what was built last."""
    finder = next(one for one in sys.meta_path if type(one).__module__ == "fastpath")
    spec = finder.find_spec("fastpath.wire", [str(tmp_path)], None)
    assert spec is not None
    assert spec.origin == wire.__file__
    assert finder.find_spec("fastpath.spool", None, None) is None


def test_without_a_library_the_next_step_is_told(copied: Path) -> None:
    """A checkout that nobody built."""
    assert said(copied) == "ImportError: fastpath is not built; run `make setup`"


def test_a_library_that_cannot_be_loaded_is_told(copied: Path) -> None:
    """As when one of the libraries that it needs is gone."""
    library = copied / "fastpath" / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    library.write_text("no library")
    assert said(copied).startswith(f"ImportError: fastpath cannot be loaded: {library}")
