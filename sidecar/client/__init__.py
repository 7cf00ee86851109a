"""For agents and orchestrators: may I do this now, and under which task.

    from sidecar.client import Client, Denied, scope

    client = Client("unix:/run/remit/agent/check.sock", authority="unix:/run/remit/agent/authority.sock")
    decision = client.require("send", "mail/send", destination="mail.example.com", arguments={"to": "ann@example.com"})

    @client.tool("mail/send", action="send", destination="mail.example.com")
    def send(to: str, body: str) -> None: ...

    with client.task(agent=AGENT, owner="ann", purpose="answer mail", scope=scope(tools=["mail/*"]), ttl_s=600): ...

    with client.stream() as stream: ...  # many questions, and `stream.notices()` of what changes

`AsyncClient` is the same for asyncio, `sidecar.client.mcp.guard` puts an MCP server's tools behind it. Nothing here
needs the native build: grpcio and the generated messages are enough.
"""

from sidecar.client.aio import AsyncClient
from sidecar.client.conversation import Notice
from sidecar.client.decision import Decision
from sidecar.client.errors import ApprovalNeeded, Denied, Refused, RemitError, TaskNeeded, Unavailable
from sidecar.client.sync import Client
from sidecar.client.tasks import budgets, scope

__all__ = [
    "ApprovalNeeded",
    "AsyncClient",
    "Client",
    "Decision",
    "Denied",
    "Notice",
    "Refused",
    "RemitError",
    "TaskNeeded",
    "Unavailable",
    "budgets",
    "scope",
]
