"""Rows of the terminal: one per record, and nothing a record says can do anything to a terminal."""

import io
import json
import threading
from pathlib import Path

import pytest
from rich.console import Console

from fastpath.frames import gap_range, gap_record
from sidecar.decisions.events import event_record
from sidecar.decisions.render import COLUMNS, escape, fit, row
from sidecar.decisions.tail import show, tail_directory
from sidecar.errors import JournalError, ProtocolError
from tests.fix_journal import decision_payload, fill, open_journal

HOSTILE = {
    "carriage return and line feed": "a\r\nALLOW forged",
    "escape sequence": "\x1b[2J\x1b]0;title\x07",
    "eight bit control": "\x9b31m",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "right to left override": "\u202eevil",
    "isolate": "\u2066x\u2069",
    "zero width": "a\u200bb",
    "byte order mark": "\ufeffx",
    "nul": "a\x00b",
    "markup": "[red]x[/red]",
    "tag characters": "\U000e0041",
}


def printed(*payloads: bytes, as_json: bool = False, width: int = 400, terminal: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system="truecolor" if terminal else None, width=width)
    show(iter(enumerate(payloads, 1)), console, as_json=as_json)
    return out.getvalue()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_shown_as_codes(text: str) -> None:
    """LG-09: a record is one line, and the only escape sequences in it are our own colours."""
    payload = decision_payload(
        principal=("Agent", text), action=("Action", text), resource=("Resource", text), destination=text
    )
    assert escape(text).isprintable()
    shown = row(payload).plain
    assert shown.isprintable()
    terminal = printed(payload)
    assert len(terminal.splitlines()) == 2
    assert terminal.count("\x1b[") == printed(decision_payload()).count("\x1b[")
    assert len(printed(payload, as_json=True).splitlines()) == 1


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_gaps_and_events_are_escaped_too(text: str) -> None:
    """LG-09: causes and details are texts like any other."""
    assert row(gap_record(1, 2, text)).plain.isprintable()
    assert row(event_record("reload.refused", text)).plain.isprintable()


def test_a_decision_is_a_row_with_its_facts() -> None:
    """Outcome, agent, action, resource, reason and policies stand in their columns."""
    shown = row(decision_payload(3)).plain
    for fact in ("ALLOW", "spiffe://demo.test/agent/a", "files/read", "doc-3", "ok", "p1"):
        assert fact in shown


def test_rows_stay_in_one_line_of_a_narrow_terminal() -> None:
    """A row is cut, never wrapped."""
    long = "x" * 3000
    payload = decision_payload(principal=("Agent", long), resource=("Resource", long))
    assert len(row(payload).plain) <= sum(width + 2 for _, width in COLUMNS)
    shown = printed(payload, width=80).splitlines()
    assert len(shown) == 2
    assert all(len(text) <= 120 for text in shown)  # 80 columns and the escape sequences of colours


def test_outcome_reason_and_agent_fit_into_80_columns() -> None:
    """What somebody looks for first is not cut."""
    for fact in ("ALLOW", "ok", "spiffe://demo.test/agent/a"):
        assert fact in printed(decision_payload(3), width=80)


def test_rows_are_whole_where_there_is_no_terminal() -> None:
    """What goes to a file or through grep loses nothing to a width that nobody chose."""
    shown = printed(decision_payload(3), width=80, terminal=False)
    assert row(decision_payload(3)).plain in shown.splitlines()


def test_text_is_cut_where_it_matters_less() -> None:
    """SPIFFE IDs differ at their ends, reasons at their starts."""
    assert fit("abcdef", 4) == "abc\N{HORIZONTAL ELLIPSIS}"
    assert fit("abcdef", 4, keep_end=True) == "\N{HORIZONTAL ELLIPSIS}def"
    assert fit("abcd", 4) == "abcd"


def test_a_record_that_does_not_decode_is_said_to_be_one() -> None:
    """One bad record does not end the view."""
    with pytest.raises(ProtocolError, match="does not decode"):
        row(b"\xff")
    text = printed(b"\xff", decision_payload())
    assert "does not decode" in text
    assert "ALLOW" in text


def test_json_rows_are_lines_of_json() -> None:
    """`--json` gives the fields that a collector writes; no chain, which only the journal's reader can tell."""
    fields = json.loads(printed(decision_payload(4), as_json=True))
    assert (fields["kind"], fields["outcome"], fields["resource"]) == ("decision", "OUTCOME_ALLOW", "doc-4")
    assert not fields.keys() & {"journal", "sidecar", "hash", "payload"}


def test_a_journal_directory_can_be_followed(tmp_path: Path) -> None:
    """From the start, or from now on; a folder that is no journal is named."""
    stop = threading.Event()
    with open_journal(tmp_path / "j") as journal:
        fill(journal, 30)
        whole = list(tail_directory(tmp_path / "j", from_start=True, follow=False, stop=stop))
        assert [sequence for sequence, _ in whole] == list(range(1, 31))
        assert list(tail_directory(tmp_path / "j", from_start=False, follow=False, stop=stop)) == []
        following = tail_directory(tmp_path / "j", from_start=True, follow=True, stop=stop)
        assert [next(following)[0] for _ in range(30)] == list(range(1, 31))
        journal.append_bytes(decision_payload(31))
        assert next(following)[0] == 31
        stop.set()
        assert list(following) == []
        fill(journal, 300)
        journal.acknowledge(250, bytes(32))
        held = list(tail_directory(tmp_path / "j", from_start=True, follow=False, stop=stop))
        assert held[0][0] > 1
        assert not any(gap_range(payload) for _, payload in held)
    with pytest.raises(JournalError, match="is no journal directory"):
        list(tail_directory(tmp_path, from_start=True, follow=False, stop=stop))
