"""The client for agents: only ALLOW is a yes, an error says why and what next, a retry follows the answer's advice."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from mcp.client import Client as McpClient
from mcp.server import MCPServer

from fastpath.call import Pdp
from sidecar.client import ApprovalNeeded, AsyncClient, Client, Denied, Refused, TaskNeeded, Unavailable, scope
from sidecar.client.decision import question
from sidecar.client.mcp import guard
from sidecar.services.doors import authz_service
from sidecar.services.errors import ErrorCounts
from tests.fix_live import make_live, make_pdp, peer, task


class Served:
    """A real Pdp behind a real door on a Unix socket; `fail` answers UNAVAILABLE that many times first."""

    def __init__(self, folder: Path, pdp: Pdp) -> None:
        self.pdp = pdp
        self.address = f"unix:{folder}/check.sock"
        self.calls = 0
        self.fail = 0
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        handler = authz_service(self._check, pdp.batch_check, pdp.report, lambda _: peer(), ErrorCounts())
        self.server.add_generic_rpc_handlers((handler,))
        self.server.add_insecure_port(self.address)
        self.server.start()

    def _check(self, request: bytes, caller: object) -> tuple[int, bytes]:
        self.calls += 1
        if self.calls <= self.fail:
            return 14, b"not_ready.starting"
        return self.pdp.check(request, caller)  # type: ignore[arg-type]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path, make_pdp(make_live(task())))
    yield made
    made.server.stop(None).wait()


def test_only_an_allow_is_a_yes(served: Served) -> None:
    """Each other answer is an error of its own kind, with the reason, the evaluation id and the next step."""
    with Client(served.address) as client:
        assert client.check("read", "files/open").allowed
        assert client.require("read", "files/open").reason == "ok"
        with pytest.raises(Denied, match=r"resource\.frozen") as denied:
            client.require("read", "files/frozen")
        assert len(denied.value.evaluation_id) == 32
        with pytest.raises(ApprovalNeeded, match="ask for an approval") as needed:
            client.require("delete", "files/open")
        assert needed.value.next == "request_approval"
        with pytest.raises(TaskNeeded, match=r"task\.unknown"):
            client.require("read", "files/open", task="nowhere")
        with pytest.raises(Refused, match="invalid argument"):
            client.batch([])


def test_a_batch_keeps_the_order(served: Served) -> None:
    with Client(served.address) as client:
        answers = client.batch([question("read", "files/open"), question("read", "files/frozen")])
    assert [answer.allowed for answer in answers] == [True, False]


def test_a_sidecar_that_is_away_is_asked_again(served: Served) -> None:
    """UNAVAILABLE is repeated while there is time; afterwards it is an error, never a yes."""
    served.fail = 2
    with Client(served.address) as client:
        assert client.check("read", "files/open").allowed
        assert served.calls == 3
        served.fail = 1 << 30
        with pytest.raises(Unavailable, match="nobody decided"):
            Client(served.address, timeout_s=0.2).check("read", "files/open")


def test_nobody_there_is_not_a_yes(tmp_path: Path) -> None:
    with Client(f"unix:{tmp_path}/none.sock", timeout_s=0.1) as client, pytest.raises(Unavailable):
        client.require("read", "files/open")


def test_a_decorated_function_runs_when_it_is_allowed(served: Served) -> None:
    """Its arguments are those of the question: the task's argument rules see them."""
    rule = {"tool": "files/open", "path": "path", "op": "prefix", "values": ["/tmp/"]}
    limits = {"any_tool": True, "any_action": True, "any_dest": True, "max_level": 2, "arg_rules": [rule]}
    served.pdp.put_authority(make_live(task(scope=limits)))
    ran = []
    with Client(served.address) as client:

        @client.tool("files/open", action="read")
        def read(path: str, *, lines: int = 10) -> str:
            ran.append(path)
            return f"{path}:{lines}"

        assert read("/tmp/a") == "/tmp/a:10"
        with pytest.raises(TaskNeeded, match=r"task\.scope\.tool"):
            read("/etc/passwd")
        with pytest.raises(TypeError):
            read()  # type: ignore[call-arg]
    assert ran == ["/tmp/a"]


def test_asyncio_is_the_same(served: Served) -> None:
    async def play() -> None:
        async with AsyncClient(served.address) as client:
            assert (await client.check("read", "files/open")).allowed
            with pytest.raises(Denied):
                await client.require("read", "files/frozen")

            @client.tool("files/open", action="read")
            async def read(path: str) -> str:
                return path

            assert await read("a") == "a"

    asyncio.run(play())


def test_an_mcp_server_asks_before_its_tools_run(served: Served) -> None:
    """A denial reaches the MCP client as a JSON-RPC error with a reason code; the tool has not run."""
    ran = []

    async def play() -> None:
        server = MCPServer("files")

        @server.tool()
        def open(path: str) -> str:
            ran.append(path)
            return path

        @server.tool()
        def frozen() -> str:
            ran.append("frozen")
            return ""

        async with AsyncClient(served.address) as client:
            guard(server, client, actions={"open": "read", "frozen": "read"})
            async with McpClient(server) as session:
                assert not (await session.call_tool("open", {"path": "a"})).is_error
                with pytest.raises(Exception, match=r"resource\.frozen") as denied:
                    await session.call_tool("frozen", {})
        assert denied.value.data["reason"] == "resource.frozen"  # type: ignore[attr-defined]

    asyncio.run(play())
    assert ran == ["a"]


def test_a_scope_says_all_only_when_asked() -> None:
    """ "*" is the one word for everything; an empty list of labels is not the same as none given."""
    made = scope(tools=["*"], actions=["read"], label_allow=[])
    assert (made.any_tool, list(made.tools), made.any_action, list(made.actions)) == (True, [], False, ["read"])
    assert made.HasField("label_allow")
    assert not made.HasField("methods")


def test_the_client_needs_no_native_build() -> None:
    """An agent's image has grpcio and the messages, not the sidecar's own extensions."""
    program = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fastpath", "lmdb", "cedarpy", "spiffe"):
            raise ImportError(name)
sys.meta_path.insert(0, Without())
import sidecar.client, sidecar.client.mcp
"""
    subprocess.run([sys.executable, "-c", program], check=True)
