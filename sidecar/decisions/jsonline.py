"""A record as one JSON line: what `remit collect` writes.

Numbers of 64 bits are strings (as in protobuf's own JSON, since readers keep 53 bits), bytes are hex, enums are names,
and all characters outside ASCII are escaped, so that a line is one line to every reader. `payload` is the record itself
in base64: with it the hash chain can be computed again.
"""

import base64
import datetime
import json
from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from fastpath.record import MANDATORY, missing_fields
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.errors import ProtocolError

_WIDE = frozenset(
    {
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED64,
        FieldDescriptor.TYPE_SINT64,
    }
)


def parse(payload: bytes) -> decisions_pb2.Record:
    """The record in `payload`.

    ProtocolError when it is none, is of no kind, or lacks a mandatory field (draft-klrc-aiagent-auth, audit minimum).
    """
    try:
        record = decisions_pb2.Record.FromString(payload)
        missing = missing_fields(payload)
    except (DecodeError, ValueError) as error:
        raise ProtocolError(f"the record does not decode: {error}") from None
    if record.WhichOneof("kind") is None:
        raise ProtocolError("the record is neither a decision, a gap nor an event")
    if missing:
        raise ProtocolError(f"the record lacks {', '.join(f'`{name}`' for name in missing)}")
    return record


def plain(record: decisions_pb2.Record) -> dict[str, Any]:
    """{"kind": .., "time": RFC 3339, fields by name}: set fields, and of a decision always the mandatory ones."""
    kind = record.WhichOneof("kind")
    message = getattr(record, kind)
    made: dict[str, Any] = {"kind": kind}
    if time_unix_ns := getattr(message, "time_unix_nano", 0):
        made["time"] = rfc3339(time_unix_ns)
    if kind == "decision":
        by_name = message.DESCRIPTOR.fields_by_name
        made.update((name, _scalar(by_name[name], getattr(message, name))) for name in MANDATORY.values())
    made.update(_fields(message))
    return made


def line(journal: str, sidecar: str, sequence: int, digest: bytes, payload: bytes) -> bytes:
    """One line with its newline. ProtocolError as `parse`."""
    fields = {
        "journal": journal,
        "sidecar": sidecar,
        "sequence": sequence,
        "hash": digest.hex(),
        **plain(parse(payload)),
    }
    fields["payload"] = base64.b64encode(payload).decode()
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def rfc3339(time_unix_ns: int) -> str:
    """UTC with nanoseconds, as RFC 3339 writes it; the plain number where the calendar ends."""
    seconds, ns = divmod(time_unix_ns, 1_000_000_000)
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError):
        return str(time_unix_ns)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns:09d}Z"


def _fields(message: Message) -> Iterable[tuple[str, Any]]:
    for field, value in message.ListFields():
        if field.is_repeated:
            yield field.name, [_scalar(field, item) for item in value]
        else:
            yield field.name, _scalar(field, value)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return dict(_fields(value))
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value.hex()
    return str(value) if field.type in _WIDE else value
