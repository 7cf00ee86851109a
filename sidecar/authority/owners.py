"""Owners: the people who answer for agents and tasks."""

from collections.abc import Iterator

import msgspec

from sidecar.authority.draft import OWNERS, Caller, Draft, hashed_name
from sidecar.authority.errors import DeniedError, StateError, missing
from sidecar.authority.rows import Owner
from sidecar.authority.texts import check_text


class ChangeOwner(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    reason: str = ""


def disable_owner(draft: Draft, asked: ChangeOwner, by: Caller) -> Owner:
    """From the next call on nothing that this person answers for is allowed."""
    check_text("id", asked.id)
    return _put(draft, asked, False, by)


def enable_owner(draft: Draft, asked: ChangeOwner, by: Caller) -> Owner:
    """The person answers again; never by their own word."""
    if by.id == asked.id:
        raise DeniedError("nobody can enable themselves; let somebody else with the role operator or security do it")
    if find_owner(draft, asked.id) is None:
        raise missing("disabled owner", asked.id)
    return _put(draft, asked, True, by)


def find_owner(draft: Draft, id_: str) -> Owner | None:
    """The person's row, if there is one: the one that a full disk refused before the one that is durable."""
    place = (OWNERS, hashed_name(id_))
    unwritten = draft.unwritten.get(place)
    return unwritten if isinstance(unwritten, Owner) else draft.find(*place, Owner)


def scan_owners(draft: Draft, after: bytes) -> Iterator[tuple[bytes, bytes]]:
    """As Rows.scan of all owners, with those that a full disk refused in the place of what is durable."""
    return draft.scan_with(OWNERS, b"", after, lambda _, row: row)


def require_active(draft: Draft, owner: str) -> None:
    """FAILED_PRECONDITION when the person is disabled."""
    row = find_owner(draft, owner)
    if row is not None and not row.active:
        raise StateError(f"owner `{owner}` is disabled; name another, or enable them")


def live_owner(row: Owner) -> dict[str, object]:
    """The owner as the native view takes it."""
    return {"id": row.id, "active": row.active}


def _put(draft: Draft, asked: ChangeOwner, active: bool, by: Caller) -> Owner:
    check_text("reason", asked.reason, empty=True)
    row = Owner(
        id=asked.id,
        active=active,
        reason=asked.reason,
        changed_by=by.id,
        changed_ns=draft.now_ns,
        epoch=draft.epoch,
    )
    draft.put(OWNERS, hashed_name(row.id), row)
    draft.tell("owner", live_owner(row))
    draft.event("owner.enabled" if active else "owner.disabled", by, owner=row.id, reason=row.reason)
    return row
