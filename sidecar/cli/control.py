"""Talks to a running sidecar over its control socket."""

import os
import socket as sockets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import grpc

from sidecar._proto.remit.control.v1 import control_pb2, control_pb2_grpc
from sidecar.cli.output import EXIT_NO, EXIT_UNREACHABLE, Failure, config_option, mark, plain, table, unreachable
from sidecar.config_file import load

TIMEOUT_S = 10
RELOAD_TIMEOUT_S = 600  # a reload compiles


@contextmanager
def channel(socket: str) -> Iterator[grpc.Channel]:
    """A channel to the control socket; what it answers with an error ends the command with a clear line."""
    if not os.path.lexists(socket):
        unreachable("the control socket", socket, "no such file")
    with grpc.insecure_channel(f"unix:{socket}") as made:
        try:
            yield made
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                unreachable("the control socket", socket, error.details() or error.code().name.lower())
            raise Failure(f"the sidecar refused: {error.details()}") from error


def status_of(socket: str) -> control_pb2.StatusResponse:
    """What is in force in the sidecar behind `socket`. Ends the command when it does not answer."""
    with channel(socket) as made:
        return control_pb2_grpc.ControlStub(made).Status(control_pb2.StatusRequest(), timeout=TIMEOUT_S)


def live_status(socket: str) -> control_pb2.StatusResponse | None:
    """The same, or None when no sidecar answers there (a killed one leaves its socket behind)."""
    try:
        return status_of(socket)
    except Failure as failure:
        if failure.exit_code != EXIT_UNREACHABLE:
            raise
        return None


def _somebody_listens(socket: str) -> bool:
    """Whether a process serves the socket, though it may not answer: one that was killed leaves its socket behind."""
    with sockets.socket(sockets.AF_UNIX) as made:
        try:
            made.connect(socket)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            unreachable("the control socket", socket, error.strerror or str(error))
    return True


def edited(socket: str, change: Any) -> control_pb2.EditResponse | None:
    """What a running sidecar made of a change, or None when none runs. Ends the command when it was refused, or when
    the one that runs does not answer: an edit of the store behind its back would not be in force."""
    from sidecar.services.edit_messages import request_of
    from sidecar.services.options import CONTROL_MESSAGE_BYTES

    if not _somebody_listens(socket):
        return None
    request = request_of(change)
    if request.ByteSize() > CONTROL_MESSAGE_BYTES:
        raise Failure(
            f"the edit has {request.ByteSize()} bytes, a running sidecar takes {CONTROL_MESSAGE_BYTES} at a time; make"
            " it in parts, or change the files and run remit reload"
        )
    with channel(socket) as made:
        answer = control_pb2_grpc.ControlStub(made).Edit(request, timeout=RELOAD_TIMEOUT_S)
    if answer.problems:
        kept = f"generation {answer.generation} stays in force" if answer.generation else "no generation is in force"
        raise Failure(f"the edit was refused; {kept}", EXIT_NO, answer.problems)
    return answer


def control_socket(config: str, socket: str | None) -> str:
    """The socket named on the command line, else the configuration's."""
    return socket or load(config).control.socket


socket_option = click.option("--socket", metavar="PATH", help="Control socket; default: the configuration's.")


@click.command()
@config_option
@socket_option
def reload(config_file: str, socket: str | None) -> None:
    """Load configuration, policies, schema, entities and links again.

    All of it is applied, or nothing: a mistake leaves the last good state in force and is printed here. Prints the
    generation in force; exits 1 when the reload was refused.

    \b
    Example:
      remit reload --config remit.yaml
    """
    with channel(control_socket(config_file, socket)) as made:
        stub = control_pb2_grpc.ControlStub(made)
        answer = stub.Reload(control_pb2.ReloadRequest(), timeout=RELOAD_TIMEOUT_S)
    if answer.problems:
        kept = f"generation {answer.generation} stays in force" if answer.generation else "no generation is in force"
        raise Failure(f"the reload was refused; {kept}", EXIT_NO, answer.problems)
    click.echo(f"generation {answer.generation}{'' if answer.changed else ' (unchanged)'} {answer.generation_digest}")


@click.command()
@config_option
@socket_option
def status(config_file: str, socket: str | None) -> None:
    """Show what a running sidecar has in force; exits 1 when it is not ready.

    \b
    Example:
      remit status --config remit.yaml
    """
    now = status_of(control_socket(config_file, socket))
    table("remit", ("what", "state"), status_rows(now))
    if not now.ready:
        raise Failure(f"not ready: {now.not_ready}; run remit doctor", EXIT_NO)


def status_rows(now: control_pb2.StatusResponse) -> list[tuple[object, object]]:
    """(what, state) lines for people."""
    decisions = sum(c.count for c in now.decisions)
    by_outcome = {
        o: sum(c.count for c in now.decisions if c.outcome == o) for o in sorted({c.outcome for c in now.decisions})
    }
    shown = ", ".join(f"{n} {outcome}" for outcome, n in by_outcome.items() if n)
    rows: list[tuple[object, object]] = [
        ("ready", mark(now.ready, "yes" if now.ready else now.not_ready)),
        ("identity", f"{now.spiffe_id or 'none'} until {utc(now.svid_not_after_unix)}"),
        ("trust domains", ", ".join(now.trust_domains) or "none"),
        ("generation", f"{now.generation} {now.generation_digest[:16]}"),
        ("revocation epoch", now.revocation_epoch),
        ("decisions", f"{decisions}{f' ({shown})' if shown else ''}"),
        ("journal", f"{now.journal.state}, {now.journal.last_sequence} records, {now.journal.bytes >> 20} MiB"),
        ("collector", stream_text(now.stream)),
        *((listener.name, listener.address) for listener in now.listeners),
        ("process", f"{now.pid}, version {now.version}, since {utc(now.started_unix)}"),
    ]
    if now.journal.problem:
        rows.append(("journal's problem", mark(False, plain(now.journal.problem))))
    if now.last_reload_problem:
        rows.append(("last reload", mark(False, plain(now.last_reload_problem))))
    return rows


def stream_text(stream: control_pb2.Stream) -> str:
    """The state of the stream upstream in a few words."""
    if not stream.configured:
        return "none configured"
    return f"{'connected' if stream.connected else 'away'}, {stream.lag} records behind"


def utc(seconds: int) -> str:
    """A Unix time for people."""
    import datetime

    return (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if seconds else "never"
    )
