"""Revocations: what is denied, or may only read, or needs an approval, from the next call on."""

import ipaddress
import re
from collections.abc import Iterator

import msgspec
from envoy.service.auth.v3 import attribute_context_pb2, external_auth_pb2

from fastpath import spiffe_id
from fastpath.envoy import decode
from sidecar.authority.draft import REVOCATIONS, SECOND_NS, TASKS, Caller, Draft, hashed
from sidecar.authority.errors import DeniedError, invalid, missing
from sidecar.authority.rows import LIVING, Kind, Mode, Revocation, Task
from sidecar.authority.tasks import close_tasks, get_task, subtree
from sidecar.authority.texts import check_text
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
    own_class: bool = False
    """Whether `key` is a class that the caller is in: the entities in force know, and not the store."""


class Revoked(msgspec.Struct, frozen=True, kw_only=True):
    revocation: Revocation
    closed: tuple[str, ...]


def revoke(draft: Draft, asked: Revoke, by: Caller) -> Revoked:
    """In force from now on, and until the later end if it was already. A task that is denied for good ends."""
    check_text("reason", asked.reason, empty=True)
    if not 0 <= asked.ttl_s <= draft.limits.ttl_s_max:
        raise invalid("ttl_s", f"is {asked.ttl_s}; at most {draft.limits.ttl_s_max} seconds can be; 0: until lifted")
    name = canonical_key(asked.kind, asked.key)
    _refuse_pattern(asked.kind, name)
    key = row_key(asked.kind, name, asked.mode)
    row = Revocation(
        kind=asked.kind,
        key=name,
        mode=asked.mode,
        reason=asked.reason,
        revoked_by=by.id,
        revoked_ns=draft.now_ns,
        # That a clock was ahead once makes it no longer.
        expires_ns=draft.present_ns + asked.ttl_s * SECOND_NS if asked.ttl_s else 0,
        epoch=draft.epoch,
    )
    before = find_revocation(draft, key)
    if before is not None:
        # Nothing is made shorter by revoking: that is what lifting is for.
        row = msgspec.structs.replace(row, expires_ns=_later(row.expires_ns, before.expires_ns))
    draft.put(REVOCATIONS, key, row)
    draft.tell("revoke", live_revocation(row))
    if row.expires_ns:
        draft.due_surely(row.expires_ns, EXPIRE, key)
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
    key = row_key(asked.kind, canonical_key(asked.kind, asked.key), asked.mode)
    row = find_revocation(draft, key)
    if row is None:
        raise missing(f"revocation ({asked.mode}) of {asked.kind}", asked.key)
    if asked.own_class or _meets(draft, row, by):
        raise DeniedError("nobody can lift a revocation of themselves; let somebody else do it")
    _drop(draft, key, row)
    draft.event("lifted", by, kind=row.kind, key=row.key, mode=row.mode, reason=asked.reason)
    return row


def _meets(draft: Draft, row: Revocation, by: Caller) -> bool:
    """Whether calls of the caller can be what the revocation is about; tools and servers are what is called."""
    if row.kind in (Kind.OWNER, Kind.AGENT, Kind.DESTINATION):
        return by.is_any((row.key,))
    if row.kind is Kind.TRUST_DOMAIN:
        return trust_domain_of(by.spiffe_id) == row.key
    if row.kind is Kind.CREDENTIAL:
        return by.serial == row.key
    if row.kind is Kind.TASK:
        task = draft.find(TASKS, row.key.encode(), Task)
        return task is not None and any(by.is_any((one.agent,)) for one in subtree(draft, task))
    return False


def expire_revocation(draft: Draft, key: bytes, by: Caller) -> None:
    """Its time is over, if it is."""
    row = draft.find(REVOCATIONS, key, Revocation)
    if row is None or not row.expires_ns or row.expires_ns > draft.now_ns:
        return
    if (REVOCATIONS, key) in draft.unwritten:
        # It was made longer while the disk was full: that is written now, where its shorter self would have ended.
        keep_held(draft, key, by)
    elif row.expires_ns > draft.sure_ns:
        # One clock alone says so, which may have been set; what takes authority away does not end by a mistake.
        draft.due_surely(row.expires_ns, EXPIRE, key)
    else:
        drop_ended(draft, key, row, by)


def keep_held(draft: Draft, key: bytes, by: Caller) -> None:
    """Make durable what a full disk refused, if its time is not over."""
    row = find_revocation(draft, key)
    if row is None or drop_ended(draft, key, row, by):
        return
    row = msgspec.structs.replace(row, epoch=draft.epoch)
    draft.put(REVOCATIONS, key, row)
    draft.tell("revoke", live_revocation(row))
    if row.expires_ns:
        draft.due_surely(row.expires_ns, EXPIRE, key)
    draft.event("revocation.kept", by, kind=row.kind, key=row.key, mode=row.mode)


def drop_ended(draft: Draft, key: bytes, row: Revocation, by: Caller) -> bool:
    """Take the revocation out when every clock says that its time is over; whether it is."""
    if not row.expires_ns or row.expires_ns > draft.sure_ns:
        return False
    _drop(draft, key, row)
    draft.event("revocation.expired", by, kind=row.kind, key=row.key, mode=row.mode)
    return True


def drop_all(draft: Draft, kind: Kind, key: str) -> None:
    """What was revoked is no more: neither are its revocations, in whatever mode."""
    for row in matching(draft, kind, key):
        _drop(draft, row_key(kind, key, row.mode), row)


def row_key(kind: Kind, key: str, mode: Mode) -> bytes:
    """Where a revocation is stored: those of a kind stand together."""
    return kind.encode() + b"\0" + hashed(key) + mode[:1].encode()


def trust_domain_of(agent: str) -> str:
    """Of a SPIFFE ID; empty when it is none."""
    return agent.removeprefix("spiffe://").partition("/")[0] if agent.startswith("spiffe://") else ""


def live_revocation(row: Revocation) -> dict[str, object]:
    """The revocation as the native view takes it."""
    return {
        "kind": str(row.kind),
        "key": row.key,
        "mode": str(row.mode),
        "reason": row.reason,
        "revoked_unix_ns": row.revoked_ns,
        "expires_unix_ns": row.expires_ns,
    }


def canonical_key(kind: Kind, key: str) -> str:
    """The name as calls have it. INVALID_ARGUMENT when none can have it: such a revocation would never be in force."""
    check_text("key", key)
    if key != key.strip():
        raise invalid("key", f"`{key}` begins or ends with a space")
    if kind is Kind.SESSION:
        raise invalid("kind", "sessions are not told apart yet; revoke the task or the agent")
    if kind is Kind.AGENT:
        check_agent(key)
    elif kind is Kind.CREDENTIAL:
        return _serial(key)
    elif kind is Kind.TRUST_DOMAIN and not _NAME.fullmatch(key):
        raise invalid("key", f"`{key}` is no trust domain; write it as in example.org")
    elif kind is Kind.DESTINATION:
        return _destination(key)
    elif kind is Kind.SERVER and key.endswith("/"):
        raise invalid("key", f"`{key}` ends with a slash; write the server's name alone")
    return key


def _refuse_pattern(kind: Kind, key: str) -> None:
    """Scopes of tasks have patterns, so somebody may mean one; calls are compared with the name alone."""
    server = key.removesuffix("/*")
    if kind in (Kind.TOOL, Kind.SERVER) and server != key:
        raise invalid("key", f"`{key}` is a pattern, and revocations go by name; revoke the server `{server}`")
    if key == "*":
        raise invalid("key", "`*` is a pattern, and revocations go by name; for all agents revoke their trust domain")


def check_agent(key: str) -> None:
    """INVALID_ARGUMENT unless `key` is the SPIFFE ID of a workload."""
    try:
        found = spiffe_id.parse(key)
    except IdentityError as error:
        raise invalid("key", str(error)) from None
    if not found.path:
        raise invalid("key", f"`{key}` names a trust domain; revoke it as trust_domain, without spiffe://")


def _serial(key: str) -> str:
    """As the verifier prints serial numbers: whole bytes, none of them a leading zero."""
    if not _SERIAL.fullmatch(key):
        raise invalid("key", f"`{key}` is no serial number; write it in lower-case hex digits without colons")
    digits = key.lstrip("0") or "0"
    return digits.zfill(len(digits) + len(digits) % 2)


def _destination(key: str) -> str:
    """As the calls' destinations are written, by the very code that writes those."""
    if key.startswith("spiffe://"):
        check_agent(key)
        return key
    if key != key.lower():
        raise invalid("key", f"`{key}` has upper case; hosts are written in lower case")
    http = attribute_context_pb2.AttributeContext.HttpRequest(method="GET", path="/", host=_bracketed(key))
    request = attribute_context_pb2.AttributeContext.Request(http=http)
    asked = external_auth_pb2.CheckRequest(attributes=attribute_context_pb2.AttributeContext(request=request))
    call = decode(asked.SerializeToString())
    if call is None or call["refusal"]:
        raise invalid("key", f"`{key}` is no host; write it as in db.example.org, db.example.org:8443 or 192.0.2.1")
    if call["port"] in (80, 443):
        raise invalid("key", f"`{key}`: calls do not name the port of their scheme; revoke `{call['host']}`")
    return f"{call['host']}:{call['port']}" if call["port"] else str(call["host"])


def _bracketed(key: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(key)}]"
    except ValueError:
        return key


def find(draft: Draft, kind: Kind, key: str, mode: Mode) -> Revocation | None:
    """The revocation of this name that is in force."""
    return find_revocation(draft, row_key(kind, canonical_key(kind, key), mode))


def find_revocation(draft: Draft, key: bytes) -> Revocation | None:
    """The revocation that is in force at `row_key`, with what a full disk refused."""
    row = draft.find(REVOCATIONS, key, Revocation)
    unwritten = draft.unwritten.get((REVOCATIONS, key))
    if not isinstance(unwritten, Revocation):
        return row
    if row is None:
        return unwritten
    return msgspec.structs.replace(row, expires_ns=_later(row.expires_ns, unwritten.expires_ns))


def scan_revocations(draft: Draft, prefix: bytes, after: bytes) -> Iterator[tuple[bytes, bytes]]:
    """As Rows.scan of the revocations, with what a full disk refused among what is durable."""
    return draft.scan_with(REVOCATIONS, prefix, after, lambda key, _: find_revocation(draft, key))


def matching(draft: Draft, kind: Kind, key: str) -> list[Revocation]:
    """The revocations of one target, in every mode."""
    rows = (find_revocation(draft, row_key(kind, key, mode)) for mode in Mode)
    return [row for row in rows if row is not None]


def _later(a_ns: int, b_ns: int) -> int:
    """The later of two ends; 0 is none."""
    return max(a_ns, b_ns) if a_ns and b_ns else 0


def _drop(draft: Draft, key: bytes, row: Revocation) -> None:
    draft.drop(REVOCATIONS, key, row)
    draft.tell("lift", {"kind": str(row.kind), "key": row.key, "mode": str(row.mode)})
