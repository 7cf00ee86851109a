"""Ids of tasks, approvals and the like: time first, each behind the one before it."""

import os
from collections.abc import Iterator

MS_NS = 1_000_000
AT_ONCE = 128


def first_of(now_ns: int) -> bytes:
    """What no id of this millisecond or of a later one is smaller than."""
    return f"{_ms(now_ns):012x}".encode()


def _ms(now_ns: int) -> int:
    return now_ns // MS_NS & (1 << 48) - 1


class Ids:
    """Makes 128 bits in hexadecimal as in a UUIDv7 (RFC 9562, section 6.2, method 1): milliseconds, a counter, chance.

    What is opened together lies together in the store, at the end of what was opened before, so a commit writes few
    pages and fills them. An id is a name, no key to anything: tasks are bound to their agent's SVID, and 64 bits of
    chance keep two stores apart. For one thread at a time.
    """

    def __init__(self) -> None:
        self._ms = 0
        self._in_ms = 0
        self._chances: Iterator[str] = iter(())

    def make(self, now_ns: int) -> str:
        """The next id. `now_ns` never goes back."""
        ms = _ms(now_ns)
        self._in_ms = self._in_ms + 1 if ms == self._ms else 0
        self._ms = ms
        chance = next(self._chances, "")
        if not chance:
            # Asking the kernel costs as much for many as for one.
            self._chances = iter(os.urandom(8 * AT_ONCE).hex(" ", 8).split())
            chance = next(self._chances)
        return f"{ms:012x}{self._in_ms:04x}{chance}"
