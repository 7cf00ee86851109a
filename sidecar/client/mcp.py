"""An MCP server built with the package `mcp`, with every call of a tool asked about first.

    server = MCPServer("files")
    guard(server, client)

Needs the package `mcp`; nothing else of the client does.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError

from sidecar.client.aio import AsyncClient
from sidecar.client.errors import RemitError

DENIED = -32001  # implementation-defined (JSON-RPC 2.0 section 5.1); what Remit's own denials carry
CALL = "tools/call"
ACTIONS: Mapping[str, str] = {
    "tools/list": "list",
    "resources/list": "list",
    "resources/templates/list": "list",
    "prompts/list": "list",
    "resources/read": "read",
    "resources/subscribe": "read",
    "prompts/get": "read",
    "completion/complete": "read",
}

PASSED = ("initialize", "ping", "server/discover")
"""What only says hello; notifications pass as well, since nothing answers them."""

Place = Callable[[str, Mapping[str, Any]], str]


def nowhere(_tool: str, _arguments: Mapping[str, Any]) -> str:
    """The tool stays where it is."""
    return ""


def guard(
    server: MCPServer,
    client: AsyncClient,
    *,
    actions: Mapping[str, str] | None = None,
    destination: Place = nowhere,
) -> None:
    """Ask `client` before each call of a tool of `server`; a denial is a JSON-RPC error that says what to do next.

    `actions` is the action of a tool by its name ("execute" where it says nothing), `destination` where a call goes.
    Listing and reading are asked about as `list` and `read` of the server's endpoint, whatever else a client may send
    as `execute`.
    """
    name = server.name

    async def ask(ctx: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        params = ctx.params or {}
        try:
            if ctx.method == CALL:
                tool, arguments = str(params.get("name", "")), params.get("arguments") or {}
                action = (actions or {}).get(tool, "execute")
                where = destination(tool, arguments)
                await client.require(action, f"{name}/{tool}", destination=where, arguments=arguments)
            elif ctx.method not in PASSED and not ctx.method.startswith("notifications/"):
                await client.require(ACTIONS.get(ctx.method, "execute"), name, resource_type="Endpoint")
        except RemitError as error:
            data = {"evaluation_id": error.evaluation_id, "reason": error.reason, "next": error.next}
            raise MCPError(DENIED, str(error), {key: value for key, value in data.items() if value}) from None
        return await call_next(ctx)

    server.middleware.append(ask)
