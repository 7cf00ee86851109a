"""What the authority commands share: the channel, durations, scopes from options, and how rows look."""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import grpc
import rich.text
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from sidecar._proto.remit.authority.v1 import tasks_pb2
from sidecar.cli.control import control_socket, socket_option, utc
from sidecar.cli.output import EXIT_ERROR, EXIT_NO, Failure, config_option, mark, table, unreachable

TIMEOUT_S = 30
SECOND_NS = 1_000_000_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]+)([smhd]?)")


class Duration(click.ParamType):
    """Seconds, as 90, 90s, 15m, 8h or 2d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"`{value}` is no duration; write it as 90s, 15m, 8h or 2d", param, ctx)
        return int(match[1]) * _UNITS[match[2] or "s"]


DURATION = Duration()


def sidecar_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--config, --socket and --json."""
    as_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
    return config_option(socket_option(as_json(function)))


@contextmanager
def authority_channel(config_file: str, socket: str | None) -> Iterator[grpc.Channel]:
    """A channel to the sidecar's authority services; a refusal ends the command with its reason."""
    path = control_socket(config_file, socket)
    with grpc.insecure_channel(f"unix:{path}") as made:
        try:
            yield made
        except grpc.RpcError as error:
            _refused(path, error)


def _refused(path: str, error: grpc.RpcError) -> None:
    code, said = error.code(), error.details() or error.code().name.lower()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or "failed to connect" in said.lower():
        unreachable("the control socket", path, said)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        raise Failure("this sidecar enforces no tasks; add the section `authority` to its configuration") from error
    kind = EXIT_ERROR if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL) else EXIT_NO
    raise Failure(said, kind) from error


def show_json(messages: Iterable[Message]) -> None:
    """One line for each."""
    for message in messages:
        click.echo(json.dumps(MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False))


def counted(number: int, noun: str, more: str = "") -> str:
    """`1 task`, `2 tasks`; with a `more` behind it that is not empty."""
    return f"{number} {noun}{'' if number == 1 else 's'}{more}"


def until(unix_ns: int) -> str:
    """A moment in the future as what is left until then; 0: of a revocation that somebody must lift."""
    if not unix_ns:
        return "it is lifted"
    left = unix_ns / SECOND_NS - time.time()
    return f"in {span(left)}" if left > 0 else "over"


def span(seconds: float) -> str:
    """Two units at most, as `2d 3h`."""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2])


def at(unix_ns: int) -> str:
    """A moment in the past."""
    return utc(unix_ns // SECOND_NS)


# ---------------------------------------------------------------- tasks


def state_text(state: int) -> rich.text.Text:
    name = tasks_pb2.TaskState.Name(state).removeprefix("TASK_STATE_").lower()
    return mark(name == "open", name)


def budgets_text(left: tasks_pb2.Budgets, granted: tasks_pb2.Budgets) -> str:
    """`7/10 calls, 900/1000 cost`; what is unlimited is left out."""
    found = [
        f"{getattr(left, axis) if left.HasField(axis) else '?'}/{getattr(granted, axis)} {axis}"
        for axis in ("calls", "cost", "bytes")
        if granted.HasField(axis)
    ]
    return ", ".join(found) or "unlimited"


def scope_rows(scope: tasks_pb2.Scope) -> list[tuple[str, str]]:
    """(axis, what it covers) for people."""
    rows = [
        ("tools", _names(scope.any_tool, [*scope.tools, *(f"group {name}" for name in scope.tool_groups)])),
        ("actions", _names(scope.any_action, scope.actions)),
        ("destinations", _names(scope.any_destination, [*scope.destinations, *(f"zone {z}" for z in scope.zones)])),
        ("data", f"up to level {scope.max_level}"),
    ]
    if scope.HasField("label_allow"):
        rows.append(("labels", ", ".join(scope.label_allow.names) or "none"))
    if scope.label_deny:
        rows.append(("labels denied", ", ".join(scope.label_deny)))
    if scope.HasField("methods"):
        rows.append(("methods", ", ".join(scope.methods.names) or "none"))
    for rule in scope.arg_rules:
        op = tasks_pb2.ArgOp.Name(rule.op).removeprefix("ARG_OP_").lower()
        rows.append(("argument", f"{rule.tool or 'every tool'}: {rule.path} {op} {', '.join(rule.values)}"))
    return rows


def _names(any_: bool, names: Iterable[str]) -> str:
    return "any" if any_ else ", ".join(names) or "none"


def show_tasks(title: str, tasks: Iterable[tasks_pb2.Task]) -> None:
    table(
        title,
        ("task", "agent", "owner", "state", "left", "expires", "purpose"),
        (
            (t.id, t.agent, t.owner, state_text(t.state), budgets_text(t.left, t.granted), _ends(t), t.purpose)
            for t in tasks
        ),
    )


def show_task(task: tasks_pb2.Task) -> None:
    chain = " > ".join(task.chain)
    rows: list[tuple[object, object]] = [
        ("state", state_text(task.state)),
        ("agent", task.agent),
        ("owner", task.owner + (f" on behalf of {task.on_behalf}" if task.on_behalf else "")),
        ("purpose", task.purpose),
        ("expires", _ends(task)),
        ("budgets left", budgets_text(task.left, task.granted)),
        *scope_rows(task.scope),
        ("delegation", f"depth {task.depth} of {task.max_depth}{f', {chain}' if task.parent else ''}"),
        ("opened", f"{at(task.opened_unix_ns)} by {task.opened_by}"),
        ("rev, epoch", f"{task.rev}, {task.epoch}"),
    ]
    if task.parent:
        rows.append(("parent", task.parent))
    if task.closed_unix_ns:
        rows.append(("closed", f"{at(task.closed_unix_ns)} {task.close_reason}"))
    table(f"task {task.id}", ("what", "value"), rows)


def _ends(task: tasks_pb2.Task) -> str:
    return at(task.expires_unix_ns) if task.closed_unix_ns else until(task.expires_unix_ns)


# ---------------------------------------------------------------- scopes from options


def scope_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a scope is made of."""
    for option in (
        click.option("--scope", "scope_file", type=click.Path(), help="Scope as JSON (message Scope)."),
        click.option(
            "--arg", "arg_rules", metavar="'TOOL PATH OP VALUES'", help="OP: eq, in, range, prefix, ..", multiple=True
        ),
        click.option("--method", "methods", metavar="NAME", help="HTTP or MCP method; none: any.", multiple=True),
        click.option("--label-deny", metavar="LABEL", help="Data that is not covered.", multiple=True),
        click.option("--label-allow", metavar="LABEL", help="Only data with these labels.", multiple=True),
        click.option("--level", "max_level", type=click.IntRange(0, 4), default=0, help="Highest data level."),
        click.option("--zone", "zones", metavar="ID", help="Zone of destinations.", multiple=True),
        click.option("--dest", "destinations", metavar="HOST", help="Host, *.suffix, or * for any.", multiple=True),
        click.option("--action", "actions", metavar="NAME", help="Action or class, or * for any.", multiple=True),
        click.option("--tool-group", "tool_groups", metavar="ID", help="Group of tools.", multiple=True),
        click.option("--tool", "tools", metavar="SERVER/TOOL", help="Tool, server/*, or * for any.", multiple=True),
    ):
        function = option(function)
    return function


def budget_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for axis in ("bytes", "cost", "calls"):
        function = click.option(f"--{axis}", type=click.IntRange(0), help=f"Budget of {axis}.")(function)
    return function


def scope_from(scope_file: str | None, arg_rules: tuple[str, ...], **axes: Any) -> tasks_pb2.Scope:
    """The scope that the options give; a file is taken whole."""
    from google.protobuf.json_format import ParseDict, ParseError

    from sidecar.cli.output import input_text
    from sidecar.client.tasks import scope

    if scope_file:
        if arg_rules or any(axes.values()):
            raise click.UsageError("--scope FILE is the whole scope; give no other part of it")
        try:
            return ParseDict(json.loads(input_text(scope_file)), tasks_pb2.Scope())
        except (ValueError, ParseError) as error:
            raise Failure(f"`{scope_file}` is no scope: {str(error).lower()}") from None
    axes["label_allow"] = axes["label_allow"] or None
    axes["methods"] = axes["methods"] or None
    return scope(**axes, arg_rules=[_rule(text) for text in arg_rules])


def _rule(text: str) -> dict[str, Any]:
    parts = text.split(None, 3)
    known = ("eq", "in", "range", "prefix", "host_suffix", "cidr")
    if len(parts) != 4 or parts[2] not in known:
        raise click.UsageError(f"--arg `{text}`: write 'TOOL PATH OP VALUE[,VALUE]', with OP one of {', '.join(known)}")
    tool, path, op, values = parts
    return {"tool": "" if tool == "*" else tool, "path": path, "op": op, "values": values.split(",")}


def budgets_from(calls: int | None, cost: int | None, bytes: int | None) -> tasks_pb2.Budgets:
    return tasks_pb2.Budgets(calls=calls, cost=cost, bytes=bytes)
