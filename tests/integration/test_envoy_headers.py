"""EX-09 to EX-13 through a real Envoy: methods, gRPC paths, header values in both forms that Envoy sends them in."""

import grpc
import pytest

from sidecar.demo.calls import TIMEOUT_S
from tests.fix_raw import exchange, message
from tests.fix_stage import GRPC_HOST, TestStage, agent_channel

pytestmark = pytest.mark.envoy

ROLE = b"x-role"
ENVOY, TOO_MANY = "400", "431"

# ---------------------------------------------------------------- methods

METHODS = [
    # method, answer, action in the record; by default Envoy knows the registered ones only
    ("raw", b"GET", "200", "read"),
    ("raw", b"POST", "403 policy.none", "write"),
    ("raw", b"DELETE", "403 policy.none", "delete"),
    ("raw", b"get", ENVOY, ""),
    ("raw", b"FOO", ENVOY, ""),
    ("lenient", b"get", "403 policy.none", "execute"),
    ("lenient", b"GETT", "403 policy.none", "execute"),
    ("lenient", b"FOO", "403 policy.none", "execute"),
]


@pytest.mark.parametrize(("listener", "method", "expected", "action"), METHODS)
def test_ex_09_a_method_is_an_exact_token(
    stage: TestStage, listener: str, method: bytes, expected: str, action: str
) -> None:
    """EX-09: `get` is not GET, and what nobody knows is `execute`, the worst class."""
    answer = exchange(stage, message(b"/v1/rates", method), listener=listener)
    assert str(answer) == expected
    if action:
        record = stage.record(answer)
        assert (record["method"], record["action"]) == (method.decode(), action)


@pytest.mark.parametrize("name", [b"x-http-method-override", b"x-http-method", b"x-method-override"])
def test_ex_09_method_overrides_are_ignored(stage: TestStage, name: bytes) -> None:
    """EX-09: a POST stays a POST for us, as it does for Envoy."""
    assert str(exchange(stage, message(b"/v1/rates", b"POST", headers=[(name, b"GET")]))) == "403 policy.none"
    answer = exchange(stage, message(b"/v1/rates", headers=[(name, b"DELETE")]))
    assert (answer.status, stage.record(answer)["action"]) == (200, "read")


# ---------------------------------------------------------------- gRPC

GRPC_PATHS = [
    # path, gRPC status, reason in its message
    ("/shop.Prices/GetPrice", "OK", ""),
    ("/shop.Prices/GetSecret", "PERMISSION_DENIED", "grpc.secret"),
    ("//shop.Prices/GetSecret", "PERMISSION_DENIED", "path.not_canonical"),
    ("/shop.Prices/GetSecret/", "PERMISSION_DENIED", "path.not_grpc"),
    ("/shop.Prices/GetSecret?x", "PERMISSION_DENIED", "path.not_grpc"),
    ("/shop.Prices/Get%53ecret", "PERMISSION_DENIED", "path.not_canonical"),
    ("/shop.Prices/getsecret", "PERMISSION_DENIED", "dest.not_allowed"),
    ("/shop.Prices", "PERMISSION_DENIED", "path.not_grpc"),
    ("/", "PERMISSION_DENIED", "path.not_grpc"),
    ("shop.Prices/GetSecret", "UNAVAILABLE", ""),
]


@pytest.mark.parametrize(("path", "status", "reason"), GRPC_PATHS)
def test_ex_10_a_grpc_path_is_service_and_method(stage: TestStage, path: str, status: str, reason: str) -> None:
    """EX-10, H2-20: plain `/service/method` in exact letters; Envoy itself drops a path without its slash.

    The caller gets PERMISSION_DENIED with a short line of ASCII, not a body in another format.
    """
    with agent_channel(stage, "alice", "raw", GRPC_HOST) as channel:
        try:
            assert channel.unary_unary(path)(b"", timeout=TIMEOUT_S) == path.encode()
            seen, words = "OK", ""
        except grpc.RpcError as error:
            seen, words = error.code().name, error.details()
    assert seen == status
    if reason:
        word, said, *more = words.split(" ")
        assert (word, said, more[0], len(more)) == ("denied:", reason, "(evaluation", 2)


# ---------------------------------------------------------------- values

# path, header lines, answer with encode_raw_headers, answer with joined headers
VALUES = [
    ("/role", [(ROLE, b"admin")], "200", "200"),
    ("/role", [(b"X-ROLE", b"admin")], "200", "200"),
    ("/role", [], "403 policy.none", "403 policy.none"),
    ("/role", [(ROLE, b"")], "403 policy.none", "403 policy.none"),
    ("/role", [(b"x_role", b"admin")], "403 policy.none", "403 policy.none"),
    # One line `user,admin` is one value in the raw form; joined, nobody can tell it from two.
    ("/role", [(ROLE, b"user,admin")], "403 policy.none", "403 request.ambiguous.x-role"),
    ("/role", [(ROLE, b"user"), (ROLE, b"admin")], "403 request.ambiguous.x-role", "403 request.ambiguous.x-role"),
    ("/role", [(ROLE, b"admin"), (ROLE, b"admin")], "403 request.ambiguous.x-role", "403 request.ambiguous.x-role"),
    ("/roles", [(ROLE, b"user"), (ROLE, b"admin")], "200", "200"),
    ("/roles", [(ROLE, b"user, admin")], "200", "200"),
    ("/roles", [(ROLE, b"admin"), (b"X-Role", b"intern")], "403 role.intern", "403 role.intern"),
    ("/roles", [(ROLE, b"admin,intern")], "403 role.intern", "403 role.intern"),
    ("/roles", [(ROLE, b",,")], "403 policy.none", "403 policy.none"),
    ("/roles", [(b"x_role", b"admin")], "403 policy.none", "403 policy.none"),
]


@pytest.mark.parametrize(("path", "lines", "raw", "joined"), VALUES)
@pytest.mark.parametrize("listener", ["raw", "joined"])
def test_ex_11_repeated_headers_are_a_set_or_ambiguous(
    stage: TestStage, path: str, lines: list[tuple[bytes, bytes]], raw: str, joined: str, listener: str
) -> None:
    """EX-11, EX-12: a set has every value; an attribute that wants one refuses two. `_` is not `-`, case is nothing."""
    answer = exchange(stage, message(path.encode(), headers=lines), listener=listener)
    assert str(answer) == (raw if listener == "raw" else joined)


@pytest.mark.parametrize(
    ("listener", "path", "count", "expected"),
    [
        ("raw", b"/roles", 1000, TOO_MANY),
        ("lenient", b"/role", 1000, "403 request.ambiguous.x-role"),
        ("lenient", b"/roles", 80, "200"),
        ("lenient", b"/roles", 1000, "403 request.too_long.roles"),
        ("lenient", b"/roles", 1100, "403 headers.too_many"),
    ],
)
def test_ex_11_a_thousand_values_are_refused(
    stage: TestStage, listener: str, path: bytes, count: int, expected: str
) -> None:
    """EX-11: Envoy's own limit holds first; where an operator raised it, ours does."""
    lines = [(ROLE, b"admin")] + [(ROLE, b"role%d" % i) for i in range(count - 1)]
    assert str(exchange(stage, message(path, headers=lines), listener=listener)) == expected


@pytest.mark.parametrize("name", [b":authority", b":path", b":method"])
def test_ex_12_a_pseudo_header_cannot_be_sent_as_a_header(stage: TestStage, name: bytes) -> None:
    """EX-12: Envoy refuses it; ours come from the typed fields alone."""
    assert exchange(stage, message(b"/v1/rates", headers=[(name, b"x")])).status == 400


@pytest.mark.parametrize("name", [b"x-envoy-original-path", b"x-original-url", b"x-rewrite-url"])
def test_ex_12_a_header_does_not_name_the_path(stage: TestStage, name: bytes) -> None:
    """EX-12: the decision is on the path of the request."""
    assert str(exchange(stage, message(b"/admin", headers=[(name, b"/v1/rates")]))) == "403 admin.closed"


@pytest.mark.parametrize(
    ("listener", "value", "expected", "sanitised"),
    [
        ("raw", b"!!admin", "200", False),
        ("raw", b"\xff\xffadmin", "403 policy.none", True),
        ("raw", b"admin\xff", "403 policy.none", True),
        ("joined", b"\xff\xffadmin", "403 policy.none", True),
        # Nothing tells a `!` of the client from one that Envoy put in place of a byte.
        ("joined", b"!!admin", "403 policy.none", True),
    ],
)
def test_ex_13_an_altered_value_equals_no_constant(
    stage: TestStage, listener: str, value: bytes, expected: str, sanitised: bool
) -> None:
    """EX-13: the policy allows the role `!!admin`, which bytes that are not UTF-8 turn into and never are."""
    answer = exchange(stage, message(b"/role", headers=[(ROLE, value)]), listener=listener)
    assert str(answer) == expected
    assert stage.record(answer).get("sanitised", False) is sanitised


@pytest.mark.parametrize("value", [b"ad\x00min", b"ad\x01min", b"ad\x7fmin"])
def test_ex_13_control_bytes_stop_at_envoy(stage: TestStage, value: bytes) -> None:
    """EX-13: a header value with control bytes is no HTTP."""
    assert exchange(stage, message(b"/role", headers=[(ROLE, value)])).status == 400
