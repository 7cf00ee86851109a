"""`remit revoke`, `remit lift` and `remit owner ...`: who may not, from the next call on."""

from typing import Any

import click

from sidecar._proto.remit.authority.v1 import owners_pb2, owners_pb2_grpc, revocations_pb2, revocations_pb2_grpc
from sidecar.cli.authority_rows import (
    DURATION,
    TIMEOUT_S,
    at,
    authority_channel,
    counted,
    show_json,
    sidecar_options,
    until,
)
from sidecar.cli.output import Commands, mark, table
from sidecar.cli.task import key_option, reason_option

KINDS = ("agent", "class", "task", "tool", "server", "destination", "credential", "owner", "trust_domain")
MODES = ("deny", "read_only", "step_up")
PAGE = 1000

mode_option = click.option("--mode", type=click.Choice(MODES), default="deny", show_default=True)


def _kind(name: str) -> Any:
    return revocations_pb2.RevocationKind.Value(f"REVOCATION_KIND_{name.upper()}")


def _mode(name: str) -> Any:
    return revocations_pb2.RevocationMode.Value(f"REVOCATION_MODE_{name.upper()}")


@click.command()
@click.argument("kind", type=click.Choice([*KINDS, "list"]))
@click.argument("name", default="")
@mode_option
@click.option("--ttl", type=DURATION, default="0", metavar="1h", help="Ends by itself; default: until it is lifted.")
@reason_option
@key_option
@sidecar_options
def revoke(
    kind: str,
    name: str,
    mode: str,
    ttl: int,
    reason: str,
    key: str,
    config_file: str,
    socket: str | None,
    as_json: bool,
) -> None:
    """Deny an agent, class, task, tool, server, destination, credential, owner or trust domain, from the next call on.

    The answer comes when the revocation is on disk and every call that starts is decided by it. `remit revoke list`
    shows what is revoked.

    \b
    Example:
      remit revoke agent spiffe://example.org/agents/clerk --reason "odd transfers"
      remit revoke tool mail/send --mode step_up --ttl 2h
      remit revoke list
    """
    with authority_channel(config_file, socket) as channel:
        stub = revocations_pb2_grpc.RevocationsStub(channel)
        if kind == "list":
            _list(stub, as_json)
            return
        if not name:
            raise click.UsageError(f"name the {kind} to revoke")
        request = revocations_pb2.RevokeRequest(
            idempotency_key=key, kind=_kind(kind), key=name, mode=_mode(mode), reason=reason, ttl_s=ttl
        )
        done = stub.Revoke(request, timeout=TIMEOUT_S)
    if as_json:
        show_json([done])
        return
    click.echo(f"{kind} {name} {mode} at epoch {done.epoch}")
    if done.closed:
        click.echo(f"  {len(done.closed)} tasks ended")


def _list(stub: revocations_pb2_grpc.RevocationsStub, as_json: bool) -> None:
    token, rows, epoch = "", [], 0
    while True:
        request = revocations_pb2.ListRevocationsRequest(page_size=PAGE, page_token=token)
        page = stub.List(request, timeout=TIMEOUT_S)
        rows += page.revocations
        token, epoch = page.next_page_token, page.epoch
        if not token:
            break
    if as_json:
        show_json(rows)
        return
    table(
        counted(len(rows), "revocation", f" at epoch {epoch}"),
        ("kind", "name", "mode", "until", "reason", "by", "since"),
        (
            (
                revocations_pb2.RevocationKind.Name(r.kind).removeprefix("REVOCATION_KIND_").lower(),
                r.key,
                revocations_pb2.RevocationMode.Name(r.mode).removeprefix("REVOCATION_MODE_").lower(),
                until(r.expires_unix_ns),
                r.reason,
                r.revoked_by,
                at(r.revoked_unix_ns),
            )
            for r in rows
        ),
    )


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@mode_option
@reason_option
@key_option
@sidecar_options
def lift(
    kind: str, name: str, mode: str, reason: str, key: str, config_file: str, socket: str | None, as_json: bool
) -> None:
    """Take a revocation back. Tasks that ended by it stay ended.

    \b
    Example:
      remit lift agent spiffe://example.org/agents/clerk --reason "explained"
    """
    request = revocations_pb2.LiftRequest(
        idempotency_key=key, kind=_kind(kind), key=name, mode=_mode(mode), reason=reason
    )
    with authority_channel(config_file, socket) as channel:
        done = revocations_pb2_grpc.RevocationsStub(channel).Lift(request, timeout=TIMEOUT_S)
    if as_json:
        show_json([done])
    else:
        click.echo(f"{kind} {name} {mode} lifted at epoch {done.epoch}")


@click.group(cls=Commands)
def owner() -> None:
    """Disable and enable the people who answer for agents and tasks."""


@owner.command()
@click.argument("person")
@reason_option
@key_option
@sidecar_options
def disable(person: str, reason: str, key: str, config_file: str, socket: str | None, as_json: bool) -> None:
    """Allow nothing that a person answers for, from the next call on.

    \b
    Example:
      remit owner disable alice --reason "left the company"
    """
    request = owners_pb2.ChangeOwnerRequest(idempotency_key=key, id=person, reason=reason)
    with authority_channel(config_file, socket) as channel:
        _said(owners_pb2_grpc.OwnersStub(channel).Disable(request, timeout=TIMEOUT_S), as_json)


@owner.command()
@click.argument("person")
@reason_option
@key_option
@sidecar_options
def enable(person: str, reason: str, key: str, config_file: str, socket: str | None, as_json: bool) -> None:
    """Let a person answer for agents and tasks again; nobody can enable themselves.

    \b
    Example:
      remit owner enable alice
    """
    request = owners_pb2.ChangeOwnerRequest(idempotency_key=key, id=person, reason=reason)
    with authority_channel(config_file, socket) as channel:
        _said(owners_pb2_grpc.OwnersStub(channel).Enable(request, timeout=TIMEOUT_S), as_json)


def _said(row: owners_pb2.Owner, as_json: bool) -> None:
    if as_json:
        show_json([row])
    else:
        click.echo(f"{row.id} {'active' if row.active else 'disabled'} at epoch {row.epoch}")


@owner.command("list")
@sidecar_options
def list_(config_file: str, socket: str | None, as_json: bool) -> None:
    """List the people who were ever disabled; whoever is not there is active.

    \b
    Example:
      remit owner list
    """
    rows: list[owners_pb2.Owner] = []
    token = ""
    with authority_channel(config_file, socket) as channel:
        stub = owners_pb2_grpc.OwnersStub(channel)
        while True:
            page = stub.List(owners_pb2.ListOwnersRequest(page_size=PAGE, page_token=token), timeout=TIMEOUT_S)
            rows += page.owners
            token = page.next_page_token
            if not token:
                break
    if as_json:
        show_json(rows)
        return
    table(
        counted(len(rows), "owner"),
        ("person", "state", "reason", "by", "since"),
        (
            (r.id, mark(r.active, "active" if r.active else "disabled"), r.reason, r.changed_by, at(r.changed_unix_ns))
            for r in rows
        ),
    )
