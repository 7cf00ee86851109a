"""Logs of our own events: one line each, structured, without credentials (LG-09, LG-10, I10)."""

import json
import logging
import pathlib
import re
import threading

import pytest

from sidecar import logs

CANARY = "c4n4ry"


def line(form: logging.Formatter, **fields: object) -> str:
    record = logging.LogRecord("remit.test", logging.WARNING, "f.py", 1, "reload.refused", (), None)
    record.fields = fields
    return form.format(record)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("authorization", f"Basic {CANARY}"),
        ("set-cookie", f"s={CANARY}"),
        ("x_api_key", CANARY),
        ("private_key", CANARY),
        ("access_token", CANARY),
        ("cause", f"peer sent Bearer {CANARY}"),
        ("cause", f"peer sent bearer  {CANARY}=="),
        ("cause", f"eyJhbGciOiJub25lIn0.{CANARY}.{CANARY}"),
        ("cause", f"-----BEGIN EC PRIVATE KEY-----\n{CANARY}\n-----END EC PRIVATE KEY-----"),
        ("cause", f"-----BEGIN PRIVATE KEY-----\n{CANARY}"),
        ("headers", {"Authorization": CANARY}),
        ("lines", [f"DPoP {CANARY}"]),
    ],
)
def test_credentials_never_reach_a_log(key: str, value: object) -> None:
    """By key or by look, a credential is replaced in both forms."""
    for form in (logs.JsonFormatter(), logs.ConsoleFormatter()):
        text = line(form, **{key: value})
        assert CANARY not in text
        assert logs.REDACTED in text


@pytest.mark.parametrize("bad", ["\n", "\r", "\x1b[2J", "\u2028", "\u202e", "\x00", "\x9b"])
def test_a_value_cannot_forge_a_line(bad: str) -> None:
    """LG-09: line breaks, terminal sequences and bidi characters arrive escaped."""
    for form in (logs.JsonFormatter(), logs.ConsoleFormatter()):
        text = line(form, cause=f"a{bad}b")
        assert bad not in text
        assert len(text.splitlines()) == 1


def test_a_line_is_one_json_object_with_time_level_and_event() -> None:
    """Fields keep their types; long values are cut."""
    got = json.loads(line(logs.JsonFormatter(), generation=7, ready=False, cause="x" * 5000))
    assert got["event"] == "reload.refused"
    assert got["level"] == "warning"
    assert got["time"].endswith("Z")
    assert got["generation"] == 7
    assert got["ready"] is False
    assert len(got["cause"]) < 3000


def test_a_thread_that_ends_by_a_bug_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Not a traceback on standard error, whose text can carry what a caller sent."""

    def bug() -> None:
        raise ValueError(CANARY)

    before, handlers, level = threading.excepthook, logging.getLogger().handlers[:], logging.getLogger().level
    try:
        logs.setup("info", "json")
        thread = threading.Thread(target=bug, name="worker")
        thread.start()
        thread.join()
    finally:
        threading.excepthook = before
        logging.getLogger().handlers[:], logging.getLogger().level = handlers, level
    (text,) = capfd.readouterr().err.splitlines()
    line = json.loads(text)
    assert (line["event"], line["thread"], line["exception"]) == ("thread.ended", "worker", "ValueError")
    assert CANARY not in text


def test_an_exception_is_logged_by_kind_and_place_only() -> None:
    """The text of an exception can carry what a caller sent, so it stays out."""
    try:
        raise ValueError(f"bad header {CANARY}")
    except ValueError as error:
        record = logging.LogRecord(
            "remit", logging.ERROR, "f.py", 1, "call.failed", (), (ValueError, error, error.__traceback__)
        )
    got = json.loads(logs.JsonFormatter().format(record))
    assert got["exception"] == "ValueError"
    assert "test_logs.py:" in got["at"]
    assert CANARY not in json.dumps(got)


def test_every_logger_is_named_for_its_part() -> None:
    """One scheme, `remit.<part>`, so that an operator can filter by it."""
    sources = [path.read_text(encoding="utf-8") for path in pathlib.Path(logs.__file__).parent.rglob("*.py")]
    names = {name for text in sources for name in re.findall(r"getLogger\(([^)]*)\)", text)}
    ours = names - {"", '"grpc"'}
    assert ours
    assert all(re.fullmatch(r'"remit\.[a-z_]+"', name) for name in ours), ours
