"""Follows decisions: from a journal's directory, or from a sidecar's control socket."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from rich.console import Console, OverflowMethod

from fastpath.spool_folder import read_checked
from sidecar._proto.remit.decisions.v1 import decisions_pb2, decisions_pb2_grpc
from sidecar.decisions.reader import Entry, SpoolReader, directory_reader, first_sequence, last_sequence
from sidecar.decisions.render import header, json_row, row
from sidecar.errors import JournalError, ProtocolError

POLL_S = 0.1
READ_RECORDS = 256
READ_BYTES = 1 << 20


def follow_reader(reader: SpoolReader, *, follow: bool, stop: Callable[[float], bool]) -> Iterator[Entry]:
    """Records of a reader, in order; without `follow` up to the present end.

    `stop(seconds)` waits that long and says whether to end.
    """
    try:
        while True:
            entries = reader.read(READ_RECORDS, READ_BYTES)
            yield from entries
            if not entries and (not follow or stop(POLL_S)):
                return
    finally:
        reader.close()


def tail_directory(directory: Path, *, from_start: bool, follow: bool, stop: threading.Event) -> Iterator[Entry]:
    """Records of a journal on this machine. JournalError when there is none that can be read."""
    try:
        if not (directory / "journal").is_file():
            raise JournalError(f"`{directory}` is no journal directory; name the `journal.dir` of the configuration")
        after = first_sequence(directory) - 1 if from_start else last_sequence(directory)
        reader = directory_reader(directory, after)
        yield from follow_reader(reader, follow=follow, stop=stop.wait)
    except OSError as error:
        raise JournalError(f"journal directory `{directory}` cannot be read: {error.strerror or error}") from None


def tail_socket(socket: Path, *, from_start: bool, follow: bool) -> Iterator[Entry]:
    """Records of a running sidecar, through its control socket. grpc.RpcError as it comes."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        stub = decisions_pb2_grpc.DecisionTailStub(channel)
        for answer in stub.Tail(decisions_pb2.TailRequest(from_start=from_start, follow=follow)):
            yield answer.sequence, answer.payload


def journal_id(directory: Path) -> str:
    """Id of the journal in a directory; empty when it cannot be read."""
    fields = read_checked(directory / "journal")
    return str(fields["id"]) if fields and "id" in fields else ""


def show(entries: Iterator[Entry], console: Console, *, as_json: bool, journal: str = "") -> int:
    """Print records as they come, as a table or as JSON lines; how many there were.

    A row is cut at a terminal's edge and whole in a file or pipe. A record that does not decode is shown as such: one
    bad record does not end the view.
    """
    shown = 0
    cut: OverflowMethod = "ellipsis" if console.is_terminal else "ignore"
    if not as_json:
        console.print(header(), no_wrap=True, overflow=cut, crop=console.is_terminal)
    for sequence, payload in entries:
        shown += 1
        try:
            if as_json:
                console.file.write(json_row(journal, sequence, payload) + "\n")
            else:
                console.print(row(payload), no_wrap=True, overflow=cut, crop=console.is_terminal)
        except ProtocolError as error:
            text = json.dumps({"sequence": sequence, "error": str(error)})
            console.file.write(text + "\n")
        console.file.flush()
    return shown
