"""One call from bytes to bytes: who is refused before a byte is parsed, what is decided once, and what ERROR means."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf import struct_pb2

from fastpath.call import Pdp
from fastpath.decide import PeerKind
from fastpath.journal import Journal, read_frames
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.config import ARENA_MIN, HEADERS_MAX
from sidecar.policy.compile import compile_image
from tests.fix_calls import AGENT, envoy_call
from tests.fix_mapping import mapping_of

OK, INVALID_ARGUMENT, UNAVAILABLE, UNAUTHENTICATED = 0, 3, 14, 16
POLICIES = f"""
@id("reader") permit (principal == Agent::"{AGENT}", action == Action::"read", resource);
@id("no-secrets") @reason("secret") forbid (principal, action, resource == Tool::"files/secret");
"""
BATCH_MAX = 64
UNHURRIED_MS = 60_000  # a busy machine makes no call late; lateness has a test of its own


def generation(number: int, policies: str = POLICIES) -> Generation:
    return Generation.from_bytes(compile_image(policies).image, generation=number)


def make_pdp(journal: Journal | None = None, **options: int) -> Pdp:
    pdp = Pdp(journal=journal, **{"budget_ms": UNHURRIED_MS} | options)
    pdp.put_rules(generation(1), mapping_of({"trust_domains": ["example.org"]}))
    pdp.put_state(epoch=0, bundle_generation=2, not_ready="")
    return pdp


@pytest.fixture
def pdp() -> Pdp:
    return make_pdp()


def agent(**more: object) -> VerifiedPeer:
    return VerifiedPeer(PeerKind.PEER_AGENT, AGENT, "x509-svid:01", **{"bundle_generation": 2, **more})


def proxy(**more: object) -> VerifiedPeer:
    return VerifiedPeer(
        PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:02", **{"bundle_generation": 2, **more}
    )


def question(tool: str = "files/open", **more: object) -> authz_pb2.CheckRequest:
    return authz_pb2.CheckRequest(action="read", resource=authz_pb2.EntityUid(type="Tool", id=tool), **more)


def ask(pdp: Pdp, request: authz_pb2.CheckRequest, peer: VerifiedPeer | None = None) -> authz_pb2.CheckResponse:
    code, reply = pdp.check(request.SerializeToString(), peer or agent())
    assert code == OK, reply
    return authz_pb2.CheckResponse.FromString(reply)


def decisions(pdp: Pdp) -> int:
    return sum(pdp.counters()["decisions"].values())  # type: ignore[attr-defined]


DOORS: dict[str, Callable[[Pdp, VerifiedPeer], tuple[int, bytes]]] = {
    "ext_authz": lambda pdp, peer: pdp.ext_authz(envoy_call(), peer),
    "check": lambda pdp, peer: pdp.check(question().SerializeToString(), peer),
    "batch": lambda pdp, peer: pdp.batch_check(
        authz_pb2.BatchCheckRequest(items=[question()]).SerializeToString(), peer
    ),
}


# ------------------------------------------------------------ who calls


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        ({"refusal": "identity.chain"}, b"identity.chain"),
        ({"not_after_s": 1}, b"identity.expired"),
        ({"bundle_generation": 1}, b"identity.bundle_changed"),
    ],
)
def test_a_peer_that_does_not_hold_now_is_unauthenticated_at_every_door(
    pdp: Pdp, door: str, make: dict[str, object], reason: bytes
) -> None:
    """ID-03, ID-20: identity is judged at every call, whatever the connection was."""
    peer = proxy(**make) if door == "ext_authz" else agent(**make)
    assert DOORS[door](pdp, peer) == (UNAUTHENTICATED, reason)


def test_an_unauthenticated_message_is_not_parsed(pdp: Pdp) -> None:
    """A refused peer's rubbish is refused for the peer: nothing counts as malformed."""
    assert pdp.check(b"\xff\xff", agent(refusal="identity.chain")) == (UNAUTHENTICATED, b"identity.chain")
    assert pdp.counters()["malformed"] == 0


def test_only_a_pep_may_assert_a_principal(pdp: Pdp) -> None:
    """EX-14: an agent's genuine SVID at Envoy's door is denied, whoever it names."""
    code, reply = pdp.ext_authz(envoy_call(), agent())
    answer = external_auth_pb2.CheckResponse.FromString(reply)
    assert (code, answer.status.code) == (OK, 7)
    assert answer.dynamic_metadata["reason"] == "identity.not_a_pep"


# ------------------------------------------------------------ what the sidecar's own state does


@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_allowed_before_the_sidecar_is_ready(door: str) -> None:
    """EX-02: without a generation, without a mapping or while not ready every door answers ERROR."""
    starting = Pdp(journal=None)
    no_generation, not_ready = make_pdp(), make_pdp()
    no_generation.put_generation(None)
    not_ready.put_state(epoch=0, bundle_generation=2, not_ready="not_ready.svid")
    for pdp in (starting, no_generation, not_ready):
        peer = proxy() if door == "ext_authz" else agent()
        starting.put_state(epoch=0, bundle_generation=2, not_ready="not_ready.starting")
        code, reply = DOORS[door](pdp, peer)
        if door == "ext_authz":
            answer = external_auth_pb2.CheckResponse.FromString(reply)
            assert (code, answer.status.code, answer.WhichOneof("http_response")) == (OK, 14, "error_response")
        elif door == "batch":
            (item,) = authz_pb2.BatchCheckResponse.FromString(reply).items
            assert item.outcome == authz_pb2.OUTCOME_ERROR
        else:
            assert code == UNAVAILABLE
            assert reply.startswith(b"not_ready.")


def test_a_decision_after_its_budget_is_an_error(pdp: Pdp) -> None:
    """EX-16: too late is the sidecar's fault: ERROR `late`, never the ALLOW that was found."""
    late = make_pdp(budget_ms=0)
    assert late.check(question().SerializeToString(), agent()) == (UNAVAILABLE, b"late")
    assert ask(pdp, question()).outcome == authz_pb2.OUTCOME_ALLOW


def test_a_call_that_needs_more_memory_than_its_arena_is_an_error() -> None:
    """SY-03: a full arena ends in ERROR, at whatever size it fills."""
    request = envoy_call(path="/" + "a" * 3000)
    for size in range(512, 40_000, 997):
        code, reply = make_pdp(arena_bytes=size).ext_authz(request, proxy())
        allowed = code == OK and external_auth_pb2.CheckResponse.FromString(reply).status.code == 0
        assert not allowed or size > 3000
        assert reply


def test_the_smallest_arena_holds_the_largest_set_of_headers() -> None:
    """What `limits` admit fits `limits.arena_bytes`: most lines, long values, longest path; one line more is DENY."""
    pdp = make_pdp(arena_bytes=ARENA_MIN, headers_max=HEADERS_MAX, path_bytes_max=64 * 1024, budget_ms=5000)
    for lines, wanted in ((HEADERS_MAX, (0, "ok")), (HEADERS_MAX + 1, (7, "headers.too_many"))):
        headers = {f"h{i:05}": "v" * 200 for i in range(lines)}
        _, reply = pdp.ext_authz(envoy_call(headers=headers, path="/" + "a" * 60_000), proxy())
        answer = external_auth_pb2.CheckResponse.FromString(reply)
        assert (answer.status.code, answer.dynamic_metadata["reason"]) == wanted


def test_a_call_that_fills_the_arena_is_recorded(tmp_path: Path) -> None:
    """I4: whoever sizes a call so that the arena is full to the brim gets no answer that leaves no record."""
    answers = 0
    with Journal(tmp_path / "journal", helper=False) as journal:
        pdp = make_pdp(journal, arena_bytes=128 * 1024)
        for size in range(500, 128 * 1024, 2000):
            arguments = struct_pb2.Struct(fields={"text": struct_pb2.Value(string_value="x" * size)})
            pdp.check(question(arguments=arguments).SerializeToString(), agent())
            pdp.ext_authz(envoy_call(headers={"x": "y" * (size // 64)}), proxy())
            answers += 2
    assert len(records(tmp_path / "journal")) == answers


def test_a_full_journal_answers_error_and_allows_nothing(tmp_path: Path) -> None:
    """What cannot be recorded is not allowed: `journal.full`, and the record of every answer given is there."""
    journal = Journal(tmp_path / "journal", segment_bytes=64 * 1024, cap_bytes=128 * 1024, helper=False)
    pdp = make_pdp(journal)
    answered = 0
    while (answer := pdp.check(question().SerializeToString(), agent()))[0] == OK:
        answered += 1
        assert answered < 10_000
    assert answer == (UNAVAILABLE, b"journal.full")
    journal.close()
    assert len(records(tmp_path / "journal")) == answered


def records(directory: Path) -> list[decisions_pb2.Decision]:
    found = []
    for path in sorted(directory.glob("*.seg")):
        found += [decisions_pb2.Record.FromString(payload).decision for _, payload in read_frames(path)]
    return found


# ------------------------------------------------------------ bytes that are none


@pytest.mark.parametrize("door", ["ext_authz", "check", "explain"])
def test_a_malformed_message_is_invalid_and_recorded(tmp_path: Path, door: str) -> None:
    """H2-28: INVALID_ARGUMENT at every door; a decision door records DENY `request.malformed`."""
    with Journal(tmp_path / "journal", helper=False) as journal:
        pdp = make_pdp(journal)
        peer = proxy() if door == "ext_authz" else agent()
        assert getattr(pdp, door)(b"\x0a\xff", peer) == (INVALID_ARGUMENT, b"request.malformed")
    reasons = [record.reason for record in records(tmp_path / "journal")]
    assert reasons == ([] if door == "explain" else ["request.malformed"])


# ------------------------------------------------------------ a repeated request id


def test_a_repeated_request_gets_the_same_answer_and_counts_once(pdp: Pdp) -> None:
    """Same caller, id and content: the very same bytes, and one decision."""
    request = question(request_id="r-1").SerializeToString()
    first, second = pdp.check(request, agent()), pdp.check(request, agent())
    assert first == second
    assert decisions(pdp) == 1
    assert pdp.counters()["replayed"] == 1


def test_a_request_id_with_another_content_is_denied(pdp: Pdp) -> None:
    """An id stands for one question: reusing it must not fetch another question's ALLOW."""
    assert ask(pdp, question(request_id="r-1")).outcome == authz_pb2.OUTCOME_ALLOW
    other = ask(pdp, question("files/secret", request_id="r-1"))
    assert (other.outcome, other.reason) == (authz_pb2.OUTCOME_DENY, "request.id_reused")


def test_request_ids_of_two_callers_are_two_ids(pdp: Pdp) -> None:
    """One agent cannot read or spoil the answer of another by guessing its ids."""
    assert ask(pdp, question(request_id="r-1")).outcome == authz_pb2.OUTCOME_ALLOW
    other = VerifiedPeer(PeerKind.PEER_AGENT, "spiffe://example.org/agent/other", "x", bundle_generation=2)
    assert ask(pdp, question(request_id="r-1"), other).reason == "policy.none"


@pytest.mark.parametrize("change", ["generation", "epoch", "mapping", "bundles"])
def test_a_repeated_request_is_decided_anew_when_authority_changed(pdp: Pdp, change: str) -> None:
    """A revoked agent is denied at its next call, retried or not: an old ALLOW ends with what decided it."""
    first = ask(pdp, question(request_id="r-1"))
    peer = agent()
    if change == "generation":
        pdp.put_generation(generation(2, '@id("none") permit (principal, action, resource) when { false };'))
    elif change == "epoch":
        pdp.put_state(epoch=1, bundle_generation=2, not_ready="")
    elif change == "mapping":
        pdp.put_mapping(mapping_of({"trust_domains": ["example.org"]}))
    else:
        pdp.put_state(epoch=0, bundle_generation=3, not_ready="")
        peer = agent(bundle_generation=3)
    second = ask(pdp, question(request_id="r-1"), peer)
    assert second.evaluation_id != first.evaluation_id
    assert second.outcome == (authz_pb2.OUTCOME_DENY if change == "generation" else authz_pb2.OUTCOME_ALLOW)


def test_an_error_is_not_remembered(pdp: Pdp) -> None:
    """A retry after the sidecar's own fault is decided, not answered with the fault."""
    pdp.put_state(epoch=0, bundle_generation=2, not_ready="not_ready.svid")
    request = question(request_id="r-1").SerializeToString()
    assert pdp.check(request, agent())[0] == UNAVAILABLE
    pdp.put_state(epoch=0, bundle_generation=2, not_ready="")
    assert pdp.check(request, agent())[0] == OK


def test_an_answer_from_before_is_not_given_while_not_ready(pdp: Pdp) -> None:
    """Not ready denies all: an ALLOW of a moment ago is no way around a lost SVID or a full journal."""
    request = question(request_id="r-1").SerializeToString()
    assert pdp.check(request, agent())[0] == OK
    pdp.put_state(epoch=0, bundle_generation=2, not_ready="not_ready.svid")
    assert pdp.check(request, agent()) == (UNAVAILABLE, b"not_ready.svid")
    assert batch(pdp, [question(request_id="r-1")])[1][0].outcome == authz_pb2.OUTCOME_ERROR


def test_an_answer_holds_for_the_credential_that_asked(pdp: Pdp) -> None:
    """Policies read cred.*: what an SVID was allowed is decided anew for the same agent's Unix socket."""
    pdp.put_generation(generation(2, CREDENTIALS))
    on_socket = VerifiedPeer(PeerKind.PEER_AGENT, AGENT, "unix:0")
    peers = [agent(not_after_s=int(time.time()) + 3000), on_socket]
    found = [list(ask(pdp, question(request_id="r-1"), peer).policy_ids) for peer in peers]
    assert found == [["x509"], ["socket"]]


def test_more_ids_than_can_be_remembered_are_only_decided_again(pdp: Pdp) -> None:
    """The memory of answers is bounded; forgetting one costs a decision and nothing else."""
    for number in range(5000):
        assert ask(pdp, question(request_id=f"r-{number}")).outcome == authz_pb2.OUTCOME_ALLOW
    assert ask(pdp, question(request_id="r-0")).outcome == authz_pb2.OUTCOME_ALLOW


# ------------------------------------------------------------ what a caller at our door proved

CREDENTIALS = """
@id("x509") permit (principal, action, resource)
when { context.cred.kind == "x509-svid" && context.cred.bound && context.cred.ttl_s > 0 && context.cred.ttl_s < 3601 };
@id("socket") permit (principal, action, resource)
when { context.cred.kind == "unix" && !context.cred.bound && context.cred.ttl_s == 0 };
"""


def test_credential_columns_say_how_the_caller_was_known(pdp: Pdp) -> None:
    """cred.*: an SVID over mTLS is bound and ends; a Unix socket is neither."""
    pdp.put_clock(10**9, 1_700_000_000 * 10**9, 7, 0)
    pdp.put_generation(generation(2, CREDENTIALS))
    over_tls = agent(not_after_s=1_700_003_600)
    on_socket = VerifiedPeer(PeerKind.PEER_AGENT, AGENT, "unix:0")
    assert list(ask(pdp, question(), over_tls).policy_ids) == ["x509"]
    assert list(ask(pdp, question(), on_socket).policy_ids) == ["socket"]


def test_every_record_names_the_agents_owner(tmp_path: Path) -> None:
    """AIMS audit minimum: who answers for the agent stands in the record, from the store while there is no task."""
    owner = {"__entity": {"type": "Person", "id": "ana"}}
    entities = [
        {"uid": {"type": "Agent", "id": AGENT}, "attrs": {"owner": owner}, "parents": []},
        {"uid": {"type": "Person", "id": "ana"}, "attrs": {}, "parents": []},
    ]
    with Journal(tmp_path / "journal", helper=False) as journal:
        pdp = make_pdp(journal)
        ask(pdp, question())
        pdp.put_generation(Generation.from_bytes(compile_image(POLICIES, entities=entities).image, generation=2))
        ask(pdp, question())
    assert [record.owner for record in records(tmp_path / "journal")] == ["", "ana"]


# ------------------------------------------------------------ batches


def batch(pdp: Pdp, items: list[authz_pb2.CheckRequest]) -> tuple[int, list[authz_pb2.CheckResponse]]:
    code, reply = pdp.batch_check(authz_pb2.BatchCheckRequest(items=items).SerializeToString(), agent())
    return code, list(authz_pb2.BatchCheckResponse.FromString(reply).items) if code == OK else []


def test_a_batch_answers_in_order(pdp: Pdp) -> None:
    """Each item gets what it would get alone, where it was asked."""
    tools = ["files/open", "files/secret"] * (BATCH_MAX // 2)
    code, answers = batch(pdp, [question(tool, request_id=str(i)) for i, tool in enumerate(tools)])
    assert code == OK
    assert [answer.reason for answer in answers] == ["ok", "secret"] * (BATCH_MAX // 2)
    assert [answer.request_id for answer in answers] == [str(i) for i in range(BATCH_MAX)]
    assert len({answer.evaluation_id for answer in answers}) == BATCH_MAX


@pytest.mark.parametrize("count", [0, BATCH_MAX + 1])
def test_a_batch_of_no_or_too_many_items_is_refused(pdp: Pdp, count: int) -> None:
    """The bound is stated in the contract and kept."""
    assert batch(pdp, [question()] * count)[0] == INVALID_ARGUMENT


def test_a_batch_with_one_malformed_item_is_refused_whole(pdp: Pdp) -> None:
    """A batch is answered whole or not at all."""
    good = authz_pb2.BatchCheckRequest(items=[question()]).SerializeToString()
    assert pdp.batch_check(good + b"\x0a\x02\x0a\xff", agent())[0] == INVALID_ARGUMENT


def test_a_large_batch_of_large_items_stays_within_the_arena() -> None:
    """The arena bounds an item, not the batch."""
    arguments = struct_pb2.Struct()
    arguments.update({"text": "x" * 20_000})
    code, answers = batch(make_pdp(arena_bytes=1 << 20), [question(arguments=arguments)] * 12)
    assert code == OK
    assert {answer.outcome for answer in answers} == {authz_pb2.OUTCOME_ALLOW}


# ------------------------------------------------------------ one generation per answer


def test_each_answer_names_the_generation_that_decided_it(pdp: Pdp) -> None:
    """PO-09: while generations are swapped under load, each answer agrees with the generation it names."""
    tables = {
        1: generation(1),
        2: generation(2, '@id("none") permit (principal, action, resource) when { false };'),
    }
    stop = threading.Event()

    def swap() -> None:
        number = 1
        while not stop.is_set():
            number = 3 - number
            pdp.put_generation(tables[number])

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        seen = {(answer.generation, answer.outcome) for answer in (ask(pdp, question()) for _ in range(20_000))}
    finally:
        stop.set()
        swapper.join()
    assert seen <= {(1, authz_pb2.OUTCOME_ALLOW), (2, authz_pb2.OUTCOME_DENY)}


def test_many_threads_get_unique_ids(pdp: Pdp) -> None:
    """Every decision has an id of its own, whichever thread made it."""
    found: list[str] = []

    def work() -> None:
        found.extend(ask(pdp, question()).evaluation_id for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(found) == 4000


def test_with_clock_and_ids_injected_two_pdps_answer_byte_for_byte_alike() -> None:
    """Design: the same call, clock, ids and state give the same bytes, so that listeners can be compared."""
    replies = set()
    for _ in range(2):
        pdp = make_pdp()
        pdp.put_clock(10**9, 1_700_000_000 * 10**9, 7, 41)
        replies.add(pdp.ext_authz(envoy_call(), proxy()))
    assert len(replies) == 1


def test_explain_is_a_dry_run_with_a_door_of_its_own(tmp_path: Path) -> None:
    """Explain answers like Check, and its record says that nothing was done."""
    with Journal(tmp_path / "journal", helper=False) as journal:
        pdp = make_pdp(journal)
        code, reply = pdp.explain(question().SerializeToString(), agent())
    assert (code, authz_pb2.CheckResponse.FromString(reply).reason) == (OK, "ok")
    (record,) = records(tmp_path / "journal")
    assert (record.door, record.dry_run) == (decisions_pb2.DOOR_EXPLAIN, True)
