"""Records that are not decisions: what changed what decides."""

import time

from sidecar._proto.remit.decisions.v1 import decisions_pb2

DETAIL_CHARS_MAX = 512


def event_record(name: str, detail: str = "", *, generation: int = 0, epoch: int = 0, time_unix_ns: int = 0) -> bytes:
    """An encoded Event record for `Journal.append_bytes`; `time_unix_ns` 0 reads the clock."""
    event = decisions_pb2.Event(
        time_unix_nano=time_unix_ns or time.time_ns(),
        name=name,
        detail=detail[:DETAIL_CHARS_MAX],
        generation=generation,
        revocation_epoch=epoch,
    )
    return decisions_pb2.Record(event=event).SerializeToString()
