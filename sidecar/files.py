"""Files that operators name, read whole: only regular ones, only up to a bound, only UTF-8."""

import os
import stat


class UnusableFile(Exception):
    """A file that cannot be used; the text says why and goes on after its quoted name."""


def shown(path: str) -> str:
    """The path as text that can be written everywhere; bytes that are not UTF-8 are escaped."""
    return path.encode(errors="backslashreplace").decode()


def read_text(path: str, bytes_max: int) -> str:
    """The text of a file of at most `bytes_max` bytes. UnusableFile when there is none, or it is no such text.

    A pipe or a device could keep its reader waiting for ever, so neither is opened for good.
    """
    if not _is_text(path):
        raise UnusableFile("has a name that is not UTF-8 text; rename it")
    try:
        with open(path, "rb", opener=_open) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UnusableFile("is not a regular file")
            if found.st_size > bytes_max:
                raise UnusableFile(f"is larger than {bytes_max} bytes")
            raw = file.read(found.st_size + 1)
    except OSError as error:
        raise UnusableFile(f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(raw) != found.st_size:
        raise UnusableFile("changed while it was read; try again")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UnusableFile(f"is not UTF-8 (line {line}, byte {error.start})") from None


def _is_text(path: str) -> bool:
    try:
        return b"\0" not in path.encode()
    except UnicodeEncodeError:
        return False


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
