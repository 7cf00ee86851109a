"""What `remit doctor` tries out: does this machine's library or kernel do what we rely on?

A version says little, since distributions mend old ones and new ones break: each probe makes the library do the thing.
A probe answers ok, unsafe (it did something that we rely on not to happen) or unknown (it could not be tried).
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from sidecar.errors import SidecarError

log = logging.getLogger("remit.probes")


class State(Enum):
    OK = "ok"
    UNSAFE = "unsafe"
    UNKNOWN = "unknown"


class Verdict(NamedTuple):
    """What a probe found, and for all but OK what to do about it."""

    state: State
    found: str
    advice: str = ""


class Probe(NamedTuple):
    """One thing to try; `look` may fail in any way, which is then `unknown`."""

    what: str
    look: Callable[[], Verdict]


def ok(found: str) -> Verdict:
    return Verdict(State.OK, found)


def unsafe(found: str, advice: str) -> Verdict:
    return Verdict(State.UNSAFE, found, advice)


def unknown(found: str, advice: str) -> Verdict:
    return Verdict(State.UNKNOWN, found, advice)


def run(probes: Iterable[Probe]) -> Iterator[tuple[str, Verdict]]:
    """Try all of them, each by itself: (what, verdict)."""
    for probe in probes:
        yield probe.what, _tried(probe)


def _tried(probe: Probe) -> Verdict:
    try:
        return probe.look()
    except (SidecarError, OSError) as error:
        return unknown(f"could not be tried: {_cause(error)}", "mend the cause, then run remit doctor again")
    except Exception as error:
        # A library that is broken may raise whatever it likes; that is the finding, and the other probes go on.
        log.debug("probe.failed", exc_info=True, extra={"fields": {"probe": probe.what}})
        return unknown(f"could not be tried: {type(error).__name__}: {error}", "is the library installed whole?")


def _cause(error: SidecarError | OSError) -> str:
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return text[:1].lower() + text[1:]
