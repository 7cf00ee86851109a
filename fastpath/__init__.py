"""The data plane. Its compiled modules are one library, so that what a call touches of them lies together in memory."""

import ctypes
import importlib.machinery
import importlib.util
import sys
from pathlib import Path


class _Library:
    """Finds the modules that are in the library (importlib.abc.MetaPathFinder)."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._symbols = ctypes.PyDLL(self._path)

    def find_spec(self, fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        package, _dot, name = fullname.rpartition(".")
        # PEP 489: a library exports a function of this name for each module in it.
        if package != __name__ or not hasattr(self._symbols, f"PyInit_{name}"):
            return None
        loader = importlib.machinery.ExtensionFileLoader(fullname, self._path)
        return importlib.util.spec_from_file_location(fullname, self._path, loader=loader)


def _install() -> None:
    found = [
        path
        for suffix in importlib.machinery.EXTENSION_SUFFIXES
        if (path := Path(__file__).with_name(f"_native{suffix}")).is_file()
    ]
    if not found:
        raise ImportError("fastpath is not built; run `make setup`")
    try:
        library = _Library(found[0])
    except OSError as error:
        raise ImportError(f"fastpath cannot be loaded: {error}") from None
    # Before the finder of files: what an older build left beside this file is not what was built last.
    sys.meta_path.insert(0, library)


_install()
