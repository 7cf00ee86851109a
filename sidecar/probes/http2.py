"""What the installed nghttp2 makes of hostile frames, behind our own accounting (CVE-2023-44487, CVE-2024-28182, ..).

Each probe is a client of raw frames against a native door of this process. Our accounts rest on callbacks that nghttp2
makes and on limits of its own; a build that lacks one shows here as work that was done or a connection that lived on.
"""

import contextlib
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from fastpath.call import Pdp
from fastpath.listener import Listener
from sidecar.probes import Probe, Verdict, ok, unsafe

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
WINDOW_MAX = (1 << 31) - 1
TIMEOUT_S = 10
GRACE_MS = 0
LAST_WORD = b"lastword"  # payload of the ping whose answer shows that the connection lives
MEND = "install a newer libnghttp2, or set `listeners.listener: grpcio`"
WORK_MAX = 200  # requests, resets: far above our limits, far below what each probe sends

Counters = dict[str, Any]
Door = Callable[[], contextlib.AbstractContextManager[tuple[str, Callable[[], Counters]]]]


@contextlib.contextmanager
def native_door() -> Iterator[tuple[str, Callable[[], Counters]]]:
    """A door that knows no rules and answers ERROR: (path of its socket, its counters)."""
    listener = Listener(Pdp(None), envoy=False, spiffe_id="spiffe://probe.invalid/client")
    with tempfile.TemporaryDirectory(prefix="remit-probe-") as folder, socket.socket(socket.AF_UNIX) as listening:
        path = f"{folder}/sock"
        listening.bind(path)
        listening.listen()
        thread = threading.Thread(target=listener.serve, args=(listening.fileno(),), name="probe", daemon=True)
        thread.start()
        try:
            yield path, listener.counters
        finally:
            listener.stop(GRACE_MS)
            thread.join(TIMEOUT_S)


def probes(door: Door = native_door) -> list[Probe]:
    return [
        Probe("nghttp2: rapid reset", lambda: rapid_reset(door)),
        Probe("nghttp2: provoked resets", lambda: provoked_resets(door)),
        Probe("nghttp2: endless headers", lambda: endless_headers(door)),
        Probe("nghttp2: repeated headers", lambda: repeated_headers(door)),
        Probe("nghttp2: illegal headers", lambda: illegal_headers(door)),
    ]


def rapid_reset(door: Door) -> Verdict:
    """CVE-2023-44487: requests that are reset at once must end the connection, not be decided."""
    block = _block()
    attack = b"".join(
        _frame(HEADERS, END_HEADERS, n, block) + _frame(RST, 0, n, struct.pack(">I", 8)) for n in range(1, 4001, 2)
    )
    lives, work = _converse(door, attack)
    if lives or work["streams"] > WORK_MAX * 5 or work["calls"] > WORK_MAX:
        return unsafe(f"2000 requests, reset at once: {_told(lives, work, 'streams', 'calls')}", MEND)
    return ok(f"ended after {work['streams']} of 2000")


def provoked_resets(door: Door) -> Verdict:
    """CVE-2025-8671: what makes us reset must be counted; nghttp2 1.52 leaves one way uncounted (window overflow)."""
    block, window = _block(), struct.pack(">I", WINDOW_MAX)
    attack = b"".join(_frame(HEADERS, END_HEADERS, n, block) + _frame(WINDOW, 0, n, window) for n in range(1, 2001, 2))
    lives, work = _converse(door, attack)
    if lives or work["resets_out"] > WORK_MAX:
        return unsafe(f"1000 window overflows: {_told(lives, work, 'resets_out')}", MEND)
    return ok(f"ended after {max(work['resets_out'], 1)} of 1000")


def endless_headers(door: Door) -> Verdict:
    """CVE-2024-28182: a header block that never ends must end the connection."""
    attack = _frame(HEADERS, 0, 1, _block()) + _frame(CONTINUATION, 0, 1, b"") * 5000
    lives, work = _converse(door, attack)
    if lives:
        return unsafe(f"5000 CONTINUATION frames: {_told(lives, work, 'frames_in')}", MEND)
    return ok("ended")


def repeated_headers(door: Door) -> Verdict:
    """CVE-2026-49975: one table entry named again and again is work and memory that no byte limit sees."""
    entry = b"\x40" + _text(b"x") + _text(b"v" * 100)
    attack = _frame(HEADERS, END_HEADERS | END_STREAM, 1, _block() + entry + b"\xbe" * 12_000)
    lives, work = _converse(door, attack)
    if work["headers_in"] > WORK_MAX or work["calls"]:
        return unsafe(f"12000 headers from one entry: {_told(lives, work, 'headers_in', 'calls')}", MEND)
    return ok(f"refused after {work['headers_in']} of 12000")


def illegal_headers(door: Door) -> Verdict:
    """A header that is dropped in silence is one that a rule on its presence does not see."""
    for name, value in ((b"x-a", b"b\0c"), (b"X-A", b"b"), (b"x-a", b"b\r\nx-b: c")):
        attack = _frame(HEADERS, END_HEADERS, 1, _block() + b"\0" + _text(name) + _text(value))
        lives, work = _converse(door, attack + _frame(DATA, END_STREAM, 1, b"\0\0\0\0\0"))
        if work["calls"] or (lives and not work["resets_out"]):
            return unsafe(f"`{name!a}: {value!a}`: {_told(lives, work, 'calls', 'resets_out')}", MEND)
    return ok("refused")


def _converse(door: Door, attack: bytes) -> tuple[bool, Counters]:
    """Send it all; whether the connection lives then, and the work that it caused."""
    with door() as (path, counters):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(path)
            lives = _survives(client, attack)
        return lives, counters()


def _survives(client: socket.socket, attack: bytes) -> bool:
    greeting = PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(SETTINGS, ACK, 0, b"")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(greeting + attack + _frame(PING, 0, 0, LAST_WORD))
    answer = _frame(PING, ACK, 0, LAST_WORD)
    heard = b""
    while answer not in heard:
        try:
            chunk = client.recv(65536)
        except ConnectionResetError:
            return False
        if not chunk:
            return False
        heard = heard[-len(answer) :] + chunk
    return True


def _told(lives: bool, work: Counters, *names: str) -> str:
    counts = ", ".join(f"{work[name]} {name}" for name in names)
    return f"the connection {'lives on' if lives else 'ended'}, {counts}"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _block() -> bytes:
    """The header block of a Check (RFC 7541: indexed where the static table has it, else literal)."""
    path, content_type = b"/remit.authz.v1.Authorization/Check", b"application/grpc"
    literals = ((b":path", path), (b":authority", b"probe"), (b"content-type", content_type), (b"te", b"trailers"))
    return b"\x83\x86" + b"".join(b"\0" + _text(name) + _text(value) for name, value in literals)


def _text(text: bytes) -> bytes:
    assert len(text) < 127, "one length byte (RFC 7541 section 5.1)"
    return bytes((len(text),)) + text
