"""I10, LG-11: what proves who someone is, and what they say, stands in no record, log, metric or file of ours."""

import json
import urllib.request

import pytest

from sidecar.demo.stage import MCP_HOST
from tests.fix_raw import exchange, message
from tests.fix_stage import TestStage

pytestmark = pytest.mark.envoy

CANARY = "c4n4ry"
SECRET = CANARY.encode()
CREDENTIALS = [
    (b"authorization", b"Bearer " + SECRET),
    (b"cookie", b"session=" + SECRET),
    (b"proxy-authorization", b"Basic " + SECRET),
    (b"x-api-key", SECRET),
    (b"txn-token", SECRET),
    (b"x-role", SECRET),
]
JSON = (b"content-type", b"application/json")
ACCEPT = (b"accept", b"application/json, text/event-stream")
NOTE = json.dumps({"text": CANARY, CANARY: CANARY}).encode()


def _mcp(tool: str, arguments: dict[str, str], more: bytes = b"") -> bytes:
    call = {"jsonrpc": "2.0", "id": CANARY, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    body = json.dumps(call).encode() + more
    return message(b"/mcp?" + SECRET, b"POST", host=MCP_HOST.encode(), headers=[*CREDENTIALS, JSON, ACCEPT], body=body)


CALLS = {
    "allowed": message(b"/v1/rates?token=" + SECRET, headers=CREDENTIALS),
    "denied": message(b"/admin?token=" + SECRET, headers=CREDENTIALS),
    "refused path": message(b"//admin?token=" + SECRET, headers=CREDENTIALS),
    "refused query": message(b"/v1/rates?token=" + SECRET + b"%zz", headers=CREDENTIALS),
    "header by rule": message(b"/role", headers=CREDENTIALS),
    "header twice": message(b"/role", headers=[*CREDENTIALS, (b"x-role", SECRET)]),
    "body by rule": message(b"/note", b"POST", headers=[*CREDENTIALS, JSON], body=NOTE),
    "cut body": message(b"/note", b"POST", headers=[*CREDENTIALS, JSON], body=NOTE[:-1]),
    "tool": _mcp("get_balance", {"account": CANARY}),
    "denied tool": _mcp("send_money", {"recipient": CANARY, "amount": CANARY}),
    "not JSON": _mcp("get_balance", {"account": CANARY}, b"}"),
}


def _places(stage: TestStage) -> dict[str, bytes]:
    """Everything of ours that is written or shown, by name. The upstreams' own logs are theirs."""
    with urllib.request.urlopen(f"http://{stage.addresses['metrics.address']}/metrics", timeout=5) as reply:
        places = {"metrics": reply.read(), "status": str(stage.status()).encode()}
    folders = [stage.folder / "journal", stage.records, stage.folder / "generations"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    files += [stage.folder / name for name in ("sidecar.log", "collector.log", "access.log", "envoy.log")]
    return places | {str(file): file.read_bytes() for file in files}


def test_no_secret_stands_anywhere_of_ours(stage: TestStage) -> None:
    """LG-11: credentials, queries and bodies of calls of every outcome; the calls themselves are all recorded."""
    seen = len(stage.wait_collected())
    answers = {what: str(exchange(stage, data)) for what, data in CALLS.items()}
    assert answers == {
        "allowed": "200",
        "denied": "403 admin.closed",
        "refused path": "403 path.not_canonical",
        "refused query": "403 query.bad_escape",
        "header by rule": "403 policy.none",
        "header twice": "403 request.ambiguous.x-role",
        "body by rule": "403 policy.none",
        "cut body": "403 input.missing.input",
        "tool": "200",
        "denied tool": "403 input.type.amount",
        "not JSON": "403 mcp.body.malformed",
    }
    records = [one for one in stage.wait_collected()[seen:] if one["kind"] == "decision"]
    assert len(records) == len(CALLS)
    stage.access_log("/role")
    places = _places(stage)
    # The calls are there to be found: journal, collector and log name their paths.
    assert {place.split("/")[-2] for place, text in places.items() if b"/role" in text} >= {"journal", "records"}
    assert [place for place, text in places.items() if SECRET in text] == []
