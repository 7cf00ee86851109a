"""The doors that the fuzz target talks to: each kind with rules that allow and with rules that allow nothing."""

from __future__ import annotations

import atexit
import pathlib
import tempfile

from fastpath.call import Pdp
from fastpath.journal import Journal
from fastpath.table import Generation
from tests.fix_native import NativeServer
from tests.fix_rules import image
from tests.fuzz.test_call_fuzz import ALICE, MAPPING, demo

SEGMENT_BYTES, CAP_BYTES = 1 << 20, 8 << 20
NOTHING = "permit(principal, action, resource); forbid(principal, action, resource);"
DENIES, ENVOY = 1, 2  # bits of an input's first byte: the door that it is sent to


def serve() -> list[str]:
    """Start the four doors, in the order of an input's first byte; the paths of their sockets."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="remit-fuzz"))
    nothing = Generation.from_bytes(image(NOTHING, columns=True), generation=1)
    paths = []
    for number in range(4):
        home = folder / str(number)
        home.mkdir()
        # Records go round in little space: the run is long.
        journal = Journal(home / "journal", segment_bytes=SEGMENT_BYTES, cap_bytes=CAP_BYTES, on_full="drop_oldest")
        pdp = Pdp(journal, budget_ms=60_000)
        pdp.put_rules(nothing if number & DENIES else demo(), MAPPING)
        pdp.put_state(epoch=0, bundle_generation=0, not_ready="")
        server = NativeServer(
            str(home), pdp, envoy=bool(number & ENVOY), agent=ALICE, message_bytes=1 << 16, arena_bytes=1 << 20
        )
        atexit.register(journal.close)
        atexit.register(server.stop)
        paths.append(server.path)
    return paths
