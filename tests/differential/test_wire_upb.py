"""H2-28: over any bytes the native reader and upb agree on whether they are a CheckRequest, and on what it says."""

from __future__ import annotations

import random
import re

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath import envoy, wire
from tests.fix_wire import field, full_request, in_http, varint

MUTATIONS = 8000
NAMESPACES = ("envoy.filters.http.mcp", "mcp_proxy")
PSEUDO = ":"
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def upb(data: bytes) -> CheckRequest | None:
    try:
        return CheckRequest.FromString(data)
    except DecodeError:
        return None


def sanitised(raw: bytes) -> str:
    """Each byte that is not UTF-8 becomes `!`."""
    return raw.decode("utf-8", "surrogateescape").translate({0xDC80 + i: "!" for i in range(128)})


def lower(name: str) -> str:
    return name.lower() if TOKEN.fullmatch(name) else name


def expected_headers(http) -> list[tuple[str, str]]:
    """Lower case, sorted by name; lines of one name in the order received, which a map does not have."""
    if http.header_map.headers:
        lines = [(lower(h.key), sanitised(h.raw_value or h.value.encode())) for h in http.header_map.headers]
    else:
        lines = sorted((lower(key), value) for key, value in http.headers.items())
    return [line for line in sorted(lines, key=by_name) if not line[0].startswith(PSEUDO)]


def by_name(line: tuple[str, str]) -> bytes:
    return line[0].encode()


def mcp_of(struct: struct_pb2.Struct) -> tuple[str, str]:
    params = struct.fields["params"].struct_value.fields if "params" in struct.fields else {}
    method = struct.fields["method"].string_value if "method" in struct.fields else ""
    key = "uri" if method.startswith("resources/") and len(method) > 10 else "name"
    return method, params[key].string_value if key in params else ""


def time_of(attributes) -> int:
    time = attributes.request.time
    return time.seconds * 10**9 + time.nanos if 0 <= time.seconds < 9_000_000_000 else 0


def pseudo_or(typed: str, name: str, http) -> str:
    raw = [h.raw_value or h.value.encode() for h in http.header_map.headers if h.key == name]
    return typed or next((line.decode() for line in raw if line and wire.is_utf8(line)), "")


def expected(message: CheckRequest) -> dict[str, object]:
    """What `fastpath.envoy.decode` must say of a message that upb has read."""
    attributes = message.attributes
    http = attributes.request.http
    metadata = attributes.metadata_context.filter_metadata
    namespace = next((name for name in NAMESPACES if name in metadata), None)
    method, name = mcp_of(metadata[namespace]) if namespace else ("", "")
    return {
        "source_principal": attributes.source.principal,
        "source_address": attributes.source.address.socket_address.address,
        "destination_principal": attributes.destination.principal,
        "sni": attributes.tls_session.sni,
        "has_http": attributes.request.HasField("http"),
        "http_id": http.id,
        "method": http.method,
        "raw_path": pseudo_or(http.path, ":path", http),
        "raw_host": pseudo_or(http.host, ":authority", http),
        "scheme": http.scheme,
        "protocol": http.protocol,
        "size": http.size if attributes.request.HasField("http") else -1,
        "headers": expected_headers(http),
        "body": http.raw_body or http.body.encode(),
        "extensions": dict(attributes.context_extensions),
        "mcp_method": method,
        "mcp_name": name,
        "mcp_metadata": namespace is not None,
        "time_unix_ns": time_of(attributes),
    }


def agree(data: bytes) -> bool:
    """Compare both readers on `data`; returns whether it was a CheckRequest."""
    message = upb(data)
    call = envoy.decode(data)
    assert (call is None) == (message is None), (data.hex(), envoy.verdict(data))
    assert (envoy.verdict(data) == wire.WireError.WIRE_OK) == (message is not None)
    if message is None or call is None:
        return False
    want = expected(message)
    if not message.attributes.request.http.header_map.headers:
        call["headers"] = sorted(sorted(call["headers"]), key=by_name)
    assert {key: call[key] for key in want} == want, data.hex()
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    room = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(room) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            room[at:at] = bytes([rng.choice([0, 1, 0x0A, 0x12, 0x0B, 0x0C, 0x7F, 0x80, 0xC0, 0xFF])])
        elif kind == 1 and at < len(room):
            del room[at : at + rng.choice([1, 2, 7])]
        elif kind == 2 and at < len(room):
            room[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            room = room[:at]
        elif kind == 4:
            end = min(len(room), at + rng.randrange(1, 60))
            room[at:at] = room[at:end]
        else:
            room += data[: rng.randrange(len(data) + 1)]
    return bytes(room)


def test_seeded_requests_and_mutations_are_read_alike():
    """H2-28: valid requests, two of them joined (messages merge), and every kind of damage to them."""
    rng = random.Random(20261)
    valid = 0
    for _ in range(MUTATIONS):
        data = full_request(rng).SerializeToString()
        assert agree(data)
        if rng.random() < 0.3:
            data += full_request(rng).SerializeToString()
            assert agree(data)
        valid += agree(mutate(data, rng))
    assert MUTATIONS // 50 < valid < MUTATIONS


@st.composite
def wire_bytes(draw, depth: int = 5) -> bytes:
    """Bytes that look like protobuf at every level, with real field numbers and every wire type."""
    made = b""
    for _ in range(draw(st.integers(0, 4))):
        number = draw(st.sampled_from([1, 1, 2, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 127]))
        kind = draw(st.sampled_from([0, 1, 2, 2, 2, 2, 3, 5]))
        value = draw(st.binary(max_size=6)) if depth == 0 or draw(st.booleans()) else draw(wire_bytes(depth - 1))
        made += varint(number << 3 | kind)
        if kind == 0:
            made += draw(
                st.sampled_from([b"\x00", b"\x7f", b"\xff\x01", b"\xff" * 9 + b"\x01", b"\x80" * 10 + b"\x01"])
            )
        elif kind == 2:
            made += varint(len(value)) + value
        elif kind == 3:
            made += value + varint(draw(st.sampled_from([number, number, number, 7])) << 3 | 4)
        else:
            made += b"\x01" * (8 if kind == 1 else 4)
    return made


@settings(max_examples=1000, deadline=None)
@given(wire_bytes())
def test_generated_protobuf_is_read_alike(data: bytes):
    agree(data)
    agree(in_http(data))
    agree(field(1, field(11, data)))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_read_alike(data: bytes):
    agree(data)
    agree(in_http(data))


def nested_struct(levels: int) -> bytes:
    made = b""
    for _ in range(levels):
        made = field(1, field(1, b"a") + field(2, field(5, made)))
    return field(1, field(11, field(1, field(1, b"mcp_proxy") + field(2, made))))


EDGES = {
    "varint of 10 bytes, bits above 64 dropped": in_http(b"\x48" + b"\xff" * 9 + b"\x7f"),
    "varint of 11 bytes": in_http(b"\x48" + b"\xff" * 10 + b"\x01"),
    "tag of 5 bytes, overlong": b"\xfa\x87\x80\x80\x00\x00",
    "tag of 6 bytes": b"\xfa\x87\x80\x80\x80\x00\x00",
    "tag above 32 bits": b"\xfa\xff\xff\xff\x1f\x00",
    "largest field number": b"\xfa\xff\xff\xff\x0f\x00",
    "length of 5 bytes, overlong": b"\x0a\x80\x80\x80\x80\x00",
    "length of 6 bytes": b"\x0a\x80\x80\x80\x80\x80\x00",
    "length above 2 GiB": b"\x0a\xff\xff\xff\xff\x0f",
    "field 0": b"\x02\x00",
    "field 0, overlong": b"\x82\x00\x00",
    "wire type 6": b"\xfe\x07",
    "wire type 7": b"\xff\x07",
    "unknown group": b"\xfb\x07\x08\x01\xfc\x07",
    "field 0 in a group": b"\xfb\x07\x00\x01\x03\x04\xfc\x07",
    "field 0 ends another group": b"\xfb\x07\x04\xfc\x07",
    "known field as a group": b"\x0b\x0c",
    "group that does not end": b"\xfb\x07",
    "group end without a start": b"\xfc\x07",
    "group ended by another": b"\xfb\x07\xf4\x07",
    "group across a message's end": field(1, b"\xfb\x07") + b"\xfc\x07",
    "100 groups": b"\xfb\x07" * 100 + b"\xfc\x07" * 100,
    "101 groups": b"\xfb\x07" * 101 + b"\xfc\x07" * 101,
    "97 groups in http": in_http(b"\xfb\x07" * 97 + b"\xfc\x07" * 97),
    "98 groups in http": in_http(b"\xfb\x07" * 98 + b"\xfc\x07" * 98),
    "Struct 100 messages deep": nested_struct(32),
    "Struct 103 messages deep": nested_struct(33),
    "Struct 10,000 levels deep": nested_struct(10_000),
    "10,000 groups": b"\xfb\x07" * 10_000,
    "string that is not UTF-8, replaced later": in_http(field(4, b"\xff") + field(4, b"/")),
    "surrogate": in_http(field(4, b"\xed\xa0\x80")),
    "overlong UTF-8": in_http(field(4, b"\xc0\xaf")),
    "U+10FFFF": in_http(field(4, b"\xf4\x8f\xbf\xbf")),
    "above U+10FFFF": in_http(field(4, b"\xf4\x90\x80\x80")),
    "map key that is not UTF-8": in_http(field(3, field(1, b"\xff"))),
    "map value before its key": in_http(field(3, field(2, b"v") + field(1, b"k"))),
    "map entry twice, the last wins": in_http(field(3, field(1, b"k") + field(2, b"1")) + field(3, field(1, b"k"))),
    "map entry with an unknown field is left out": in_http(field(3, field(1, b"k") + b"\xf8\x07\x01")),
    "map entry with a group is left out": in_http(field(3, field(1, b"k") + b"\xfb\x07\xfc\x07")),
    "map entry with a key of another type is left out": in_http(field(3, b"\x08\x01" + field(1, b"k"))),
    "duplicate singular, the last wins": in_http(field(4, b"/a") + field(4, b"/b")),
    "string as a varint": in_http(b"\x20\x05"),
    "fixed64 cut short": b"\xf9\x07" + b"\x00" * 7,
    "fixed32 cut short": b"\xfd\x07" + b"\x00" * 3,
    "oneof: socket, pipe, socket": field(
        1, field(1, field(1, field(1, field(2, b"1.1.1.1")) + field(2, b"") + field(1, b"")))
    ),
    "oneof: socket twice merges": field(1, field(1, field(1, field(1, field(2, b"1.1.1.1")) + field(1, b"")))),
    "empty": b"",
}


def test_edges_are_read_alike():
    """H2-28: each known edge of the wire format by name."""
    verdicts = {name: agree(data) for name, data in EDGES.items()}
    assert set(verdicts.values()) == {True, False}


def test_duplicate_params_in_mcp_metadata_are_merged_as_protobuf_merges_them():
    """A Value that is set twice merges its Structs; set to something else in between, it starts anew."""

    def params(*values: bytes) -> bytes:
        entry = field(1, b"params") + b"".join(field(2, value) for value in values)
        return field(1, field(11, field(1, field(1, b"mcp_proxy") + field(2, field(1, entry)))))

    def struct(key: bytes, text: bytes) -> bytes:
        return field(5, field(1, field(1, key) + field(2, field(3, text))))

    name, uri, null, text = struct(b"name", b"t"), struct(b"uri", b"u"), b"\x08\x00", field(3, b"x")
    for values in [
        (name, uri),
        (name + uri,),
        (name + null + uri,),
        (name, text),
        (name, null),
        (text, name),
        (name, b""),
    ]:
        assert agree(params(*values))
    entry = field(1, b"name") + field(2, field(3, b"t")) + field(2, field(3, b"u"))
    assert agree(params(field(5, field(1, entry))))


def collect_messages(message: Descriptor, seen: dict[str, Descriptor]) -> None:
    if message.full_name in seen or message.full_name == "google.protobuf.Struct":
        return
    seen[message.full_name] = message
    for member in message.fields:
        if member.message_type:
            collect_messages(member.message_type, seen)


def shape_name(message: Descriptor) -> str:
    if not message.GetOptions().map_entry:
        return message.name
    value = message.fields_by_name["value"]
    return f"{value.message_type.name if value.message_type else 'Text'}Entry"


def test_the_schema_is_the_one_of_the_proto_files():
    """Every string and message that upb checks in a CheckRequest is checked here, and nothing else."""
    seen: dict[str, Descriptor] = {}
    collect_messages(CheckRequest.DESCRIPTOR, seen)
    want = {}
    for message in seen.values():
        members = {
            member.number: shape_name(member.message_type) if member.message_type else "string"
            for member in message.fields
            if member.message_type or member.type == FieldDescriptor.TYPE_STRING
        }
        want[shape_name(message)] = members
    assert want == envoy.SCHEMA
