"""RFC 9113 sections 3.3 and 3.4: how a connection starts."""

import pytest

from tests.fix_http2 import PROTOCOL, Answered, Case, Connection, body, check, headers, ids, setting
from tests.fix_native import ACK, PING, PREFACE, SETTINGS, NativeServer, RawClient, frame

CASES = [
    Case("3.4", "the preface and SETTINGS", lambda c: c.request(1), Answered()),
    Case(
        "3.4",
        "requests before the acknowledgement of our SETTINGS",
        lambda c: PREFACE + frame(SETTINGS) + c.request(1) + frame(SETTINGS, ACK),
        Answered(),
        hello=False,
    ),
    Case(
        "3.4",
        "SETTINGS with values",
        lambda c: PREFACE + frame(SETTINGS, payload=setting((3, 7), (4, 70000))) + frame(SETTINGS, ACK) + c.request(1),
        Answered(),
        hello=False,
    ),
    Case("3.4", "text of HTTP/1.1", b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", Connection((PROTOCOL,)), hello=False),
    Case(
        "3.4",
        "a preface with one wrong byte",
        PREFACE[:-1] + b"x" + frame(SETTINGS),
        Connection((PROTOCOL,)),
        hello=False,
    ),
    Case("3.4", "a preface in lower case", PREFACE.lower() + frame(SETTINGS), Connection((PROTOCOL,)), hello=False),
    Case(
        "3.4",
        "PING where SETTINGS belongs",
        PREFACE + frame(PING, 0, 0, b"12345678"),
        Connection((PROTOCOL,)),
        hello=False,
    ),
    Case(
        "3.4",
        "HEADERS where SETTINGS belongs",
        lambda c: PREFACE + headers(c) + body(),
        Connection((PROTOCOL,)),
        hello=False,
    ),
    Case(
        "3.4",
        "an acknowledgement where SETTINGS belongs",
        PREFACE + frame(SETTINGS, ACK),
        Connection((PROTOCOL,)),
        hello=False,
    ),
    Case("3.4", "a preface of a second connection later", PREFACE, Connection((PROTOCOL, 6))),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_start(quiet_door: NativeServer, case: Case) -> None:
    """RFC 9113 section 3: a connection starts with the preface and SETTINGS, or it ends."""
    check(quiet_door, case)


def test_our_first_frame_is_settings_and_theirs_is_acknowledged(quiet_door: NativeServer) -> None:
    """RFC 9113 sections 3.4 and 6.5.3."""
    with RawClient(quiet_door.address) as client:
        client.until(lambda: (SETTINGS, ACK, 0, b"") in client.frames)
        kind, flags, stream, _ = client.frames[0]
        assert (kind, flags, stream) == (SETTINGS, 0, 0)


def test_the_preface_may_come_byte_by_byte(quiet_door: NativeServer) -> None:
    """RFC 9113 section 3.4: nothing says how TCP cuts it."""
    with RawClient(quiet_door.address, hello=False) as client:
        for byte in PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK):
            client.send(bytes((byte,)))
        assert client.ask(1) == ("0", "")
