"""Ways to more authority than was given, each of them closed."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.service.auth.v3 import external_auth_pb2

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.decide import PeerKind
from fastpath.journal import Journal
from fastpath.peer import VerifiedPeer
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.demo.ca import Authority
from tests.fix_calls import envoy_call
from tests.fix_live import (
    AGENT,
    BOOT,
    CHILD,
    HOUR,
    LEAD,
    NOW,
    OWNER,
    SECOND,
    ask,
    make_live,
    make_pdp,
    outcome,
    task,
)
from tests.unit.test_authority import ALLOW, SETTLED, UNKNOWN, approval, last, report, revoke

INT64_MAX = (1 << 63) - 1

# ------------------------------------------------------------ remembered answers


def test_a_remembered_allow_ends_with_its_task() -> None:
    """RT-01: a request id that is sent again gives nothing that the clock has taken, whatever the epoch."""
    live = make_live(task(), task("root", agent=OWNER, expires_unix_ns=NOW + 10 * SECOND))
    pdp = make_pdp(live)
    assert outcome(ask(pdp, request_id="r1")) == ALLOW
    live.put_clock(boot_ns=BOOT + HOUR, unix_ns=NOW)
    assert outcome(ask(pdp, request_id="r1"))[0] == "DENY"
    live.put_clock(boot_ns=BOOT, unix_ns=NOW + HOUR)
    assert outcome(ask(pdp, request_id="r1"))[0] == "DENY"


def test_a_remembered_allow_ends_with_its_approval() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    answer = ask(pdp, "delete")
    live.apply([approval(live, answer.evaluation_id, expires_unix_ns=NOW + SECOND)], 2)
    assert outcome(ask(pdp, "delete", request_id="r1")) == ALLOW
    assert outcome(ask(pdp, "delete", request_id="r1")) == ALLOW
    live.put_clock(boot_ns=BOOT + SECOND, unix_ns=NOW + SECOND)
    assert outcome(ask(pdp, "delete", request_id="r1"))[0] == "STEP_UP"


def test_a_remembered_allow_is_none_where_the_followed_state_is_stale() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    live.put_fresh(BOOT + SECOND)
    assert outcome(ask(pdp, request_id="r1")) == ALLOW
    live.put_clock(boot_ns=BOOT + 2 * SECOND, unix_ns=NOW)
    assert outcome(ask(pdp, request_id="r1"))[0] == "ERROR"


def test_a_call_that_was_given_back_is_paid_for_again() -> None:
    """Reported as not made, its approval is back, and the same request id is a new call."""
    live = make_live(task(calls=1))
    pdp = make_pdp(live)
    first = ask(pdp, request_id="r1")
    assert report(pdp, first.evaluation_id, executed=False) == SETTLED
    again = ask(pdp, request_id="r1")
    assert outcome(again) == ALLOW
    assert again.evaluation_id != first.evaluation_id
    assert live.task("t1")["calls"] == 0  # type: ignore[index]


# ------------------------------------------------------------ revocations


def test_a_host_that_is_revoked_is_so_on_every_port() -> None:
    live = make_live(task(), revoke("destination", "db.internal"))
    pdp = make_pdp(live)
    for destination in ("db.internal", "db.internal:8443", "https://db.internal:8443/x"):
        assert outcome(ask(pdp, destination=destination)) == ("DENY", "revoked.destination"), destination
    assert outcome(ask(pdp, destination="db.internal.example:8443")) == ALLOW


def test_a_revoked_credential_behind_envoy_is_the_callers() -> None:
    """Its serial is read from the certificate that Envoy passes on; one that cannot be read may be the revoked one."""
    leaf = x509.load_der_x509_certificate(Authority("example.org").issue(AGENT).chain_der[0])
    pem = leaf.public_bytes(Encoding.PEM).decode()
    serial = leaf.serial_number.to_bytes((leaf.serial_number.bit_length() + 7) // 8, "big").hex()
    live = make_live(task())
    pdp = make_pdp(live)
    envoy = VerifiedPeer(PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:02", bundle_generation=2)

    def answered(certificate: str) -> str:
        request = external_auth_pb2.CheckRequest.FromString(envoy_call(principal=AGENT))
        request.attributes.source.certificate = certificate
        code, reply = pdp.ext_authz(request.SerializeToString(), envoy)
        assert code == 0
        found: str = external_auth_pb2.CheckResponse.FromString(reply).dynamic_metadata["reason"]
        return found

    encoded = quote(pem, safe="")
    assert answered(encoded) == answered("nonsense") == "ok"
    live.apply([revoke("credential", "ff" * 8)], 2)
    assert answered(encoded) == answered("") == "ok"
    for broken in (
        "nonsense",
        "%",
        "%4",
        "%zz",
        encoded[:-1],
        encoded.replace("%0A", "", 1),
        quote(pem[:200], safe=""),
    ):
        assert answered(broken) == "identity.certificate", broken
    live.apply([revoke("credential", serial)], 3)
    assert answered(encoded) == answered(quote(pem)) == "revoked.credential"
    assert answered("") == "ok"


# Calls a sidecar with an encrypted certificate; a password would be asked for at the terminal, or else on these pipes.
ENCRYPTED = """
from urllib.parse import quote
from envoy.service.auth.v3 import external_auth_pb2
from fastpath.decide import PeerKind
from fastpath.peer import VerifiedPeer
from tests.fix_calls import envoy_call
from tests.fix_live import AGENT, make_live, make_pdp, task
from tests.unit.test_authority import revoke
pem = "-----BEGIN CERTIFICATE-----\\nProc-Type: 4,ENCRYPTED\\nDEK-Info: AES-256-CBC," + "0A" * 16
pem += "\\n\\n" + "AAAA" * 16 + "\\n-----END CERTIFICATE-----\\n"
request = external_auth_pb2.CheckRequest.FromString(envoy_call(principal=AGENT))
request.attributes.source.certificate = quote(pem, safe="")
envoy = VerifiedPeer(PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:02", bundle_generation=2)
code, reply = make_pdp(make_live(task(), revoke("credential", "ff"))).ext_authz(request.SerializeToString(), envoy)
print(external_auth_pb2.CheckResponse.FromString(reply).dynamic_metadata["reason"])
"""


def test_a_certificate_that_wants_a_password_is_none_and_nobody_is_asked_for_it() -> None:
    """OpenSSL would ask at the terminal, and the door would wait for an answer."""
    done = subprocess.run(
        [sys.executable, "-c", ENCRYPTED],
        input="secret\n",
        capture_output=True,
        text=True,
        start_new_session=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert (done.stdout, done.stderr) == ("identity.certificate\n", "")


def test_a_call_in_flight_is_judged_by_the_epoch_that_its_record_names() -> None:
    """While its body is hashed for approvals the first credential is revoked: allowed under the epoch before, or not.

    The hash takes long enough for the revocation to come first; where it does not, the call is allowed as it should.
    """
    leaf = x509.load_der_x509_certificate(Authority("example.org").issue(AGENT).chain_der[0])
    serial = leaf.serial_number.to_bytes((leaf.serial_number.bit_length() + 7) // 8, "big").hex()
    request = external_auth_pb2.CheckRequest.FromString(
        envoy_call(principal=AGENT, method="POST", body=bytes(48 << 20), headers={"content-type": "application/x-raw"})
    )
    request.attributes.source.certificate = quote(leaf.public_bytes(Encoding.PEM).decode(), safe="")
    message = request.SerializeToString()
    envoy = VerifiedPeer(PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:02", bundle_generation=2)
    live = make_live(task())
    pdp = make_pdp(live)
    denied = ask(pdp, "delete")
    # Any approval makes calls of its agent be hashed.
    live.apply([approval(live, denied.evaluation_id)], 2)
    began = threading.Event()

    def call() -> external_auth_pb2.CheckResponse:
        began.set()
        code, reply = pdp.ext_authz(message, envoy)
        assert code == 0
        return external_auth_pb2.CheckResponse.FromString(reply)

    answers = []
    with ThreadPoolExecutor(1) as threads:
        for epoch in range(3, 13, 2):
            began.clear()
            answer = threads.submit(call)
            began.wait()
            live.apply([revoke("credential", serial)], epoch)
            found = answer.result().dynamic_metadata
            live.apply([("lift", {"kind": "credential", "key": serial, "mode": "deny"})], epoch + 1)
            answers.append((found["reason"], found["epoch"] < epoch))
    assert set(answers) <= {("ok", True), ("revoked.credential", False)}


def test_an_address_that_is_mapped_into_ipv6_is_that_address() -> None:
    live = make_live(task(), revoke("destination", "127.0.0.1"))
    pdp = make_pdp(live)
    for destination in ("127.0.0.1", "[::ffff:127.0.0.1]", "https://[::FFFF:7f00:1]:8443/x"):
        assert outcome(ask(pdp, destination=destination)) == ("DENY", "revoked.destination"), destination
    assert outcome(ask(pdp, destination="[::fffe:7f00:1]")) == ALLOW


def test_a_clock_that_jumps_ends_no_revocation() -> None:
    """It ends when both clocks say so, however often somebody sets the one that can be set."""
    live = make_live(task(expires_unix_ns=NOW + 100 * HOUR))
    live.apply([("revoke", {**revoke("agent", AGENT)[1], "expires_unix_ns": NOW + HOUR})], 2)
    pdp = make_pdp(live)
    for boot_ns, unix_ns in ((BOOT + SECOND, NOW + 2 * HOUR), (BOOT + 2 * SECOND, NOW + SECOND)):
        live.put_clock(boot_ns=boot_ns, unix_ns=unix_ns)
        assert outcome(ask(pdp)) == ("DENY", "revoked.agent")
    live.put_clock(boot_ns=BOOT + 2 * HOUR, unix_ns=NOW + 2 * SECOND)
    assert outcome(ask(pdp)) == ALLOW
    live.apply([("revoke", {**revoke("agent", AGENT)[1], "expires_unix_ns": NOW + HOUR})], 3)
    live.put_clock(boot_ns=BOOT + 2 * HOUR + SECOND, unix_ns=NOW + 3 * SECOND)
    assert outcome(ask(pdp)) == ("DENY", "revoked.agent")  # by the wall clock it is not over


def test_a_shorter_revocation_takes_nothing_from_a_longer_one() -> None:
    live = make_live(task(), revoke("agent", AGENT))
    live.apply([("revoke", {**revoke("agent", AGENT)[1], "expires_unix_ns": NOW + SECOND})], 2)
    pdp = make_pdp(live)
    live.put_clock(boot_ns=BOOT + 2 * SECOND, unix_ns=NOW + 2 * SECOND)
    assert outcome(ask(pdp)) == ("DENY", "revoked.agent")
    live.apply([("lift", {"kind": "agent", "key": AGENT, "mode": "deny"})], 3)
    assert outcome(ask(pdp)) == ALLOW


def test_what_was_delegated_goes_with_the_class_or_trust_domain_of_who_delegated() -> None:
    elsewhere = "spiffe://partner.example/agent/lead"
    probe = "spiffe://example.org/agent/probe"
    for parent, kind, key in ((elsewhere, "trust_domain", "partner.example"), (probe, "class", "probe")):
        live = make_live(task("root", agent=parent), task("t1", agent=CHILD, parent="root", depth=1))
        pdp = make_pdp(live)
        assert outcome(ask(pdp, agent=CHILD)) == ALLOW
        live.apply([revoke(kind, key)], 2)
        assert outcome(ask(pdp, agent=CHILD)) == ("DENY", f"revoked.{kind}")


def test_the_id_of_a_task_is_nothing_to_another_agent() -> None:
    """RT-06: a task is bound to its agent's SVID; whoever knows its id learns not even that it is there."""
    pdp = make_pdp(make_live(task()))
    assert outcome(ask(pdp, task="t1")) == ALLOW
    for name in ("t1", "t2"):
        assert outcome(ask(pdp, agent=CHILD, task=name)) == ("DENY", "task.unknown")


# ------------------------------------------------------------ budgets


def test_what_comes_back_pays_first_for_what_was_spent_too_much() -> None:
    """A call that cost more than was left is paid by later refunds; no other call spends them."""
    live = make_live(task(cost=10))
    pdp = make_pdp(live)
    one, two = ask(pdp, cost=1).evaluation_id, ask(pdp, cost=9).evaluation_id
    report(pdp, one, executed=True, cost=8)
    report(pdp, two, executed=False)
    assert live.task("t1")["cost"] == 2  # type: ignore[index]
    three, four = ask(pdp, cost=1).evaluation_id, ask(pdp, cost=1).evaluation_id
    report(pdp, three, executed=True, cost=100)
    report(pdp, four, executed=False)
    assert live.task("t1")["cost"] == 0  # type: ignore[index]
    assert outcome(ask(pdp, cost=1)) == ("DENY", "task.budget")
    live.apply([("budget", {"id": "t1", "cost": 50})], 2)
    assert live.task("t1")["cost"] == 0  # type: ignore[index]


def test_costs_that_add_up_beyond_64_bits_stay_spent() -> None:
    live = make_live(task(cost=10))
    pdp = make_pdp(live)
    calls = [ask(pdp, cost=1).evaluation_id for _ in range(4)]
    for evaluation in calls:
        assert report(pdp, evaluation, executed=True, cost=INT64_MAX) == SETTLED
    left = live.task("t1")
    assert left is not None
    assert (left["cost"], left["spent_cost"]) == (0, INT64_MAX)


def test_an_agent_does_not_say_what_became_of_a_call_through_envoy() -> None:
    """Its id can be guessed: number after number. Only an Envoy settles it, and only those calls."""
    live = make_live(task(calls=5))
    pdp = make_pdp(live)
    own = ask(pdp)
    envoy = VerifiedPeer(PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:02", bundle_generation=2)
    code, _ = pdp.ext_authz(envoy_call(principal=AGENT), envoy)
    assert code == 0
    before = live.task("t1")
    guessed = f"{own.evaluation_id[:16]}{int(own.evaluation_id[16:], 16) + 1:016x}"
    assert report(pdp, guessed, executed=False) == UNKNOWN
    assert live.task("t1") == before
    for evaluation, result in ((own.evaluation_id, UNKNOWN), (guessed, SETTLED)):
        request = authz_pb2.ReportRequest(evaluation_id=evaluation, executed=False)
        assert authz_pb2.ReportResponse.FromString(pdp.report(request.SerializeToString(), envoy)[1]).result == result
    assert report(pdp, own.evaluation_id, executed=False) == SETTLED


def test_an_evaluation_id_that_is_none_names_no_step_up() -> None:
    live = make_live()
    for nonsense in ("0" * 16 + "-000000000000001", "0" * 16 + "+000000000000001", "é" * 16, "z" * 32):
        assert live.step_up(nonsense) is None


def test_what_is_granted_and_withdrawn_at_once_lifts_nothing() -> None:
    """Commands that were made durable together come into force together: the last word counts, and no row is left."""
    live = make_live(task())
    pdp = make_pdp(live)
    granted = approval(live, ask(pdp, "delete").evaluation_id)
    withdrawn = "approval", {**granted[1], "state": "cancelled"}
    live.apply([granted, withdrawn], 2)
    assert live.counts()["approvals"] == 0
    assert outcome(ask(pdp, "delete"))[0] == "STEP_UP"
    live.apply([granted, withdrawn, granted], 3)
    assert outcome(ask(pdp, "delete")) == ALLOW
    live.apply([withdrawn, granted, withdrawn], 4)
    assert live.counts()["approvals"] == 0


def test_a_task_that_is_forgotten_and_put_at_once_is_there() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    live.apply([("forget", {"id": "t1"}), task()], 2)
    assert outcome(ask(pdp)) == ALLOW
    assert [row[0] for row in live.snapshot()[0]] == ["t1"]
    live.apply([task(), ("forget", {"id": "t1"})], 3)
    assert outcome(ask(pdp)) == ("DENY", "task.none")


# ------------------------------------------------------------ budgets of bytes and debts

PEP = VerifiedPeer(PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:02", bundle_generation=2)
CHUNKED = {"transfer-encoding": "chunked"}


def through_envoy(pdp: Pdp, **call: Any) -> tuple[str, str, str]:
    """(outcome, reason, evaluation id) of an HTTP call by AGENT."""
    code, reply = pdp.ext_authz(envoy_call(**{"principal": AGENT, "method": "POST", "path": "/up", **call}), PEP)
    assert code == 0, reply
    said = external_auth_pb2.CheckResponse.FromString(reply).dynamic_metadata
    return said["outcome"], said["reason"], said["decision_id"]


def sent(pdp: Pdp, evaluation: str, bytes_out: int) -> None:
    """Envoy's access log of an allowed call."""
    report = authz_pb2.ReportRequest(evaluation_id=evaluation, executed=True, bytes_out=bytes_out)
    code, reply = pdp.report(report.SerializeToString(), PEP)
    assert (code, authz_pb2.ReportResponse.FromString(reply).result) == (0, SETTLED)


def bytes_left(live: Live) -> int:
    row = live.task("t1")
    assert row is not None
    left: int = row["bytes"]
    return left


def test_a_call_of_unknown_length_takes_all_bytes_that_are_left_until_it_is_settled() -> None:
    """A chunked body could be of any length: it may not pass where a body of a known length would not."""
    live = make_live(task(bytes=1000))
    pdp = make_pdp(live)
    assert through_envoy(pdp, headers={"content-length": "2000"})[:2] == ("DENY", "task.budget")
    outcome_, _, first = through_envoy(pdp, headers=CHUNKED)
    assert (outcome_, bytes_left(live)) == ("ALLOW", 0)
    assert through_envoy(pdp, headers=CHUNKED)[:2] == ("DENY", "task.budget")
    assert through_envoy(pdp, headers={"content-length": "1"})[:2] == ("DENY", "task.budget")
    assert through_envoy(pdp, method="GET")[0] == "ALLOW"
    sent(pdp, first, 300)
    assert bytes_left(live) == 700
    assert through_envoy(pdp, headers=CHUNKED)[0] == "ALLOW"
    assert bytes_left(live) == 0


@pytest.mark.parametrize("size", [0, 37])
@pytest.mark.parametrize("framing", [{"headers": CHUNKED}, {"protocol": "HTTP/2"}], ids=["chunked", "HTTP/2"])
def test_what_has_arrived_of_a_body_is_not_its_length(framing: dict[str, Any], size: int) -> None:
    """An Envoy that does not buffer says how many bytes it has received so far."""
    live = make_live(task(bytes=1000))
    pdp = make_pdp(live)
    assert through_envoy(pdp, size=size, **framing)[0] == "ALLOW"
    assert bytes_left(live) == 0
    assert through_envoy(pdp, size=size, **framing)[:2] == ("DENY", "task.budget")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_method_that_by_custom_has_no_body_is_of_unknown_length_all_the_same(method: str) -> None:
    """Over HTTP/2 nothing but a content-length says that none comes; over HTTP/1 its absence does."""
    live = make_live(task(bytes=1000))
    pdp = make_pdp(live)
    call = {"method": method, "protocol": "HTTP/2"}
    assert through_envoy(pdp, method=method)[0] == "ALLOW"
    assert through_envoy(pdp, headers={"content-length": "0"}, **call)[0] == "ALLOW"
    assert bytes_left(live) == 1000
    _, _, first = through_envoy(pdp, **call)
    assert bytes_left(live) == 0
    assert through_envoy(pdp, **call)[:2] == ("DENY", "task.budget")
    sent(pdp, first, 10)
    assert bytes_left(live) == 990


def test_a_call_of_unknown_length_costs_an_unlimited_task_nothing() -> None:
    live = make_live(task(calls=5))
    assert through_envoy(make_pdp(live), headers=CHUNKED)[0] == "ALLOW"
    assert bytes_left(live) == -1


def test_a_task_that_owes_bytes_allows_nothing() -> None:
    """More was sent than was left: until that is paid, no call goes, however small."""
    live = make_live(task(bytes=1000))
    pdp = make_pdp(live)
    sent(pdp, through_envoy(pdp, headers=CHUNKED)[2], 10_000_000)
    assert through_envoy(pdp, method="GET")[:2] == ("DENY", "task.budget")
    live.apply([("budget", {"id": "t1", "bytes": 10_000_000})], 2)
    assert bytes_left(live) == 1000
    assert through_envoy(pdp, method="GET")[0] == "ALLOW"


def test_a_task_that_owes_cost_allows_nothing() -> None:
    """A call that names no cost and reports a large one is the last."""
    live = make_live(task(cost=10))
    pdp = make_pdp(live)
    assert report(pdp, ask(pdp, cost=0).evaluation_id, executed=True, cost=1000) == SETTLED
    assert outcome(ask(pdp, cost=0)) == ("DENY", "task.budget")


# ------------------------------------------------------------ owners above


def below_lead(**root: Any) -> Live:
    """A task of LEAD, whom bob answers for, and what LEAD delegated to CHILD, whom ann answers for."""
    return make_live(task("root", agent=LEAD, **root), task("t1", agent=CHILD, parent="root", depth=1))


def test_what_was_delegated_ends_with_the_owner_of_who_delegated(tmp_path: Path) -> None:
    """The parent may do nothing, so the child may not either; the record names whose owner it was."""
    live = below_lead()
    pdp = make_pdp(live, Journal(str(tmp_path)))
    assert outcome(ask(pdp, agent=CHILD)) == ALLOW
    live.apply([("owner", {"id": "bob", "active": False})], 2)
    assert outcome(ask(pdp, agent=CHILD)) == ("DENY", "owner.inactive")
    assert last(tmp_path).remediation == f"owner of {LEAD}"
    live.apply([("owner", {"id": "bob", "active": True}), revoke("owner", "bob")], 3)
    assert outcome(ask(pdp, agent=CHILD)) == ("DENY", "revoked.owner")
    live.apply([("lift", {"kind": "owner", "key": "bob", "mode": "deny"})], 4)
    assert outcome(ask(pdp, agent=CHILD)) == ALLOW


def test_what_was_delegated_ends_with_the_owner_of_the_task_above() -> None:
    live = below_lead(owner="bob")
    pdp = make_pdp(live)
    live.apply([("owner", {"id": "bob", "active": False})], 2)
    assert outcome(ask(pdp, agent=CHILD)) == ("DENY", "owner.inactive")


def test_nothing_is_delegated_by_an_agent_that_nobody_answers_for() -> None:
    for parent in ("spiffe://example.org/agent/orphan", "spiffe://example.org/agent/unknown"):
        live = make_live(task("root", agent=parent), task("t1", agent=CHILD, parent="root", depth=1))
        assert outcome(ask(make_pdp(live), agent=CHILD)) == ("DENY", "owner.missing")


# ------------------------------------------------------------ remembered answers and changes without an epoch


def test_a_remembered_allow_ends_with_a_revocation_that_no_disk_took() -> None:
    """It is in force in memory under the epoch of before; the same request id must feel it as a new one does."""
    live = make_live(task())
    pdp = make_pdp(live)
    assert outcome(ask(pdp, request_id="r1")) == ALLOW
    live.apply([revoke("agent", AGENT)], live.epoch)
    assert outcome(ask(pdp, request_id="r1")) == ("DENY", "revoked.agent")


def test_a_remembered_allow_is_of_the_view_that_it_was_made_by() -> None:
    pdp = make_pdp(make_live(task()))
    assert outcome(ask(pdp, request_id="r1")) == ALLOW
    pdp.put_authority(make_live())
    assert outcome(ask(pdp, request_id="r1")) == ("DENY", "task.none")


# ------------------------------------------------------------ work under the lock


def in_pieces(live: Live, changes: list[tuple[str, dict[str, Any]]]) -> None:
    for at in range(0, len(changes), 100):
        live.apply(changes[at : at + 100], 2)


def test_the_end_of_many_tasks_of_one_agent_is_as_much_work_as_they_are() -> None:
    """Oldest first, as a tree ends: each is taken out at once, and no call waits for more than a few of them."""
    live = make_live()
    in_pieces(live, [task(f"t{n:05d}") for n in range(3000)])
    before = live.work()["steps"]
    live.apply([("state", {"id": f"t{n:05d}", "state": "completed"}) for n in range(3000)], 3)
    assert live.work()["steps"] - before == 3000
    assert live.work()["held_most"] <= 256
    assert live.open_tasks(AGENT) == 0


def test_open_tasks_are_counted_and_found_in_any_order() -> None:
    live = make_live(*(task(f"t{n}") for n in range(5)))
    pdp = make_pdp(live)
    for n, left in ((2, 4), (4, 3), (0, 2), (3, 1)):
        live.apply([("state", {"id": f"t{n}", "state": "suspended"})] * 2, 2)
        assert live.open_tasks(AGENT) == left
    assert outcome(ask(pdp)) == ALLOW
    live.apply([("state", {"id": "t3", "state": "open"}), ("state", {"id": "t1", "state": "completed"})], 3)
    assert (live.open_tasks(AGENT), live.open_tasks(CHILD)) == (1, 0)
    assert outcome(ask(pdp)) == ALLOW
    live.apply([("forget", {"id": "t3"})], 4)
    assert live.open_tasks(AGENT) == 0


@pytest.mark.parametrize(("kind", "ours"), [("class", "worker"), ("server", "files")])
def test_a_call_costs_the_same_however_many_groups_are_revoked(kind: str, ours: str) -> None:
    """What stands above a call's uids is looked up; nobody walks through all classes or servers that are revoked."""

    def steps(revoked: int) -> int:
        live = make_live(task())
        in_pieces(live, [revoke(kind, f"other{n}") for n in range(revoked)])
        pdp = make_pdp(live)
        before = live.work()["steps"]
        assert outcome(ask(pdp)) == ALLOW
        walked: int = live.work()["steps"] - before
        live.apply([revoke(kind, ours)], 3)
        assert outcome(ask(pdp)) == ("DENY", f"revoked.{kind}")
        return walked

    assert steps(5000) == steps(1) <= 8
