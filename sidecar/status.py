"""What is in force now, as one message: for `remit status`, `remit doctor` and the metrics."""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastpath.journal import JournalState
from sidecar import seccomp
from sidecar._proto.remit.control.v1 import control_pb2
from sidecar.authority.authority import EFFECT_MS
from sidecar.metrics import AuthorityFacts
from sidecar.runtime import Runtime
from sidecar.version import VERSION

if TYPE_CHECKING:
    from sidecar.native import NativeDoor

_JOURNAL = {JournalState.JOURNAL_OK: "ok", JournalState.JOURNAL_FULL: "full", JournalState.JOURNAL_FAILED: "failed"}


class StatusView:
    """Reads one runtime; also what sidecar.metrics calls Facts."""

    def __init__(self, runtime: Runtime, listeners: Mapping[str, str], doors: Mapping[str, "NativeDoor"]) -> None:
        """`listeners`: bound address, and `doors`: native door, by configuration field; read at each call, so both may
        grow.
        """
        self._runtime = runtime
        self._listeners = listeners
        self._doors = doors
        self._started = int(time.time())

    def counters(self) -> dict[str, Any]:
        return self._runtime.pdp.counters()

    def error_counts(self) -> dict[str, int]:
        return self._runtime.errors.read()

    def reload_counts(self) -> dict[str, int]:
        return dict(self._runtime.reloads)

    def authority(self) -> AuthorityFacts | None:
        authority = self._runtime.authority
        if authority is None:
            return None
        counts = tuple(authority.effect_counts)
        return AuthorityFacts(
            authority.figures(), EFFECT_MS, counts, authority.effect_ms_sum, authority.store.old_readers
        )

    def door_counts(self) -> dict[str, dict[str, Any]]:
        # Doors are added while the metrics are served already.
        return {name: door.listener.counters() for name, door in tuple(self._doors.items())}

    def refused_calls(self) -> dict[str, int]:
        return seccomp.refused()

    def status(self) -> control_pb2.StatusResponse:
        runtime = self._runtime
        identity = runtime.source.current()
        return control_pb2.StatusResponse(
            name=runtime.name(),
            spiffe_id=identity.spiffe_id if identity else "",
            svid_not_after_unix=identity.not_after_s if identity else 0,
            bundle_generation=runtime.source.bundle_generation,
            trust_domains=sorted(identity.bundles) if identity else (),
            ready=not runtime.not_ready,
            not_ready=runtime.not_ready,
            generation=runtime.rules.generation,
            generation_digest=runtime.rules.digest,
            revocation_epoch=runtime.epoch,
            listeners=[control_pb2.Listener(name=n, address=a) for n, a in sorted(self._listeners.items())],
            journal=self._journal(),
            stream=self._stream(),
            decisions=self._decisions(),
            config_file=runtime.config.file,
            started_unix=self._started,
            pid=os.getpid(),
            last_reload_problem=runtime.last_problem,
            extras_read=runtime.rules.extras_read,
            version=VERSION,
        )

    def _journal(self) -> control_pb2.Journal:
        journal = self._runtime.journal
        counters = journal.counters()
        return control_pb2.Journal(
            id=journal.id,
            state=_JOURNAL[JournalState(journal.state)],
            last_sequence=counters["next_sequence"] - 1,
            bytes=counters["bytes"],
            problem=journal.problem,
        )

    def _stream(self) -> control_pb2.Stream:
        shipper = self._runtime.shipper
        if shipper is None:
            return control_pb2.Stream()
        stats = shipper.stats()
        return control_pb2.Stream(
            configured=True,
            connected=stats.connected,
            acknowledged=stats.acknowledged,
            lag=stats.lag_records,
            last_error=stats.last_error,
        )

    def _decisions(self) -> list[control_pb2.Count]:
        counts: Any = self._runtime.pdp.counters()["decisions"]
        return [control_pb2.Count(door=d, outcome=o, count=n) for (d, o), n in counts.items() if n]
