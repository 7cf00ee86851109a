"""Decisions as rows of a terminal table, or as JSON lines.

Every text comes from somebody else. What a terminal would act on (control characters, escape sequences, line and
paragraph separators, bidirectional and other invisible marks) is shown as its code, so that a row is one row and says
what it says.
"""

import datetime
import json
from typing import Any

from rich.text import Text

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.decisions.jsonline import parse, plain

COLUMNS: tuple[tuple[str, int], ...] = (
    ("time", 15),
    ("outcome", 7),
    ("reason", 20),
    ("agent", 30),
    ("action", 24),
    ("resource", 24),
    ("policy", 20),
    ("destination", 22),
    ("latency", 8),
)
"""Name and width in characters of each column; the first four fit into a terminal of 80 columns."""

STYLES = {"ALLOW": "green", "DENY": "red", "STEP_UP": "yellow", "ERROR": "bold white on red"}
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def escape(text: str) -> str:
    """`text` with every character that does not print shown as `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def header() -> Text:
    """The names of the columns."""
    return Text("  ".join(name.upper().ljust(width) for name, width in COLUMNS).rstrip(), style="bold")


def row(payload: bytes) -> Text:
    """One record as one line. ProtocolError when it is none."""
    record = parse(payload)
    kind = record.WhichOneof("kind")
    if kind == "gap":
        gap = record.gap
        text = f"records {gap.first_sequence} to {gap.last_sequence} are missing: {escape(gap.cause)}"
        return Text(f"{'':15}  {'GAP':7}  {text}", style="bold magenta")
    if kind == "event":
        event = record.event
        text = f"{escape(event.name)} {escape(event.detail)}"
        return Text(f"{_clock(event.time_unix_nano):15}  {'EVENT':7}  {text}", style="cyan")
    return _decision(record.decision)


def json_row(journal: str, sequence: int, payload: bytes) -> str:
    """One record as JSON: the fields of a collector's line, without chain and raw record.

    ProtocolError when it is none. `journal` is left out when it is empty: a control socket does not name it.
    """
    named = {"journal": journal} if journal else {}
    return json.dumps({**named, "sequence": sequence, **plain(parse(payload))}, separators=(",", ":"))


def _decision(decision: decisions_pb2.Decision) -> Text:
    outcome = _outcome(decision.outcome)
    made = Text()
    for name, width in COLUMNS:
        cell = fit(escape(_cell(name, decision, outcome)), width, keep_end=name in ("agent", "resource"))
        made.append(cell.ljust(width), style=STYLES.get(outcome, "") if name == "outcome" else "")
        made.append("  ")
    made.rstrip()
    return made


def fit(text: str, width: int, *, keep_end: bool = False) -> str:
    """`text` cut to `width` characters with an ellipsis; what differs at its end (SPIFFE IDs, uids) keeps it."""
    if len(text) <= width:
        return text
    return ELLIPSIS + text[1 - width :] if keep_end else text[: width - 1] + ELLIPSIS


def _cell(name: str, decision: decisions_pb2.Decision, outcome: str) -> str:
    cells: dict[str, Any] = {
        "time": _clock(decision.time_unix_nano),
        "outcome": outcome,
        "agent": decision.agent or "-",
        "action": decision.action or "-",
        "resource": decision.resource or "-",
        "destination": decision.destination or "-",
        "reason": decision.reason,
        "policy": _policies(decision),
        "latency": _duration(decision.latency_ns),
    }
    return str(cells[name])


def _outcome(number: int) -> str:
    known = authz_pb2.Outcome.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix("OUTCOME_") if known else str(number)


def _policies(decision: decisions_pb2.Decision) -> str:
    if not decision.policy_ids:
        return "-"
    more = decision.policies_total - 1
    return decision.policy_ids[0] + (f" +{more}" if more > 0 else "")


def _clock(time_unix_ns: int) -> str:
    """Local time of day with microseconds."""
    try:
        return f"{datetime.datetime.fromtimestamp(time_unix_ns / 1e9).astimezone():%H:%M:%S.%f}"
    except (OverflowError, ValueError, OSError):
        return "-"


def _duration(ns: int) -> str:
    if ns < 10_000:
        return f"{ns} ns"
    if ns < 10_000_000:
        return f"{ns / 1000:.0f} us"
    return f"{ns / 1_000_000:.0f} ms"
