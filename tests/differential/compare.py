"""One record on both sides, in both modes: what each request should get, and what it got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tests.differential.case import Json, Record
from tests.differential.oracle import Answer, Oracle, Refused, strict

Reply = Answer | Refused


class Subject(Protocol):
    """The engine under test with one record loaded."""

    def ask(self, requests: list[Json], *, strict: bool) -> list[Reply]: ...


MakeSubject = Callable[[Record], Subject]


@dataclass(frozen=True)
class Difference:
    """One request answered otherwise than cedarpy says."""

    mode: str
    request: int
    expected: Reply
    got: Reply

    def __str__(self) -> str:
        return f"request {self.request} ({self.mode} mode): expected {self.expected}, got {self.got}"


def expectations(record: Record) -> tuple[list[Reply], list[Reply]]:
    """What each request must get in Cedar mode and in strict mode."""
    oracle = Oracle(record)
    letter = oracle.ask(record["requests"])
    if not any(isinstance(answer, Answer) and answer.errors for answer in letter):
        return letter, letter
    effects = oracle.effects()
    return letter, [strict(answer, effects) if isinstance(answer, Answer) else answer for answer in letter]


def agree(expected: Reply, got: Reply) -> bool:
    """Equal answers, or both refused (ours with a typed error)."""
    if isinstance(expected, Refused):
        return isinstance(got, Refused) and got.tidy
    return expected == got


def differences(record: Record, make: MakeSubject, seen: Counter[str] | None = None) -> list[Difference]:
    """Every difference between cedarpy and the subject over one record; `seen` counts what cedarpy answered."""
    letter, severe = expectations(record)
    for reply in letter if seen is not None else ():
        kinds = ["refused"] if isinstance(reply, Refused) else [reply.decision, *["erring"] * bool(reply.errors)]
        seen.update(kinds)
    subject = make(record)
    found = []
    for mode, expected in (("cedar", letter), ("strict", severe)):
        got = subject.ask(record["requests"], strict=mode == "strict")
        found += [
            Difference(mode, at, want, have)
            for at, (want, have) in enumerate(zip(expected, got, strict=True))
            if not agree(want, have)
        ]
    return found
