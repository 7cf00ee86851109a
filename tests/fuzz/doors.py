"""The doors that the fuzz target talks to: each kind with rules that allow and with rules that allow nothing."""

from __future__ import annotations

import atexit
import contextlib
import pathlib
import tempfile
import threading
from collections.abc import Iterator

from fastpath.call import Pdp
from fastpath.journal import Journal
from fastpath.table import Generation
from sidecar.health_watch import HealthWatch
from tests.fix_native import NativeServer
from tests.fix_rules import image
from tests.fuzz.test_call_fuzz import ALICE, MAPPING, demo

SEGMENT_BYTES, CAP_BYTES = 1 << 20, 8 << 20
# A stream that waits for long is one that nobody answers; the target says so before the door resets it.
BOUNDS = {"message_bytes": 1 << 16, "arena_bytes": 1 << 20, "stream_ms": 100_000}
NOTHING = "permit(principal, action, resource); forbid(principal, action, resource);"
DENIES, ENVOY = 1, 2  # bits of an input's first byte: the door that it is sent to


@contextlib.contextmanager
def doors() -> Iterator[list[NativeServer]]:
    """The four doors, in the order of an input's first byte."""
    nothing = Generation.from_bytes(image(NOTHING, columns=True), generation=1)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rf")))
        made = []
        for number in range(4):
            home = folder / str(number)
            home.mkdir()
            # Records go round in little space: a run may be long.
            journal = stack.enter_context(
                Journal(home / "journal", segment_bytes=SEGMENT_BYTES, cap_bytes=CAP_BYTES, on_full="drop_oldest")
            )
            pdp = Pdp(journal, budget_ms=60_000)
            pdp.put_rules(nothing if number & DENIES else demo(), MAPPING)
            pdp.put_state(epoch=0, bundle_generation=0, not_ready="")
            server = NativeServer(str(home), pdp, envoy=bool(number & ENVOY), agent=ALICE, **BOUNDS)
            stack.callback(server.stop)
            watch = HealthWatch(server.listener.lane)
            watch.put_ready(True)
            threading.Thread(target=watch.run, daemon=True).start()
            made.append(server)
        yield made


def serve() -> list[str]:
    """Start the doors for as long as this process lives; the paths of their sockets."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return [server.path for server in stack.enter_context(doors())]
