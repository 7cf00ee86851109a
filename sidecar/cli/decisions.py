"""`remit collect` and `remit decisions tail`."""

import contextlib
import logging
import pathlib
import queue
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import click
import grpc

from sidecar import logs
from sidecar.cli.control import control_socket, socket_option
from sidecar.cli.output import Commands, Failure, config_option, console, unreachable

STOP_S = 5


@click.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=pathlib.Path), help="Folder of the logs.")
@click.option("--socket", metavar="PATH", help="Listen on a Unix socket; its folder names who may send.")
@click.option("--address", metavar="HOST:PORT", help="Listen on TCP with mutual TLS; port 0: the kernel chooses.")
@click.option("--workload-api", default="", metavar="SOCKET", help="unix:///path; default: $SPIFFE_ENDPOINT_SOCKET.")
@click.option("--log-format", type=click.Choice(["json", "console"]), default="console", show_default=True)
def collect(
    directory: pathlib.Path, socket: str | None, address: str | None, workload_api: str, log_format: str
) -> None:
    """Receive the decisions of sidecars and keep them as JSON lines, one file per journal.

    What is acknowledged is on disk. A stream that leaves records out, or whose hash chain does not continue the log, is
    refused. Over TCP each sidecar is known by its SVID; over a Unix socket by the folder's permissions.

    \b
    Example:
      remit collect --dir /var/log/remit --socket /run/remit/collector/sock
      remit collect --dir /var/log/remit --address 0.0.0.0:9292 --workload-api unix:///run/spire/agent.sock
    """
    if bool(socket) == bool(address):
        raise click.UsageError("give either --socket PATH or --address HOST:PORT")
    logs.setup("info", log_format)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def note(number: int, _: FrameType | None) -> None:
        signals.put(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    with contextlib.ExitStack() as stack:
        if socket:
            _serve_local(directory, socket, stack)
        else:
            _serve_tls(directory, address or "", workload_api, stack)
        signals.get()


def _serve_local(directory: pathlib.Path, path: str, stack: contextlib.ExitStack) -> None:
    from sidecar.decisions.collector import Collector, serve
    from sidecar.services.sockets import BoundSocket

    collector = Collector(directory)
    stack.callback(collector.close)
    socket = stack.enter_context(BoundSocket(path))

    def listen(aside: str) -> None:
        server, _ = serve(collector, f"unix:{aside}")
        stack.callback(lambda: server.stop(STOP_S).wait())

    socket.bind(listen)
    logs.event(logging.getLogger("remit.collect"), "collect.serving", address=f"unix:{socket.path}")


def _serve_tls(directory: pathlib.Path, listen: str, workload_api: str, stack: contextlib.ExitStack) -> None:
    from fastpath.verify import Verifier
    from sidecar.decisions.collector import CallerError, Collector, serve
    from sidecar.identity.peers import PeerResolver
    from sidecar.identity.source import WorkloadSource
    from sidecar.identity.tls import server_credentials

    source, verifier = WorkloadSource(workload_api), Verifier()
    stack.callback(source.feed(verifier))
    source.start()
    stack.callback(source.stop)
    resolver = PeerResolver(verifier)

    def identify(context: grpc.ServicerContext) -> str:
        peer = resolver.from_auth_context(context.auth_context(), context.peer())
        if peer.refusal:
            # An empty name must not stand for somebody: a Hello can be empty as well.
            raise CallerError(peer.refusal)
        return peer.spiffe_id

    collector = Collector(directory, identify=identify)
    stack.callback(collector.close)
    server, port = serve(collector, listen, server_credentials(source))
    stack.callback(lambda: server.stop(STOP_S).wait())
    logs.event(logging.getLogger("remit.collect"), "collect.serving", address=f"{listen.rpartition(':')[0]}:{port}")


@click.group(cls=Commands)
def decisions() -> None:
    """Look at decisions."""


@decisions.command()
@config_option
@socket_option
@click.option("--dir", "directory", type=click.Path(path_type=pathlib.Path), help="Read this journal folder instead.")
@click.option("--from-start", is_flag=True, help="Begin with the oldest record that is still here.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Wait for new records.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines instead of a table.")
def tail(
    config_file: str, socket: str | None, directory: pathlib.Path | None, from_start: bool, follow: bool, as_json: bool
) -> None:
    """Follow the decisions of a sidecar as they are made.

    Reads the running sidecar through its control socket, or a journal folder with --dir.

    \b
    Example:
      remit decisions tail --config remit.yaml
      remit decisions tail --dir var/journal --from-start --no-follow --json
    """
    from sidecar.decisions import tail as tails

    stop = threading.Event()
    if directory is not None:
        entries = tails.tail_directory(directory, from_start=from_start, follow=follow, stop=stop)
        journal = tails.journal_id(directory)
    else:
        entries, journal = _from_socket(control_socket(config_file, socket), from_start, follow), ""
    with contextlib.suppress(KeyboardInterrupt):
        tails.show(entries, console(), as_json=as_json, journal=journal)


def _from_socket(path: str, from_start: bool, follow: bool) -> Iterator[tuple[int, bytes]]:
    from sidecar.decisions.tail import tail_socket

    try:
        yield from tail_socket(pathlib.Path(path), from_start=from_start, follow=follow)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            unreachable("the control socket", path, "no sidecar there")
        raise Failure(f"the sidecar refused: {error.details()}") from error
