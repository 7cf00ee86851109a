"""The decision: which policies determine, what each outcome needs, and what keeps a call from being evaluated."""

from __future__ import annotations

import threading
from itertools import product

import pytest

from fastpath.decide import PeerKind
from fastpath.evaluator import CAUSES, Evaluator
from fastpath.program import EvalError
from fastpath.table import Generation
from sidecar.errors import ProtocolError
from sidecar.policy.cells import encode_context
from tests.fix_rules import ALICE, DOC, READ, ask, entity, evaluator, image

PERMIT = "permit(principal, action, resource);"
FORBID = "forbid(principal, action, resource);"
ERRING_FORBID = "forbid(principal, action, resource) when { 1 };"
ERRING_PERMIT = "permit(principal, action, resource) when { 1 };"


def named(policies: str, entities: list[dict] | None = None, **how: bool) -> Evaluator:
    """Policies with `@id` and meaning in their annotations."""
    return evaluator(policies, entities, named=True, columns=True, **how)


def permit(id_: str, *notes: str) -> str:
    return f'@id("{id_}") {" ".join(notes)} {PERMIT}'


def forbid(id_: str, *notes: str) -> str:
    return f'@id("{id_}") {" ".join(notes)} {FORBID}'


# ---------------------------------------------------------------- Cedar's rule and the strict one


@pytest.mark.parametrize(
    ("policies", "strict", "outcome", "reason", "reasons"),
    [
        ([], True, "DENY", "policy.none", []),
        ([PERMIT], True, "ALLOW", "ok", ["policy0"]),
        ([PERMIT, PERMIT], True, "ALLOW", "ok", ["policy0", "policy1"]),
        ([PERMIT, FORBID], True, "DENY", "policy.forbid", ["policy1"]),
        ([FORBID], True, "DENY", "policy.forbid", ["policy0"]),
        ([ERRING_PERMIT], True, "DENY", "policy.none", []),
        ([PERMIT, ERRING_PERMIT], True, "ALLOW", "ok", ["policy0"]),
        ([PERMIT, ERRING_FORBID], True, "DENY", "policy.error", []),
        ([PERMIT, ERRING_FORBID], False, "ALLOW", "ok", ["policy0"]),
        ([ERRING_FORBID], False, "DENY", "policy.none", []),
        ([PERMIT, FORBID, ERRING_FORBID], True, "DENY", "policy.forbid", ["policy1"]),
    ],
)
def test_po_05_an_erring_forbid_denies_in_strict_mode(
    policies: list[str], strict: bool, outcome: str, reason: str, reasons: list[str]
):
    """PO-05: in Cedar mode what errs is skipped and listed; in strict mode an erring forbid whose scope matches denies.

    What an erring forbid denied was determined by no satisfied policy, so none is named.
    """
    got = ask(evaluator("\n".join(policies), strict=strict))
    assert (got.outcome, got.reason, got.reasons) == (outcome, reason, reasons)
    assert got.errors == [(f"policy{i}", "type") for i, text in enumerate(policies) if "when { 1 }" in text]


def test_a_forbid_that_errs_outside_of_its_scope_does_not_deny():
    """Strictness asks for a scope that matches."""
    asked = evaluator(f'{PERMIT} forbid(principal == User::"bob", action, resource) when {{ 1 }};')
    assert ask(asked).outcome == "ALLOW"
    assert ask(asked, principal=("User", "bob")).outcome == "DENY"


def test_strictness_can_be_overridden_for_a_comparison():
    """`Evaluator(strict=..)` answers as the other mode would, with the same generation."""
    table = Generation.from_bytes(image(PERMIT + ERRING_FORBID), strict=True)
    assert [ask(Evaluator(table, strict=mode)).outcome for mode in (None, True, False)] == ["DENY", "DENY", "ALLOW"]


# ---------------------------------------------------------------- step-up, reasons, obligations, shadows


@pytest.mark.parametrize(
    ("policies", "outcome"),
    [
        ([permit("p"), forbid("f", '@obligation("approval")')], "STEP_UP"),
        ([permit("p"), forbid("f", '@obligation("step-up")')], "STEP_UP"),
        ([permit("p"), forbid("f", '@obligation("notify")')], "DENY"),
        ([permit("p"), forbid("f", '@obligation("approval")'), forbid("g")], "DENY"),
        ([permit("p"), forbid("f", '@obligation("approval")'), forbid("g", '@obligation("step-up")')], "STEP_UP"),
        ([forbid("f", '@obligation("approval")')], "DENY"),
        ([permit("p"), forbid("f", '@obligation("approval")'), '@id("g") ' + ERRING_FORBID], "DENY"),
    ],
)
def test_step_up_needs_every_forbid_curable_and_a_permit(policies: list[str], outcome: str):
    """Facts 2.2: one forbid that no approval lifts, no permit, or a forbid that errs: an approval would not help."""
    assert ask(named("\n".join(policies))).outcome == outcome
    assert ask(named("\n".join(reversed(policies)))).outcome == outcome


def test_reason_is_that_of_the_first_forbid_by_id():
    """The order is the table's, never the index's or the text's."""
    policies = [forbid("b", '@reason("second")'), forbid("a", '@reason("first")'), permit("0")]
    got = ask(named("\n".join(policies)))
    assert (got.reason, got.reasons) == ("first", ["a", "b"])


def test_a_denial_names_what_no_approval_lifts():
    """A curable forbid beside a hard one is not the reason: an approval would not help, so none is asked for."""
    curable, hard = forbid("a", '@reason("ask") @obligation("approval")'), forbid("b", '@reason("never")')
    got = ask(named(permit("p") + curable + hard))
    assert (got.outcome, got.reason, got.obligation) == ("DENY", "never", "")
    got = ask(named(curable))
    assert (got.outcome, got.reason, got.obligation) == ("DENY", "ask", "")


def test_obligation_is_of_what_determines():
    """A permit's obligation goes with its ALLOW and not with a DENY."""
    notify = permit("p", '@obligation("notify")')
    assert ask(named(notify)).obligation == "notify"
    assert ask(named(notify + forbid("f"))).obligation == ""
    assert ask(named(notify + forbid("f", '@obligation("approval")'))).obligation == "approval"


@pytest.mark.parametrize("shadow", [FORBID, ERRING_FORBID, PERMIT])
def test_a_shadow_is_recorded_and_never_decides(shadow: str):
    """@shadow: neither its effect nor its error reaches the outcome."""
    got = ask(named(f'@id("s") @shadow {shadow}'))
    assert (got.outcome, got.reasons, got.errors) == ("DENY", [], [])
    got = ask(named(f'@id("s") @shadow {shadow} {permit("p")}'))
    assert (got.outcome, got.reasons, got.errors) == ("ALLOW", ["p"], [])
    assert got.shadows == [("s", "type" if shadow is ERRING_FORBID else "")]


def test_a_shadow_that_reads_an_unsent_input_does_not_deny():
    shadow = '@id("s") @shadow forbid(principal, action, resource) when { context.input.n == 1 };'
    got = ask(named(shadow + permit("p")), unsent=["input"])
    assert (got.outcome, got.shadows) == ("ALLOW", [("s", "unsent")])


def test_all_policies_are_listed_however_many_there_are():
    """More than the reply lists: every determining and erring policy comes, in the table's order."""
    got = ask(evaluator("\n".join([PERMIT] * 40 + [ERRING_PERMIT] * 30)))
    ids = sorted(f"policy{i}" for i in range(70))
    assert got.reasons == [id_ for id_ in ids if int(id_[6:]) < 40]
    assert [id_ for id_, _ in got.errors] == [id_ for id_ in ids if int(id_[6:]) >= 40]


def test_every_error_has_a_name():
    assert len(CAUSES) == len(EvalError)


# ---------------------------------------------------------------- candidates

USERS = [entity(ALICE, {}, [("Group", "g")]), entity(("Group", "g"), {}, [("Group", "top")]), entity(("Group", "top"))]
DOCS = [
    entity(DOC, {}, [("Folder", "f")]),
    entity(("Folder", "f"), {}, [("Folder", "root")]),
    entity(("Folder", "root")),
]
ACTIONS = [
    entity(READ, {}, [("Action", "view"), ("Action", "any")]),
    entity(("Action", "view"), {}, [("Action", "any")]),
    entity(("Action", "any")),
]
PRINCIPALS = {
    "principal": True, 'principal == User::"alice"': True, 'principal == User::"bob"': False,
    'principal in User::"alice"': True, 'principal in Group::"top"': True, 'principal in Group::"none"': False,
    "principal is User": True, "principal is Robot": False, 'principal is User in Group::"g"': True,
    'principal is Robot in Group::"g"': False, 'principal is User in Group::"none"': False,
}  # fmt: skip
RESOURCES = {
    "resource": True, 'resource == Doc::"d1"': True, 'resource == Doc::"d2"': False, 'resource in Folder::"root"': True,
    'resource in Folder::"none"': False, "resource is Doc": True, "resource is Tool": False,
    'resource is Doc in Folder::"f"': True, 'resource is Tool in Folder::"f"': False,
}  # fmt: skip
ACTION_SCOPES = {
    "action": True, 'action == Action::"read"': True, 'action == Action::"write"': False,
    'action in Action::"any"': True, 'action in Action::"write"': False,
    'action in [Action::"read", Action::"view", Action::"any", Action::"write"]': True,
    'action in [Action::"write", Action::"delete"]': False, "action in []": False,
}  # fmt: skip


def test_the_index_finds_every_policy_whose_scope_matches_and_each_once():
    """Every combination of scopes in one table, with the constraint that files it taking turns."""
    scopes = list(product(PRINCIPALS, ACTION_SCOPES, RESOURCES))
    policies = "\n".join(f"permit({', '.join(scope)});" for scope in scopes)
    asked = evaluator(policies, [*USERS, *DOCS, *ACTIONS])
    expected = {
        f"policy{i}" for i, (p, a, r) in enumerate(scopes) if PRINCIPALS[p] and ACTION_SCOPES[a] and RESOURCES[r]
    }
    got = ask(asked)
    assert len(got.reasons) == len(set(got.reasons))
    assert set(got.reasons) == expected
    traced = asked.trace(ALICE, READ, DOC, every=True)
    assert {id_ for id_, _, matched, _, _ in traced if matched} == expected


def test_uids_that_no_policy_and_no_entity_names_match_only_open_scopes():
    """An unknown principal of a known type is found by its type; one of an unknown type by the open scope alone."""
    asked = evaluator(
        'permit(principal, action, resource); permit(principal is User, action, resource);'
        'permit(principal in Group::"g", action, resource);', USERS
    )  # fmt: skip
    assert ask(asked, principal=("User", "new")).reasons == ["policy0", "policy1"]
    assert ask(asked, principal=("Robot", "r"), resource=("X", "y"), action=("Action", "z")).reasons == ["policy0"]


def test_a_resource_that_the_store_lacks_takes_the_parent_of_its_request():
    """Request.resource_parent: in scopes, in conditions, through the parent's own groups, for unknown parents too."""
    policies = (
        'permit(principal, action, resource in Folder::"f");'
        'permit(principal, action, resource in Folder::"root");'
        'permit(principal, action, resource) when { resource in Folder::"root" };'
        "permit(principal, action, resource) when { resource in context.parent };"
        'permit(principal, action, resource in Doc::"new");'
    )
    asked = evaluator(policies, DOCS)
    new, folder = ("Doc", "new"), ("Folder", "f")
    context = {"parent": {"__entity": {"type": "Folder", "id": "f"}}}
    assert ask(asked, resource=new, context=context).reasons == ["policy4"]
    got = ask(asked, resource=new, context=context, resource_parent=folder)
    assert got.reasons == ["policy0", "policy1", "policy2", "policy3", "policy4"]
    unknown = {"parent": {"__entity": {"type": "Folder", "id": "unheard"}}}
    got = ask(asked, resource=new, context=unknown, resource_parent=("Folder", "unheard"))
    assert got.reasons == ["policy3", "policy4"]


def test_a_resource_of_the_store_keeps_its_own_parents():
    """A request cannot move a known resource into another folder."""
    asked = evaluator('permit(principal, action, resource in Folder::"other");', DOCS)
    assert ask(asked, resource_parent=("Folder", "other")).outcome == "DENY"


# ---------------------------------------------------------------- what is not evaluated


def test_not_ready_is_an_error_of_ours_whoever_asks():
    """Our own state comes first: no peer is told a policy's answer by a sidecar that must not decide."""
    asked = evaluator(PERMIT)
    asked.put_state(not_ready="not_ready.svid")
    asked.put_peer(refusal="identity.chain")
    got = ask(asked, refusal="path.not_canonical")
    assert (got.outcome, got.reason) == ("ERROR", "not_ready.svid")


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        ({"refusal": "identity.chain"}, "identity.chain"),
        ({"kind": PeerKind.PEER_NONE}, "identity.missing"),
        ({"not_after_s": 999}, "identity.expired"),
        ({"not_after_s": 1000}, "ok"),
        ({"bundle_generation": 4}, "identity.bundle_changed"),
        ({"bundle_generation": 5}, "ok"),
        ({"bundle_generation": 0}, "ok"),
        ({"kind": PeerKind.PEER_ENVOY}, "ok"),
    ],
)
def test_the_peer_is_judged_again_at_every_call(peer: dict, reason: str):
    """Design 8: a connection outlives its credential and its bundle; a Unix socket (bundle 0) has neither."""
    asked = evaluator(PERMIT)
    asked.put_state(bundle_generation=5, now_unix_ns=1_000_999_999_999)
    asked.put_peer(**peer)
    got = ask(asked)
    assert (got.outcome, got.reason) == ("ALLOW" if reason == "ok" else "DENY", reason)


def test_a_malformed_request_is_denied_with_its_reason_before_any_policy():
    """Ambiguity is the input's fault: DENY, and nothing is evaluated."""
    got = ask(evaluator(PERMIT + ERRING_FORBID), refusal="path.not_canonical")
    assert (got.outcome, got.reason, got.reasons, got.errors) == ("DENY", "path.not_canonical", [], [])


def test_a_decision_after_the_deadline_is_an_error_whatever_it_was():
    """Fail-closed rule 6: late is not an answer, and an instant before is."""
    asked = named(permit("p", '@obligation("notify")'))
    asked.put_state(now_ns=1000)
    got = ask(asked, deadline_ns=1000)
    assert (got.outcome, got.obligation, got.cacheable) == ("ALLOW", "notify", True)
    got = ask(asked, deadline_ns=999)
    assert (got.outcome, got.reason, got.obligation, got.cacheable) == ("ERROR", "late", "", False)


def test_a_late_evaluation_ends_early():
    """The clock is looked at between policies: after the deadline the rest is not evaluated."""
    asked = evaluator("\n".join([ERRING_PERMIT] * 2000))
    asked.put_state(now_ns=1000)
    assert len(ask(asked, deadline_ns=1000).errors) == 2000
    got = ask(asked, deadline_ns=999)
    assert (got.outcome, got.reason) == ("ERROR", "late")
    assert len(got.errors) < 2000


def test_evaluation_ids_are_boot_and_sequence():
    """32 hex digits: 16 of the process, 16 of the count."""
    asked = evaluator(PERMIT)
    asked.put_state(boot=0x0123456789ABCDEF)
    assert [ask(asked).evaluation_id for _ in range(2)] == ["0123456789abcdef" + f"{n:016x}" for n in (1, 2)]


@pytest.mark.parametrize(
    ("condition", "cacheable"),
    [
        ("principal == principal", True),
        ('context.dest == Destination::"x" || context.call.bytes > 1', True),
        ("context.task.present", False),
        ("context.risk.agent > 1", False),
    ],
)
def test_a_decision_is_cacheable_when_no_policy_reads_live_state(condition: str, cacheable: bool):
    """`dest` and `call` are functions of the request; task, session, behavior, .. change without it."""
    assert ask(named(f'@id("p") permit(principal, action, resource) when {{ {condition} }};')).cacheable is cacheable


# ---------------------------------------------------------------- the Python face


@pytest.mark.parametrize(
    ("context", "match"),
    [
        ({"task": 1}, "context.task: is not a record"),
        ({"task": {"nonsense": 1}}, "context.task: has no column `nonsense`"),
        ({"task": {"present": 1}}, "context.task.present: is not a bool"),
        ({"dest": "x"}, "context.dest: is not a entity"),
    ],
)
def test_a_context_that_contradicts_the_columns_is_refused(context: dict, match: str):
    """The error names the path."""
    with pytest.raises(ProtocolError, match=match):
        ask(named(permit("p")), context=context)


@pytest.mark.parametrize("blob", [b"\0", bytes(16), b"\x02" + bytes(15)])
def test_a_context_that_is_no_record_is_refused(blob: bytes):
    with pytest.raises(ProtocolError, match="not a record"):
        evaluator(PERMIT).evaluate(ALICE, READ, DOC, blob)


def test_a_request_that_does_not_fit_its_arena_is_refused():
    with pytest.raises(ProtocolError, match="arena"):
        evaluator(PERMIT).prepare(("User", "x" * 1000), READ, DOC, arena_bytes=500)


def test_trace_says_what_each_policy_says():
    """Scope, result and cause per policy; conditions outside of the scope are not evaluated."""
    asked = evaluator(f'{PERMIT} {ERRING_FORBID} forbid(principal == User::"bob", action, resource) when {{ 1 }};'
                      'forbid(principal, action, resource) when { false };')  # fmt: skip
    assert asked.trace(ALICE, READ, DOC, every=True) == [
        ("policy0", "permit", True, True, ""),
        ("policy1", "forbid", True, None, "type"),
        ("policy2", "forbid", False, False, ""),
        ("policy3", "forbid", True, False, ""),
    ]
    assert [row[0] for row in asked.trace(ALICE, READ, DOC)] == ["policy0", "policy1", "policy3"]


def test_threads_share_an_evaluator():
    """Each thread with requests of its own gets its own answers, and every evaluation its own id."""
    asked = evaluator('permit(principal == User::"alice", action, resource) when { context.n > 5 };')
    seen: list[tuple[str, str]] = []

    def run(name: str, n: int, expected: str) -> None:
        prepared = asked.prepare(("User", name), READ, DOC, encode_context({"n": n}))
        answers = [asked.evaluate_prepared(prepared) for _ in range(500)]
        seen.extend((got.evaluation_id, "ok" if got.outcome == expected else got.outcome) for got in answers)

    threads = [
        threading.Thread(target=run, args=row)
        for row in [("alice", 9, "ALLOW"), ("alice", 1, "DENY"), ("bob", 9, "DENY")]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {result for _, result in seen} == {"ok"}
    assert len({id_ for id_, _ in seen}) == 1500


def test_a_resource_with_a_parent_is_not_the_principal():
    """Ambiguity denies: one uid cannot have the given parent as a resource and lack it as a principal."""
    own, parent = ("Agent", "a"), ("Group", "g")
    table = named(permit("p"))
    assert ask(table, principal=own, resource=own, resource_parent=parent).reason == "request.ambiguous.resource"
    assert ask(table, principal=own, resource=own).outcome == "ALLOW"


def test_a_resource_with_a_parent_is_not_above_who_asks():
    """What is in the resource is in its parent as well, where no call looks for a forbid: ambiguity denies."""
    team, group, small = ("Team", "new"), ("Group", "g"), ("Team", "small")
    reads, all_ = ("Action", "reads"), ("Action", "all")
    inside = [entity(ALICE, {}, [small]), entity(small, {}, [team]), entity(READ, {}, [reads])]
    policies = (
        'permit(principal, action, resource); forbid(principal in Group::"g", action, resource);'
        'forbid(principal, action in Action::"all", resource);'
    )
    for entities, resource, parent, reason in (
        (inside, team, group, "request.ambiguous.resource"),
        (inside, reads, all_, "request.ambiguous.resource"),
        (inside, team, small, "request.ambiguous.resource"),
        ([], READ, all_, "request.ambiguous.resource"),
        ([], team, group, "ok"),
        ([], reads, all_, "ok"),
    ):
        table = evaluator(policies, entities)
        assert ask(table, resource=resource, resource_parent=parent).reason == reason, (resource, parent)
        assert ask(table, resource=resource).outcome == "ALLOW"


def test_what_is_in_a_resource_is_in_its_parent():
    """Other entities, in conditions."""
    team, group, bob = ("Team", "new"), ("Group", "g"), ("User", "bob")
    policies = 'permit(principal, action, resource) when { context.who in Group::"g" };'
    table = evaluator(policies, [entity(ALICE, {}, [team])])
    for who, outcome in ((ALICE, "ALLOW"), (bob, "DENY")):
        context = {"who": {"__entity": {"type": who[0], "id": who[1]}}}
        assert ask(table, principal=bob, resource=team, context=context, resource_parent=group).outcome == outcome
