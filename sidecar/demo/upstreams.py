"""What the demo's agents want to reach: an MCP server with tools and a plain HTTP service.

Run as `python -m sidecar.demo.upstreams --ready FILE`; the file then holds `{"mcp": port, "http": port}`. Neither knows
anything of authorization: what reaches them was allowed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import uvicorn
from mcp.server.mcpserver import MCPServer

SERVER_NAME = "bank"


def tools() -> MCPServer:
    """The demo's MCP server: reading, writing and sending tools of a small bank."""
    server = MCPServer(SERVER_NAME)

    @server.tool()
    def get_balance(account: str) -> str:
        """Balance of an account."""
        return f"balance of {account}: 1000"

    @server.tool()
    def send_money(recipient: str, amount: int) -> str:
        """Send money to a recipient, amount in cents."""
        return f"sent {amount} to {recipient}"

    @server.tool()
    def read_record(customer: str) -> str:
        """The full record of a customer: personal data."""
        return f"record of {customer}"

    @server.tool()
    def delete_account(account: str) -> str:
        """Delete an account for good."""
        return f"deleted {account}"

    return server


class Plain(BaseHTTPRequestHandler):
    """Answers every request with what it saw, so that a test can tell what arrived."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        seen = {"method": self.command, "path": self.path, "headers": [[k.lower(), v] for k, v in self.headers.items()]}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the demo prints what happened."""


@click.command()
@click.option("--ready", type=click.Path(path_type=Path), required=True, help="file that gets the chosen ports")
def main(ready: Path) -> None:
    """Serve the demo's upstreams on ports that the kernel chooses."""
    plain = ThreadingHTTPServer(("127.0.0.1", 0), Plain)
    threading.Thread(target=plain.serve_forever, daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0))
    app = tools().streamable_http_app(stateless_http=True, json_response=True, host="0.0.0.0")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    part = ready.with_suffix(".part")
    part.write_text(json.dumps({"mcp": listener.getsockname()[1], "http": plain.server_address[1], "pid": os.getpid()}))
    part.rename(ready)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
