"""Structured logs of our own events, on standard error: one JSON object per line, or text for people.

`event(log, "policy.published", generation=7)` writes one. Nothing that a caller sent is ever a key; values that look
like credentials are removed whatever their key, and control characters are escaped, so a line is a line (CWE-117).
"""

import datetime
import json
import logging
import re
import sys
import threading
from typing import Any

REDACTED = "[redacted]"
VALUE_CHARS_MAX = 2048

_SECRET_KEY = re.compile(r"authorization|cookie|token|secret|password|private_?key|api_?key|^body$|arguments", re.I)
_SECRET_VALUE = re.compile(
    r"(?i:\b(?:bearer|basic|dpop)\s+[A-Za-z0-9._~+/=-]+)"  # RFC 9110 section 11.4 credentials
    r"|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.?[A-Za-z0-9_-]*"  # JOSE compact serialisation (RFC 7515)
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.S,
)
# C0, DEL, C1, the line and paragraph separators, and the characters that turn text around (bidi).
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def event(log: logging.Logger, name: str, level: int = logging.INFO, **fields: object) -> None:
    """Write one event of ours. `name` is a constant of the code; `fields` are its facts."""
    log.log(level, name, extra={"fields": fields})


def redact(value: object, key: str = "") -> object:
    """`value` fit for a log: without credentials, without control characters, at most VALUE_CHARS_MAX characters."""
    if _SECRET_KEY.search(key):
        return REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(k): redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(v) for v in value]
    text = _SECRET_VALUE.sub(REDACTED, str(value))
    text = _CONTROL.sub(lambda m: f"\\u{ord(m.group()):04x}", text)
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "[cut]"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC, RFC 3339), level, logger, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_line(record), ensure_ascii=True, separators=(",", ":"))


class ConsoleFormatter(logging.Formatter):
    """The same as text: `12:30:01 info  policy.published generation=7`."""

    def format(self, record: logging.LogRecord) -> str:
        line = _line(record)
        time, level = line.pop("time")[11:19], line.pop("level")
        del line["logger"]
        head = f"{time} {level:<7} {line.pop('event')}"
        return " ".join([head, *(f"{k}={v}" for k, v in line.items())])


def _line(record: logging.LogRecord) -> dict[str, Any]:
    time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    line: dict[str, Any] = {
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": redact(record.getMessage()),
    }
    line.update((k, redact(v, k)) for k, v in getattr(record, "fields", {}).items())
    if record.exc_info and record.exc_info[0] is not None:
        # The place of a bug, never its values: a traceback's text can carry what a caller sent.
        kind, _, trace = record.exc_info
        line["exception"] = kind.__name__
        line["at"] = _place(trace)
    return line


def _place(trace: Any) -> str:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """A thread that ends by a bug is an event like others: by kind and place, without what a caller sent."""
    if ended.exc_value is not None:
        trace = (ended.exc_type, ended.exc_value, ended.exc_traceback)
        name = ended.thread.name if ended.thread is not None else ""
        logging.getLogger("remit.logs").critical("thread.ended", exc_info=trace, extra={"fields": {"thread": name}})


def setup(level: str, form: str) -> None:
    """Send all logs of the process to standard error in this form. Replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    threading.excepthook = _thread_ended
    # grpc's own lines repeat what our events say, with texts of the peer in them.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
