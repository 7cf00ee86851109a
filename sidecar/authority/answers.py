"""Answers to requests with an idempotency key: remembered for a time, and not more of one caller than a bound.

    answers      hash of caller, method and key                -> Answered
    answers_by   hash of caller                                -> Span: its numbers that may be in use
                 hash of caller, number (8 bytes, big-endian)  -> the key in `answers`

Numbers of one caller only grow, so its oldest answer is found without looking at the others.
"""

from typing import TypeVar

import msgspec

from sidecar.authority.draft import ANSWERS, ANSWERS_BY, SECOND_NS, Caller, Draft, hashed
from sidecar.authority.errors import RepeatedError
from sidecar.authority.rows import Answered, Span, encode

FORGET = "I"
Result = TypeVar("Result")


class Repeat(msgspec.Struct, frozen=True):
    """An idempotency key, and what was asked with it."""

    caller: Caller
    method: str
    key: str
    request: bytes

    @property
    def by(self) -> bytes:
        """What all keys of the caller begin with in `answers_by`."""
        return hashed(self.caller.kind, self.caller.id)

    @property
    def place(self) -> bytes:
        """The key in `answers`."""
        return hashed(self.caller.kind, self.caller.id, self.method, self.key)


def recall(draft: Draft, repeat: Repeat) -> bytes | None:
    """The answer that was given, or None. RepeatedError when the key came with another request."""
    before = draft.find(ANSWERS, repeat.place, Answered)
    if before is None or before.expires_ns <= draft.now_ns:
        return None
    if before.digest != hashed(repeat.request):
        raise RepeatedError(f"idempotency key `{repeat.key}` came with another request before; use a new one")
    return before.answer


def remember(draft: Draft, repeat: Repeat, answer: bytes) -> None:
    """Keep `answer` for `limits.answer_s`; the caller's oldest goes when there are `limits.answers_max`."""
    by, place = repeat.by, repeat.place
    before = draft.find(ANSWERS, place, Answered)
    if before is not None:
        draft.drop(ANSWERS_BY, _numbered(before))
    span = draft.find(ANSWERS_BY, by, Span) or Span(0, 0)
    first = span.first
    while span.next - first >= draft.limits.answers_max:
        _drop_oldest(draft, by, first)
        first += 1
    row = Answered(
        digest=hashed(repeat.request),
        answer=answer,
        expires_ns=draft.now_ns + draft.limits.answer_s * SECOND_NS,
        by=by,
        number=span.next,
    )
    draft.mark(ANSWERS, place, encode(row))
    draft.mark(ANSWERS_BY, _numbered(row), place)
    draft.mark(ANSWERS_BY, by, encode(Span(first, span.next + 1)))
    draft.due(row.expires_ns, FORGET, place)


def forget(draft: Draft, place: bytes) -> None:
    """The answer's time is over, if it is."""
    row = draft.find(ANSWERS, place, Answered)
    if row is None or row.expires_ns > draft.now_ns:
        return
    draft.drop(ANSWERS, place)
    draft.drop(ANSWERS_BY, _numbered(row))
    span = draft.find(ANSWERS_BY, row.by, Span)
    if span is None:
        return
    first = span.first
    while first < span.next and not _known(draft, row.by, first):
        first += 1
    if first == span.next:
        draft.drop(ANSWERS_BY, row.by)
    else:
        draft.mark(ANSWERS_BY, row.by, encode(Span(first, span.next)))


def _drop_oldest(draft: Draft, by: bytes, number: int) -> None:
    """Forget the answer with this number before its time, if there is one: a key that was used again has a new one."""
    index = by + number.to_bytes(8, "big")
    place = draft.rows.get(ANSWERS_BY, index)
    row = None if place is None else draft.find(ANSWERS, place, Answered)
    if place is None or row is None:
        return
    draft.drop(ANSWERS_BY, index)
    if row.number == number:
        draft.drop(ANSWERS, place)
        draft.drop_due(row.expires_ns, FORGET, place)


def _known(draft: Draft, by: bytes, number: int) -> bool:
    index = by + number.to_bytes(8, "big")
    return (ANSWERS_BY, index) not in draft.writes and draft.rows.get(ANSWERS_BY, index) is not None


def _numbered(row: Answered) -> bytes:
    return row.by + row.number.to_bytes(8, "big")
