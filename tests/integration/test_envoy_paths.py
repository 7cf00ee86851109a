"""EX-03 to EX-08 through a real Envoy: paths, queries and hosts have one reading, ours, or none.

The listener `raw` hands paths over as the client sent them; `main` has the settings that `remit envoy-config` prints.
"""

import pytest

from sidecar.demo.stage import API_HOST, MCP_HOST, WEB_HOST
from tests.fix_raw import exchange, message
from tests.fix_stage import TestStage

pytestmark = pytest.mark.envoy

# What Envoy itself answers 400 to has no reason of ours. "/admin" is closed by a policy, every other path is open.
ENVOY = "400"
PATHS = [
    # row, request target, answer on `raw`, answer on `main`
    ("EX-03", b"//admin", "403 path.not_canonical", "403 admin.closed"),
    ("EX-03", b"///admin", "403 path.not_canonical", "403 admin.closed"),
    ("EX-03", b"/v1//rates", "403 path.not_canonical", "200 /v1/rates"),
    ("EX-04", b"/a/./b", "403 path.not_canonical", "200 /a/b"),
    ("EX-04", b"/a/../admin", "403 path.not_canonical", "403 admin.closed"),
    ("EX-04", b"/..", "403 path.not_canonical", "200 /"),
    ("EX-04", b"/a/..;/admin", "403 path.dot_params", "403 admin.closed"),
    ("EX-04", b"/.%2e/", "403 path.not_canonical", "200 /"),
    ("EX-04", b"/v1/%2e%2e/admin", "403 path.not_canonical", "403 admin.closed"),
    ("EX-05", b"/p?x=1", "200 /p?x=1", "200 /p?x=1"),
    ("EX-05", b"/p%3Fx=1", "200 /p%3Fx=1", "200 /p%3Fx=1"),
    ("EX-05", b"/p#f", ENVOY, ENVOY),
    ("EX-05", b"/p?", "200 /p?", "200 /p?"),
    ("EX-05", b"/p?a=1;b=2", "200 /p?a=1;b=2", "200 /p?a=1;b=2"),
    ("EX-05", b"/p?x=/../admin", "200 /p?x=/../admin", "200 /p?x=/../admin"),
    ("EX-05", b"/admin?/v1/rates", "403 admin.closed", "403 admin.closed"),
    ("EX-05", b"/admin;v=1", "403 path.params", "403 path.params"),
    ("EX-06", b"/v1%2fadmin", "403 path.encoded_slash", ENVOY),
    ("EX-06", b"/v1%2Fadmin", "403 path.encoded_slash", ENVOY),
    ("EX-06", b"/v1%5cadmin", "403 path.encoded_slash", ENVOY),
    ("EX-06", b"/v1\\admin", "403 path.backslash", "200 /v1/admin"),
    ("EX-06", b"/v1%252fadmin", "403 path.double_escape", "403 path.double_escape"),
    ("EX-06", b"/%c0%afadmin", "403 path.bad_utf8", "403 path.bad_utf8"),
    ("EX-06", b"/%ed%a0%80", "403 path.bad_utf8", "403 path.bad_utf8"),
    ("EX-06", b"/%u002fadmin", "403 path.bad_escape", "403 path.bad_escape"),
    ("EX-06", b"/%zz", "403 path.bad_escape", "403 path.bad_escape"),
    ("EX-06", b"/v1/%", "403 path.bad_escape", "403 path.bad_escape"),
    ("EX-06", b"/%61dmin", "403 path.not_canonical", "403 admin.closed"),
    ("EX-07", b"/admin", "403 admin.closed", "403 admin.closed"),
    ("EX-07", b"/ADMIN", "200 /ADMIN", "200 /ADMIN"),
    ("EX-07", b"/admin.", "200 /admin.", "200 /admin."),
    ("EX-07", b"/admin%20", "200 /admin%20", "200 /admin%20"),
    ("EX-07", b"/admin%00", "403 path.control", ENVOY),
    ("EX-07", b"/a%09b", "403 path.control", "403 path.control"),
    ("EX-07", b"/a%0d%0ab", "403 path.control", "403 path.control"),
    ("EX-07", b"/a\tb", ENVOY, ENVOY),
    ("EX-07", b"/a b", ENVOY, ENVOY),
    ("EX-07", b"/caf\xc3\xa9", ENVOY, ENVOY),
    ("EX-07", b"/caf%C3%A9", "200 /caf%C3%A9", "200 /caf%C3%A9"),
    ("EX-07", b"/cafe%CC%81", "403 path.not_nfc", "403 path.not_nfc"),
    ("EX-07", b"/%E2%84%AA", "403 path.not_nfc", "403 path.not_nfc"),
    ("EX-07", b"/" + b"a" * 8200, "403 path.too_long", "403 path.too_long"),
    ("EX-07", b"admin", ENVOY, ENVOY),
]


@pytest.mark.parametrize("listener", ["raw", "main"])
@pytest.mark.parametrize(
    ("row", "target", "raw", "main"), PATHS, ids=[f"{p[0]} {p[1].decode('latin-1')[:20]}" for p in PATHS]
)
def test_ex_03_to_07_the_path_judged_is_the_path_routed(
    stage: TestStage, row: str, target: bytes, raw: str, main: str, listener: str
) -> None:
    """EX-03 to EX-07: what is not canonical is denied; what passes reaches the upstream as the path that was judged."""
    answer = exchange(stage, message(target), listener=listener)
    seen = f"200 {answer.json()['path']}" if answer.status == 200 else str(answer)
    assert seen == (raw if listener == "raw" else main), row


@pytest.mark.parametrize("target", [b"//admin?token=1", b"/a/..;/admin?token=1", b"/admin?token=1"])
def test_ex_03_a_refused_path_stands_in_the_record_as_sent(stage: TestStage, target: bytes) -> None:
    """EX-03, EX-04: the record of a refusal names the path that came, without its query."""
    record = stage.record(exchange(stage, message(target)))
    assert record["outcome"] == "OUTCOME_DENY"
    assert record["path"] == target.partition(b"?")[0].decode()
    assert "token" not in str(record)


QUERIES = [
    (b"plan=pro", "200"),
    (b"plan=pr%6f", "200"),
    (b"%70lan=pro", "200"),
    (b"plan=free", "403 policy.none"),
    (b"PLAN=pro", "403 policy.none"),
    (b"plan=pro;x=1", "403 policy.none"),
    (b"plan=free&plan=pro", "403 request.ambiguous.plan"),
    (b"plan=pro&plan=pro", "403 request.ambiguous.plan"),
    (b"plan=pro&x=%zz", "403 query.bad_escape"),
    (b"plan=pro%00", "403 query.control"),
    (b"plan=%ff", "403 query.bad_utf8"),
    (b"", "403 policy.none"),
]


@pytest.mark.parametrize(("query", "expected"), QUERIES, ids=[q[0].decode() for q in QUERIES])
def test_ex_05_a_query_parameter_has_one_value(stage: TestStage, query: bytes, expected: str) -> None:
    """EX-05: the query begins at the first raw `?`, only `&` separates, a repeated parameter is ambiguous."""
    assert str(exchange(stage, message(b"/plan?" + query))) == expected


HOSTS = [
    # what the client sends as Host, answer, canonical host and authority in the record
    (b"API.Example.ORG", "200", "api.example.org", "api.example.org"),
    (b"api.example.org.", "200", "api.example.org", "api.example.org"),
    (b"api.example.org:443", "200", "api.example.org", "api.example.org"),
    (b"api.example.org:8443", "200", "api.example.org", "api.example.org:8443"),
    (b"[::1]", "403 policy.none", "[::1]", "[::1]"),
    (b"[0:0::1]:443", "403 policy.none", "[::1]", "[::1]"),
    (b"127.0.0.1", "403 policy.none", "127.0.0.1", "127.0.0.1"),
    (b"127.1", "403 host.bad", None, None),
    (b"0x7f.1", "403 host.bad", None, None),
    (b"api..example.org", "403 host.bad", None, None),
    (b"ap%69.example.org", "403 host.bad", None, None),
    (b"api.example.org:0", "403 host.bad", None, None),
    (b"api.example.org,bank.example.org", "403 host.list", None, None),
    (b"alice@api.example.org", "403 host.userinfo", None, None),
]


@pytest.mark.parametrize(("host", "expected", "name", "authority"), HOSTS, ids=[h[0].decode() for h in HOSTS])
def test_ex_08_hosts_have_one_form(
    stage: TestStage, host: bytes, expected: str, name: str | None, authority: str | None
) -> None:
    """EX-08: lower case, without default port and trailing dot; a list, user information or another spelling denies."""
    answer = exchange(stage, message(b"/v1/rates", host=host))
    assert str(answer) == expected
    record = stage.record(answer)
    assert (record.get("host"), record.get("destination")) == (name, authority)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (message(b"/v1/rates", headers=[(b"host", MCP_HOST.encode())]), "403 host.list"),
        (message(b"https://bank.example.org/v1/rates"), "403 policy.none"),
        (message(b"https://api.example.org/v1/rates", host=b"bank.example.org"), "200"),
        (message(b"https://u:p@api.example.org/v1/rates", host=b"bank.example.org"), "200"),
        (message(b"/v1/rates", host=b""), ENVOY),
        (message(b"/v1/rates", host=b"\xc3\xa9.example.org"), ENVOY),
    ],
    ids=["two hosts", "absolute form", "absolute form wins", "user information", "no host", "not ASCII"],
)
def test_ex_08_the_host_judged_is_the_host_routed(stage: TestStage, data: bytes, expected: str) -> None:
    """EX-08: an absolute-form target overrides Host for us as for Envoy; two hosts are refused."""
    answer = exchange(stage, data)
    assert str(answer) == expected
    if answer.status == 200:
        assert dict(answer.json()["headers"])["host"] == stage.record(answer)["host"] == API_HOST


@pytest.mark.parametrize(
    "name", [b"x-forwarded-host", b"forwarded", b"x-host", b"x-original-host", b"x-envoy-original-dst-host"]
)
def test_ex_08_forwarded_headers_are_not_trusted(stage: TestStage, name: bytes) -> None:
    """EX-08: what a client says of the host elsewhere changes nothing."""
    value = b"host=api.example.org" if name == b"forwarded" else API_HOST.encode()
    answer = exchange(stage, message(b"/paste", b"POST", host=WEB_HOST.encode(), headers=[(name, value)]))
    assert str(answer) == "403 dest.not_allowed"
    assert stage.record(answer)["host"] == WEB_HOST
