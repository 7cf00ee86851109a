"""`remit pending`, `remit approve` and `remit deny`: people look before an action happens."""

import click

from sidecar._proto.remit.authority.v1 import approvals_pb2, approvals_pb2_grpc
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
from sidecar.cli.output import mark, table
from sidecar.cli.task import key_option

SCOPES = {"exact": approvals_pb2.APPROVAL_SCOPE_EXACT, "class": approvals_pb2.APPROVAL_SCOPE_CLASS}


@click.command()
@click.option("--approver", default="", metavar="PERSON", help="The questions in this person's queue.")
@click.option("--agent", default="", metavar="SPIFFE_ID", help="The questions of this agent.")
@click.option("--review", is_flag=True, help="Break-glass grants that nobody looked at yet.")
@sidecar_options
def pending(approver: str, agent: str, review: bool, config_file: str, socket: str | None, as_json: bool) -> None:
    """List what waits for a decision. Only the last column is the asker's own words.

    `content unseen`: the call's body did not reach the sidecar, so it can only be approved with --scope class.

    \b
    Example:
      remit pending --approver alice
      remit pending --review
    """
    rows: list[approvals_pb2.Approval] = []
    token = ""
    with authority_channel(config_file, socket) as channel:
        stub = approvals_pb2_grpc.ApprovalsStub(channel)
        while True:
            request = approvals_pb2.ListApprovalsRequest(
                approver=approver, agent=agent, review_due=review, page_token=token
            )
            page = stub.List(request, timeout=TIMEOUT_S)
            rows += page.approvals
            token = page.next_page_token
            if not token:
                break
    if as_json:
        show_json(rows)
        return
    table(
        f"{len(rows)} {'to review' if review else 'pending'}",
        (
            "approval",
            "agent",
            "action",
            "resource",
            "destination",
            "call",
            "data",
            "cost",
            "owner",
            "ends",
            "why (unverified)",
        ),
        (
            (
                r.id,
                " > ".join(r.chain),
                r.action,
                r.resource,
                r.destination,
                call_text(r),
                " ".join([str(r.data_level), *r.data_labels]),
                r.cost,
                r.owner,
                until(r.expires_unix_ns),
                r.justification,
            )
            for r in rows
        ),
    )


@click.command()
@click.argument("id_", metavar="APPROVAL")
@click.option("--scope", type=click.Choice(sorted(SCOPES)), default="exact", show_default=True)
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True, help="How many calls.")
@click.option("--ttl", type=DURATION, default="0", metavar="5m", help="How long; default: as configured.")
@click.option("--digest", default="", metavar="HEX", help="Only if the question is still bound to this digest.")
@click.option("--comment", default="", metavar="TEXT", help="Why; stands in the records.")
@click.option("--break-glass", is_flag=True, help="Grant an evaluation id to a call that cannot wait; see below.")
@key_option
@sidecar_options
def approve(
    id_: str,
    scope: str,
    uses: int,
    ttl: int,
    digest: str,
    comment: str,
    break_glass: bool,
    key: str,
    config_file: str,
    socket: str | None,
    as_json: bool,
) -> None:
    """Grant what an agent asks for. Nobody of the chain that asks can.

    `exact` is this call with these arguments and, over HTTP, this method, path, query and body; `class` is the action
    on the resource, whatever the arguments. Neither covers a call of more data level, labels or cost than was asked.

    With --break-glass nobody asked: APPROVAL is the evaluation id of a call that was answered STEP_UP, --comment says
    why it cannot wait, the grant lasts minutes, and somebody else must look at it (remit review).

    \b
    Example:
      remit approve 9a1b.. --comment "checked with finance"
      remit approve 9a1b.. --scope class --uses 5 --ttl 10m
      remit approve 83f9.. --break-glass --comment "production is down, ticket 4711"
    """
    if break_glass:
        emergency = approvals_pb2.RequestApprovalRequest(
            idempotency_key=key, evaluation_id=id_, justification=comment, ttl_s=ttl, emergency=True, uses=uses
        )
        with authority_channel(config_file, socket) as channel:
            _said(approvals_pb2_grpc.ApprovalsStub(channel).Request(emergency, timeout=TIMEOUT_S), as_json)
        return
    try:
        expected = bytes.fromhex(digest)
    except ValueError:
        raise click.UsageError(f"--digest `{digest}` is not hex") from None
    request = approvals_pb2.DecideApprovalRequest(
        idempotency_key=key,
        id=id_,
        approve=True,
        expected_digest=expected,
        scope=SCOPES[scope],
        uses=uses,
        ttl_s=ttl,
        comment=comment,
    )
    _decide(request, config_file, socket, as_json)


@click.command()
@click.argument("id_", metavar="APPROVAL")
@click.option("--comment", default="", metavar="TEXT", help="Why; stands in the records.")
@click.option("--granted", is_flag=True, help="Take back a grant that was not used up.")
@key_option
@sidecar_options
def deny(id_: str, comment: str, granted: bool, key: str, config_file: str, socket: str | None, as_json: bool) -> None:
    """Refuse what an agent asks for, or with --granted take back what was granted.

    \b
    Example:
      remit deny 9a1b.. --comment "not this quarter"
      remit deny 9a1b.. --granted --comment "the invoice was forged"
    """
    if granted:
        taken = approvals_pb2.CancelApprovalRequest(idempotency_key=key, id=id_, reason=comment)
        with authority_channel(config_file, socket) as channel:
            _said(approvals_pb2_grpc.ApprovalsStub(channel).Cancel(taken, timeout=TIMEOUT_S), as_json)
        return
    request = approvals_pb2.DecideApprovalRequest(idempotency_key=key, id=id_, comment=comment)
    _decide(request, config_file, socket, as_json)


def _decide(request: approvals_pb2.DecideApprovalRequest, config_file: str, socket: str | None, as_json: bool) -> None:
    with authority_channel(config_file, socket) as channel:
        _said(approvals_pb2_grpc.ApprovalsStub(channel).Decide(request, timeout=TIMEOUT_S), as_json)


@click.command()
@click.argument("id_", metavar="APPROVAL")
@click.option("--comment", default="", metavar="TEXT", help="What you found; stands in the records.")
@key_option
@sidecar_options
def review(id_: str, comment: str, key: str, config_file: str, socket: str | None, as_json: bool) -> None:
    """Say that you looked at what a break-glass grant was used for; who broke the glass cannot.

    \b
    Example:
      remit pending --review
      remit review 9a1b.. --comment "restored one table, as said"
    """
    request = approvals_pb2.ReviewApprovalRequest(idempotency_key=key, id=id_, comment=comment)
    with authority_channel(config_file, socket) as channel:
        _said(approvals_pb2_grpc.ApprovalsStub(channel).Review(request, timeout=TIMEOUT_S), as_json)


def _said(row: approvals_pb2.Approval, as_json: bool) -> None:
    if as_json:
        show_json([row])
        return
    state = approval_state(row)
    more = (
        f", {counted(row.uses, 'use')} {row_scope(row)}, ends {until(row.expires_unix_ns)}"
        if state == "granted"
        else ""
    )
    click.echo(f"{row.id} {state}{more}")


def call_text(row: approvals_pb2.Approval) -> str:
    """Method, path and query of an HTTP call, and whether its content was not seen."""
    target = f"{row.path}?{row.query}" if row.query else row.path
    unseen = "[content unseen]" if row.content_unseen else ""
    return " ".join(part for part in (row.method, target, unseen) if part)


def approval_state(row: approvals_pb2.Approval) -> str:
    return approvals_pb2.ApprovalState.Name(row.state).removeprefix("APPROVAL_STATE_").lower()


def row_scope(row: approvals_pb2.Approval) -> str:
    return approvals_pb2.ApprovalScope.Name(row.scope).removeprefix("APPROVAL_SCOPE_").lower()


def show_approvals(rows: list[approvals_pb2.Approval]) -> None:
    """Approvals of one agent, whatever their state."""
    table(
        "approvals",
        ("approval", "state", "action", "resource", "scope", "uses left", "ends", "asked", "decided by"),
        (
            (
                r.id,
                mark(approval_state(r) == "granted", approval_state(r)),
                r.action,
                r.resource,
                row_scope(r),
                f"{r.uses_left}/{r.uses}" if r.HasField("uses_left") else "",
                until(r.expires_unix_ns),
                at(r.requested_unix_ns),
                r.decided_by + (" (break-glass)" if r.break_glass else ""),
            )
            for r in rows
        ),
    )
