"""`remit task ...`: what agents may do now."""

from typing import Any

import click

from sidecar._proto.remit.authority.v1 import tasks_pb2, tasks_pb2_grpc
from sidecar.cli.authority_rows import (
    DURATION,
    TIMEOUT_S,
    authority_channel,
    budget_options,
    budgets_from,
    budgets_text,
    counted,
    scope_from,
    scope_options,
    show_json,
    show_task,
    show_tasks,
    sidecar_options,
)
from sidecar.cli.output import Commands

STATES = ("open", "suspended", "completed", "cancelled", "expired", "revoked")
key_option = click.option("--key", default="", metavar="TEXT", help="Idempotency key: same key, same answer.")
rev_option = click.option("--rev", type=click.IntRange(1), help="Only if the task is still at this rev.")
reason_option = click.option("--reason", default="", metavar="TEXT", help="Why; stands in the records.")


@click.group(cls=Commands)
def task() -> None:
    """Open, look at, narrow and end the tasks of agents.

    A task binds an agent to an owner, a purpose, a scope, budgets and a moment at which it ends. Nothing widens it.

    \b
    Example:
      remit task open --agent spiffe://example.org/agents/clerk --owner alice --purpose "file invoices" \\
        --ttl 30m --tool 'books/*' --action read --action write --dest books.example.org --level 1 --calls 200
      remit task list
      remit task complete 4c1f..
    """


@task.command("open")
@click.option("--agent", required=True, metavar="SPIFFE_ID", help="The agent that the task is bound to.")
@click.option("--owner", required=True, metavar="PERSON", help="Who answers for it.")
@click.option("--purpose", required=True, metavar="TEXT")
@click.option("--ttl", required=True, type=DURATION, metavar="15m", help="When it ends, from now.")
@scope_options
@budget_options
@click.option("--depth", type=click.IntRange(0), default=0, help="How far it may be delegated.")
@click.option("--origin", type=click.Choice(["user", "agent", "schedule", "event"]), default="user", show_default=True)
@click.option("--on-behalf", default="", metavar="TEXT", help="Who the work is done for, if not the owner.")
@key_option
@sidecar_options
def open_(
    agent: str,
    owner: str,
    purpose: str,
    ttl: int,
    calls: int | None,
    cost: int | None,
    bytes: int | None,
    depth: int,
    origin: str,
    on_behalf: str,
    key: str,
    config_file: str,
    socket: str | None,
    as_json: bool,
    **scope: Any,
) -> None:
    """Open a task for an agent; prints its id.

    What is not named is not covered: give --tool, --action and --dest, `*` for any.

    \b
    Example:
      remit task open --agent spiffe://example.org/agents/clerk --owner alice --purpose "pay one bill" --ttl 10m \\
        --tool bank/pay --action send --dest bank.example.org --calls 1 --arg 'bank/pay amount range 0,5000'
    """
    request = tasks_pb2.OpenTaskRequest(
        idempotency_key=key,
        agent=agent,
        owner=owner,
        purpose=purpose,
        scope=scope_from(**scope),
        budgets=budgets_from(calls, cost, bytes),
        ttl_s=ttl,
        max_depth=depth,
        origin=origin,
        on_behalf=on_behalf,
    )
    with authority_channel(config_file, socket) as channel:
        made = tasks_pb2_grpc.TasksStub(channel).Open(request, timeout=TIMEOUT_S)
    _said(made, as_json)


@task.command()
@click.argument("id_", metavar="TASK")
@sidecar_options
def show(id_: str, config_file: str, socket: str | None, as_json: bool) -> None:
    """Show one task: its scope, what is left of its budgets, its chain.

    \b
    Example:
      remit task show 4c1f0d5e9a3b47c2a6d8e1f203b4c5d6
    """
    with authority_channel(config_file, socket) as channel:
        found = tasks_pb2_grpc.TasksStub(channel).Get(tasks_pb2.GetTaskRequest(id=id_), timeout=TIMEOUT_S)
    if as_json:
        show_json([found])
    else:
        show_task(found)


@task.command("list")
@click.option("--agent", default="", metavar="SPIFFE_ID")
@click.option("--owner", default="", metavar="PERSON")
@click.option("--parent", default="", metavar="TASK", help="The tasks right below this one.")
@click.option("--state", type=click.Choice(STATES), help="Default: open and suspended.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@sidecar_options
def list_(
    agent: str,
    owner: str,
    parent: str,
    state: str | None,
    limit: int,
    config_file: str,
    socket: str | None,
    as_json: bool,
) -> None:
    """List tasks.

    \b
    Example:
      remit task list --owner alice
      remit task list --state expired --json
    """
    number: Any = (
        tasks_pb2.TaskState.Value(f"TASK_STATE_{state.upper()}") if state else tasks_pb2.TASK_STATE_UNSPECIFIED
    )
    found: list[tasks_pb2.Task] = []
    token = ""
    with authority_channel(config_file, socket) as channel:
        stub = tasks_pb2_grpc.TasksStub(channel)
        while len(found) < limit:
            request = tasks_pb2.ListTasksRequest(
                agent=agent,
                owner=owner,
                parent=parent,
                state=number,
                page_size=min(1000, limit - len(found)),
                page_token=token,
            )
            page = stub.List(request, timeout=TIMEOUT_S)
            found += page.tasks
            token = page.next_page_token
            if not token:
                break
    if as_json:
        show_json(found)
    else:
        show_tasks(counted(len(found), "task", ", and more" if token else ""), found)


@task.command()
@click.argument("id_", metavar="TASK")
@scope_options
@budget_options
@click.option("--ttl", type=DURATION, default="0", metavar="15m", help="At most this long from now.")
@click.option("--depth", type=click.IntRange(0), help="How far it may be delegated.")
@rev_option
@key_option
@sidecar_options
def narrow(
    id_: str,
    calls: int | None,
    cost: int | None,
    bytes: int | None,
    ttl: int,
    depth: int | None,
    rev: int | None,
    key: str,
    config_file: str,
    socket: str | None,
    as_json: bool,
    **scope: Any,
) -> None:
    """Take authority away from a task; nothing widens one.

    Scope options replace the whole scope, which must lie within the present one. Budgets are what may still be spent.

    \b
    Example:
      remit task narrow 4c1f.. --calls 5 --ttl 5m
    """
    request = tasks_pb2.NarrowTaskRequest(
        idempotency_key=key,
        id=id_,
        expected_rev=rev or 0,
        scope=scope_from(**scope) if any(scope.values()) else None,
        left=budgets_from(calls, cost, bytes),
        ttl_s=ttl,
        max_depth=depth,
    )
    with authority_channel(config_file, socket) as channel:
        made = tasks_pb2_grpc.TasksStub(channel).Narrow(request, timeout=TIMEOUT_S)
    _said(made, as_json)


@task.command()
@click.argument("parent", metavar="TASK")
@click.option("--agent", required=True, metavar="SPIFFE_ID", help="Who gets the child task.")
@click.option("--purpose", default="", metavar="TEXT", help="Default: the parent's.")
@click.option("--ttl", type=DURATION, default="0", metavar="15m", help="Default: until the parent ends.")
@scope_options
@budget_options
@click.option("--depth", type=click.IntRange(1), help="How deep the chain may become; default: the parent's.")
@rev_option
@key_option
@sidecar_options
def delegate(
    parent: str,
    agent: str,
    purpose: str,
    ttl: int,
    calls: int | None,
    cost: int | None,
    bytes: int | None,
    depth: int | None,
    rev: int | None,
    key: str,
    config_file: str,
    socket: str | None,
    as_json: bool,
    **scope: Any,
) -> None:
    """Open a child task for another agent, within the task and out of its budgets.

    \b
    Example:
      remit task delegate 4c1f.. --agent spiffe://example.org/agents/reader --tool books/list --action read \\
        --dest books.example.org --calls 20
    """
    request = tasks_pb2.DelegateTaskRequest(
        idempotency_key=key,
        parent=parent,
        expected_rev=rev or 0,
        agent=agent,
        purpose=purpose,
        scope=scope_from(**scope),
        budgets=budgets_from(calls, cost, bytes),
        ttl_s=ttl,
        max_depth=depth,
    )
    with authority_channel(config_file, socket) as channel:
        made = tasks_pb2_grpc.TasksStub(channel).Delegate(request, timeout=TIMEOUT_S)
    _said(made, as_json)


def _change(name: str, text: str) -> None:
    """Add a command that names a task, a reason and nothing else."""

    @task.command(name, help=f'{text}\n\n\b\nExample:\n  remit task {name} 4c1f.. --reason "as agreed"')
    @click.argument("id_", metavar="TASK")
    @reason_option
    @rev_option
    @key_option
    @sidecar_options
    def change(
        id_: str, reason: str, rev: int | None, key: str, config_file: str, socket: str | None, as_json: bool
    ) -> None:
        request = tasks_pb2.ChangeTaskRequest(idempotency_key=key, id=id_, expected_rev=rev or 0, reason=reason)
        with authority_channel(config_file, socket) as channel:
            done = getattr(tasks_pb2_grpc.TasksStub(channel), name.capitalize())(request, timeout=TIMEOUT_S)
        _said(done, as_json)


_change("suspend", "Let no call of a task, or of any below it, through until it is resumed.")
_change("resume", "Give a suspended task back; its own agent cannot.")
_change("complete", "End a task whose work is done, and all below it, with their approvals.")
_change("cancel", "End a task that is given up, and all below it, with their approvals.")


def _said(done: tasks_pb2.Task | tasks_pb2.ClosedTasks, as_json: bool) -> None:
    """What became of the task, in one line."""
    if as_json:
        show_json([done])
        return
    row = done.task if isinstance(done, tasks_pb2.ClosedTasks) else done
    state = tasks_pb2.TaskState.Name(row.state).removeprefix("TASK_STATE_").lower()
    click.echo(f"{row.id} {state}")
    if isinstance(done, tasks_pb2.ClosedTasks):
        more = [f"{len(done.closed) - 1} below it ended"] if len(done.closed) > 1 else []
        more += [counted(len(done.undone_approvals), "approval", " undone")] if done.undone_approvals else []
        if any(getattr(done.refunded, axis) for axis in ("calls", "cost", "bytes")):
            more.append(f"its parent got back {budgets_text(done.refunded, done.refunded)}")
        for line in more:
            click.echo(f"  {line}")
