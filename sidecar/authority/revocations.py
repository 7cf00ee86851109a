"""Revocations: what is denied, or may only read, or needs an approval, from the next call on."""

import re

import msgspec

from fastpath import spiffe_id
from sidecar.authority.draft import REVOCATIONS, SECOND_NS, Caller, Draft, hashed
from sidecar.authority.errors import invalid, missing
from sidecar.authority.rows import LIVING, Kind, Mode, Revocation
from sidecar.authority.tasks import check_text, close_tasks, get_task
from sidecar.errors import IdentityError

EXPIRE = "R"
_SERIAL = re.compile(r"[0-9a-f]{1,64}")
_NAME = re.compile(r"[a-z0-9._-]{1,255}")


class Revoke(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind
    key: str
    mode: Mode = Mode.DENY
    reason: str = ""
    ttl_s: int = 0


class Lift(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind
    key: str
    mode: Mode = Mode.DENY
    reason: str = ""


class Revoked(msgspec.Struct, frozen=True, kw_only=True):
    revocation: Revocation
    closed: tuple[str, ...]


def revoke(draft: Draft, asked: Revoke, by: Caller) -> Revoked:
    """In force from now on. A task that is denied for good ends, with all below it."""
    check_key(asked.kind, asked.key)
    check_text("reason", asked.reason, empty=True)
    if not 0 <= asked.ttl_s <= draft.limits.ttl_s_max:
        raise invalid("ttl_s", f"is {asked.ttl_s}; at most {draft.limits.ttl_s_max} seconds can be; 0: until lifted")
    row = Revocation(
        kind=asked.kind,
        key=asked.key,
        mode=asked.mode,
        reason=asked.reason,
        revoked_by=by.id,
        revoked_ns=draft.now_ns,
        expires_ns=draft.now_ns + asked.ttl_s * SECOND_NS if asked.ttl_s else 0,
        epoch=draft.epoch,
    )
    key = row_key(row.kind, row.key, row.mode)
    draft.put(REVOCATIONS, key, row)
    draft.tell("revoke", live_revocation(row))
    if row.expires_ns:
        draft.due(row.expires_ns, EXPIRE, key)
    draft.event("revoked", by, kind=row.kind, key=row.key, mode=row.mode, reason=row.reason)
    closed: tuple[str, ...] = ()
    if row.kind is Kind.TASK:
        task = get_task(draft, row.key)
        if task.state in LIVING and row.mode is Mode.DENY and not row.expires_ns:
            closed = close_tasks(draft, task, "revoke", row.reason, by).closed
    return Revoked(revocation=row, closed=closed)


def lift(draft: Draft, asked: Lift, by: Caller) -> Revocation:
    """Not in force any more. What ended by it stays ended."""
    check_text("reason", asked.reason, empty=True)
    key = row_key(asked.kind, asked.key, asked.mode)
    row = draft.find(REVOCATIONS, key, Revocation)
    if row is None:
        raise missing(f"revocation ({asked.mode}) of {asked.kind}", asked.key)
    _drop(draft, key, row)
    draft.event("lifted", by, kind=row.kind, key=row.key, mode=row.mode, reason=asked.reason)
    return row


def expire_revocation(draft: Draft, key: bytes, by: Caller) -> None:
    """Its time is over, if it is."""
    row = draft.find(REVOCATIONS, key, Revocation)
    if row is not None and row.expires_ns and row.expires_ns <= draft.now_ns:
        _drop(draft, key, row)
        draft.event("revocation.expired", by, kind=row.kind, key=row.key, mode=row.mode)


def drop_all(draft: Draft, kind: Kind, key: str) -> None:
    """What was revoked is no more: neither are its revocations, in whatever mode."""
    for row in matching(draft, kind, key):
        _drop(draft, row_key(kind, key, row.mode), row)


def row_key(kind: Kind, key: str, mode: Mode) -> bytes:
    """Where a revocation is stored: those of a kind stand together."""
    return kind.encode() + b"\0" + hashed(key) + mode[:1].encode()


def live_revocation(row: Revocation) -> dict[str, object]:
    """The revocation as the native view takes it."""
    return {
        "kind": str(row.kind),
        "key": row.key,
        "mode": str(row.mode),
        "reason": row.reason,
        "expires_unix_ns": row.expires_ns,
    }


def check_key(kind: Kind, key: str) -> None:
    """INVALID_ARGUMENT when nothing of this kind can have this name."""
    check_text("key", key)
    if kind is Kind.SESSION:
        raise invalid("kind", "sessions are not told apart yet; revoke the task or the agent")
    if kind is Kind.AGENT:
        try:
            found = spiffe_id.parse(key)
        except IdentityError as error:
            raise invalid("key", str(error)) from None
        if not found.path:
            raise invalid("key", f"`{key}` names a trust domain; revoke it as trust_domain, without spiffe://")
    elif kind is Kind.CREDENTIAL and not _SERIAL.fullmatch(key):
        raise invalid("key", f"`{key}` is no serial number; write it in lower-case hex digits without colons")
    elif kind is Kind.TRUST_DOMAIN and not _NAME.fullmatch(key):
        raise invalid("key", f"`{key}` is no trust domain; write it as in example.org")
    elif kind is Kind.DESTINATION and key != key.lower():
        raise invalid("key", f"`{key}` has upper case; hosts are written in lower case")


def matching(draft: Draft, kind: Kind, key: str) -> list[Revocation]:
    """The revocations of one target, in every mode."""
    rows = (draft.find(REVOCATIONS, row_key(kind, key, mode), Revocation) for mode in Mode)
    return [row for row in rows if row is not None]


def _drop(draft: Draft, key: bytes, row: Revocation) -> None:
    draft.drop(REVOCATIONS, key, row)
    draft.tell("lift", {"kind": str(row.kind), "key": row.key, "mode": str(row.mode)})
