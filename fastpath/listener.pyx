"""A native door from Python: its loops, what they are given, and what they count (listener.pxd).

Everything between `serve` and its end runs without the GIL, so an interpreter that is busy stops no call; what needs
Python leaves through the slow lane (fastpath/lane.pxd) and wakes its loop when it comes back. What a call
reads is taken from the Pdp's slot at its start (fastpath/held.pxd); who calls is judged at the handshake and again at
each call, since a connection outlives credentials, bundles and lists.
"""
from fastpath.admission cimport Admission, admission_open
from fastpath.bells cimport room_enter, room_leave
from fastpath.c.linux cimport eventfd_write
from fastpath.call cimport Pdp
from fastpath.held cimport Slot
from fastpath.http2 cimport CAUSES, Door, STATUSES, Stats
from fastpath.lane cimport Lane
from fastpath.loop cimport Loop, PepList, remit_flag_set
from fastpath.rounds cimport rounds_run
from fastpath.strangers cimport Strangers
from fastpath.tls cimport TlsIdentity
from fastpath.verify cimport REFUSALS, Verifier, refusal_text
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

import os
import threading

cdef int64_t MS_NS = 1000000
NOTICE_MS = 1000         # how long a draining peer may take to hear of it

CAUSE_NAMES = ("none", "peer", "protocol", "resets", "faults", "flood", "handshake", "settings", "idle", "stall", "age",
               "drain", "memory", "credentials", "full", "crowd", "died")


def _run(Loop loop not None):
    """Serve until the loop is stopped."""
    with nogil:
        room_enter(&loop.pdp.bells.table, &loop.door.room)
        rounds_run(loop)
        room_leave(&loop.pdp.bells.table, &loop.door.room)


cdef int _limit(Door *door, dict limits) except -1:
    """Fill the bounds of a loop from the arguments of its Listener."""
    door.limits.message_bytes, door.limits.streams = limits["message_bytes"], limits["streams"]
    door.limits.headers, door.limits.header_bytes = limits["headers"], limits["header_bytes"]
    door.limits.connections = limits["connections"]
    door.limits.handshakes = max(1, limits["handshakes"] // limits["threads"])
    door.limits.handshakes_per_address = limits["handshakes_per_address"]
    door.limits.held, door.limits.door_held = limits["held_bytes"], limits["door_held_bytes"]
    door.limits.handshake_ns, door.limits.settings_ns = limits["handshake_ms"] * MS_NS, limits["settings_ms"] * MS_NS
    door.limits.stream_ns, door.limits.deadline_ns = limits["stream_ms"] * MS_NS, limits["deadline_ms"] * MS_NS
    door.limits.talks, door.limits.talk_waiting = limits["check_streams_per_peer"], limits["stream_questions"]
    door.limits.talk_bytes = limits["stream_queue_bytes"]
    door.limits.tickets, door.limits.watch_ns = limits["slow_calls_per_peer"], limits["watch_ms"] * MS_NS
    door.limits.first_request_ns = limits["first_request_ms"] * MS_NS
    door.limits.idle_ns, door.limits.age_ns = limits["idle_ms"] * MS_NS, limits["age_ms"] * MS_NS
    door.limits.grace_ns = limits["grace_ms"] * MS_NS
    door.limits.keepalive_ns, door.limits.ping_ns = limits["keepalive_ms"] * MS_NS, limits["ping_ms"] * MS_NS
    return 0


cdef class Listener:

    def __init__(self, Pdp pdp not None, *, envoy, str spiffe_id="", group=-1, Verifier verifier=None, int threads=1,
                 message_bytes=262144, streams=256, headers=64, header_bytes=16384, connections=4096,
                 connections_per_peer=256, handshakes=2048, handshakes_per_address=512, held_bytes=4194304,
                 door_held_bytes=268435456, handshake_ms=5000, settings_ms=2000, first_request_ms=10000,
                 stream_ms=10000, deadline_ms=1000, idle_ms=300000, keepalive_ms=20000, ping_ms=10000, age_ms=600000,
                 grace_ms=30000, slow_calls=1024, slow_calls_per_peer=128, watch_ms=600000,
                 check_streams_per_peer=64, stream_questions=256, stream_queue_bytes=65536, arena_bytes=4194304):
        cdef dict limits = {
            "message_bytes": message_bytes, "streams": streams, "headers": headers, "header_bytes": header_bytes,
            "connections": connections, "threads": threads, "handshakes": handshakes,
            "handshakes_per_address": handshakes_per_address, "held_bytes": held_bytes,
            "door_held_bytes": door_held_bytes, "handshake_ms": handshake_ms, "settings_ms": settings_ms,
            "first_request_ms": first_request_ms, "stream_ms": stream_ms, "deadline_ms": deadline_ms,
            "idle_ms": idle_ms, "keepalive_ms": keepalive_ms, "ping_ms": ping_ms, "age_ms": age_ms,
            "grace_ms": grace_ms, "slow_calls_per_peer": slow_calls_per_peer, "watch_ms": watch_ms,
            "check_streams_per_peer": check_streams_per_peer, "stream_questions": stream_questions,
            "stream_queue_bytes": stream_queue_bytes,
        }
        cdef Loop loop
        cdef int i
        self._identity, self._peps = Slot(), Slot()
        self._admission = Admission(threads, connections_per_peer)
        self.lane = Lane(threads, slow_calls)
        self.strangers = Strangers()
        self._doors = <Door **> calloc(threads, sizeof(Door *))
        if self._doors == NULL:
            raise MemoryError
        self._loops = []
        for i in range(threads):
            loop = Loop()
            loop.pdp, loop.lane, loop.admission = pdp, self.lane, self._admission
            loop.strangers = self.strangers
            loop.trust = verifier.in_force if verifier is not None else None
            loop.secure = verifier is not None
            loop.identity, loop.peps = self._identity, self._peps
            loop._spiffe_id = spiffe_id.encode()
            loop._spiffe_id_p, loop._spiffe_id_n = loop._spiffe_id, <uint32_t> len(loop._spiffe_id)
            loop.group = <uint32_t> (group & 0xFFFFFFFF)
            loop.door.serves_envoy = bool(envoy)
            _limit(&loop.door, limits)
            loop._memory(arena_bytes)
            loop.notice_ns = NOTICE_MS * MS_NS
            loop.door.lane, loop.door.loop = &self.lane.table, i
            loop.door.beside, loop.door.loops = self._doors, threads
            self._doors[i] = &loop.door
            self.lane.table.wakes[i] = self._admission.desks[i].wake = loop.wake
            self._loops.append(loop)

    def __dealloc__(self):
        free(self._doors)

    def put_identity(self, TlsIdentity identity):
        self._identity.put(identity, identity.ctx if identity is not None else NULL)

    def put_peps(self, PepList peps not None):
        self._peps.put(peps, &peps.peps)

    def put_ready(self, ready):
        cdef Loop loop
        for loop in self._loops:
            remit_flag_set(&loop.ready, bool(ready))

    def stop(self, grace_ms, notice_ms=NOTICE_MS):
        cdef Loop loop
        for loop in self._loops:
            loop.notice_ns = notice_ms * MS_NS
            loop.grace_ns = grace_ms * MS_NS
            remit_flag_set(&loop.stopping, 1)
            eventfd_write(loop.wake, 1)

    def serve(self, int fd):
        cdef Loop loop
        if self._serving:
            raise RuntimeError("this listener serves already, or has served")
        self._serving = 1
        os.set_blocking(fd, False)
        for loop in self._loops:
            loop._join(fd)
        others = [threading.Thread(target=_run, args=(loop,), name="door", daemon=True) for loop in self._loops[1:]]
        try:
            for other in others:
                other.start()
            _run(self._loops[0])
        finally:
            # When a thread cannot be started those that were are ended: they work on memory of ours.
            if any(other.ident is None for other in others):
                self.stop(0, 0)
            for other in others:
                if other.ident is not None:
                    other.join()
            self._admission.close_waiting()
            self.lane.close()
            self.strangers.close()

    def counters(self):
        cdef dict total = {}
        cdef Loop loop
        for loop in self._loops:
            for name, value in _counted(loop).items():
                if isinstance(value, dict):
                    into = total.setdefault(name, {})
                    for key, n in value.items():
                        into[key] = into.get(key, 0) + n
                elif name == "buffered_max":
                    total[name] = max(total.get(name, 0), value)
                else:
                    total[name] = total.get(name, 0) + value
        total["loops"] = [self._doors[i].stats.accepted for i in range(len(self._loops))]
        total["open"] = admission_open(self._admission)
        total["slow_waiting"] = self.lane.waiting()
        return total


cdef dict _counted(Loop loop):
    cdef const Stats *s = &loop.door.stats
    return {
        "accepted": s.accepted, "events": s.events, "bytes_in": s.bytes_in, "bytes_out": s.bytes_out,
        "records_in": s.records_in,
        "frames_in": s.frames_in, "headers_in": s.headers_in, "streams": s.streams, "calls": s.calls,
        "health": s.health,
        "slow": s.slow, "slow_full": s.slow_full, "check_streams": s.talks, "notices": s.notices,
        "refused": s.refused, "resets_in": s.resets_in,
        "resets_out": s.resets_out, "cancelled": s.cancelled, "buffered_max": s.buffered_max,
        "internal": s.internal, "verified": s.verified, "held": loop.door.held,
        "goaways": {CAUSE_NAMES[i]: s.goaways[i] for i in range(1, CAUSES) if s.goaways[i]},
        "statuses": {i: s.statuses[i] for i in range(STATUSES) if s.statuses[i]},
        "closed": {CAUSE_NAMES[i]: s.closed[i] for i in range(1, CAUSES) if s.closed[i]},
        "refusals": {(<bytes> refusal_text(i)).decode(): loop.refusals[i]
                     for i in range(1, REFUSALS) if loop.refusals[i]},
    }
