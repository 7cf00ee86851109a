"""`remit agent show` and `remit authority backup|restore|trust-clock`."""

import os
import pathlib
import time
from typing import Any

import click

from sidecar._proto.remit.authority.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    revocations_pb2,
    state_pb2,
    state_pb2_grpc,
)
from sidecar.cli.approvals import show_approvals
from sidecar.cli.authority_rows import (
    TIMEOUT_S,
    authority_channel,
    counted,
    show_json,
    show_tasks,
    sidecar_options,
    until,
)
from sidecar.cli.control import socket_option, utc
from sidecar.cli.output import Commands, Failure, config_option, mark, table
from sidecar.errors import ConfigError

BACKUP_S = 600


@click.group(cls=Commands)
def agent() -> None:
    """Look at agents."""


@agent.command()
@click.argument("spiffe_id")
@sidecar_options
def show(spiffe_id: str, config_file: str, socket: str | None, as_json: bool) -> None:
    """Show what an agent may do now: its tasks, what is left of them, and what stands in the way.

    \b
    Example:
      remit agent show spiffe://example.org/agents/clerk
    """
    request = agents_pb2.ShowAgentRequest(agent=spiffe_id)
    with authority_channel(config_file, socket) as channel:
        now = agents_pb2_grpc.AgentViewStub(channel).Show(request, timeout=TIMEOUT_S)
    if as_json:
        show_json([now])
        return
    verdict = mark(not now.verdict, now.verdict or "may act within its tasks")
    table(f"agent {now.agent}", ("what", "value"), [("now", verdict), ("owner", now.owner), ("epoch", now.epoch)])
    show_tasks(counted(len(now.tasks), "open task", ", and more" if now.more_tasks else ""), now.tasks)
    if now.revocations:
        table(
            "revocations",
            ("kind", "name", "mode", "until", "reason"),
            (
                (
                    revocations_pb2.RevocationKind.Name(r.kind).removeprefix("REVOCATION_KIND_").lower(),
                    r.key,
                    revocations_pb2.RevocationMode.Name(r.mode).removeprefix("REVOCATION_MODE_").lower(),
                    until(r.expires_unix_ns),
                    r.reason,
                )
                for r in now.revocations
            ),
        )
    if now.approvals:
        show_approvals(list(now.approvals))
    for row in now.owners:
        if not row.active:
            click.echo(f"owner {row.id} is disabled: {row.reason}")


@click.group(cls=Commands)
def authority() -> None:
    """Back up and restore the store of tasks, revocations, approvals and owners."""


@authority.command()
@click.argument("directory", type=click.Path(path_type=pathlib.Path))
@config_option
@socket_option
def backup(directory: pathlib.Path, config_file: str, socket: str | None) -> None:
    """Let the running sidecar write a copy of its store into a new folder.

    \b
    Example:
      remit authority backup /var/backups/remit-2026-11-24
    """
    request = state_pb2.BackupRequest(directory=str(directory.absolute()))
    with authority_channel(config_file, socket) as channel:
        done = state_pb2_grpc.StateStub(channel).Backup(request, timeout=BACKUP_S)
    click.echo(f"{directory} holds epoch {done.epoch}, {done.bytes} bytes")


@authority.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
@click.option("--force", is_flag=True, help="Take a copy that is older than what the sidecar decided by.")
@config_option
def restore(directory: pathlib.Path, force: bool, config_file: str) -> None:
    """Put a backup in the place of the store; the sidecar must be stopped.

    A copy that is older than what was decided by is refused: what was revoked in between would come back.

    \b
    Example:
      remit authority restore /var/backups/remit-2026-11-24
    """
    from sidecar.authority.backup import restore as put_back
    from sidecar.authority.load import journal_epoch
    from sidecar.config_file import load

    config = load(config_file)
    section = _stopped(config, config_file)
    epoch = put_back(
        directory,
        pathlib.Path(section.store),
        decided_by=journal_epoch(pathlib.Path(config.journal.dir)),
        force=force,
        map_bytes_max=section.map_bytes,
    )
    click.echo(f"{section.store} is at epoch {epoch}")


@authority.command("trust-clock")
@config_option
def trust_clock(config_file: str) -> None:
    """Believe the machine's clock again after it was set forward; the sidecar must be stopped.

    While a machine runs, no revocation ends by a clock that was set forward, also not after a restart of the sidecar,
    which says so in its log. When the clock is right now, this lets the next start go by it.

    \b
    Example:
      remit authority trust-clock && systemctl start remit
    """
    from sidecar.authority.backup import trust_clock as believe
    from sidecar.config_file import load

    section = _stopped(load(config_file), config_file)
    believe(pathlib.Path(section.store))
    click.echo(f"the next start of `{section.store}` goes by the clock: it is {utc(int(time.time()))} now")


def _stopped(config: Any, config_file: str) -> Any:
    """The section `authority` of a sidecar that does not run."""
    if config.authority is None:
        raise ConfigError(f"`{config_file}` has no section `authority`; there is no store")
    if os.path.lexists(config.control.socket):
        from sidecar.cli.control import live_status

        if live_status(config.control.socket) is not None:
            raise Failure("the sidecar is running; stop it first")
    return config.authority
