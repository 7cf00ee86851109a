"""A scope that lies within another one covers nothing more."""

import random

import pytest

from sidecar.authority.covers import Call, allows, chain_allows, covers
from sidecar.authority.errors import InvalidError
from sidecar.authority.scope import ArgRule, Scope, check, holds, host_of, host_within, outside, tool_within
from tests import fix_scopes
from tests.fix_faults import LONG, SEED

CHAINS = 100_000 if LONG else 4_000
CALLS = 12
ALL = Scope(any_tool=True, any_action=True, any_dest=True, max_level=4)


def test_over_random_chains_a_child_allows_only_what_its_parent_allows() -> None:
    """Row 12: for every chain whose links are within each other and every call, child allow implies parent allow."""
    rng = random.Random(SEED)
    made = allowed = refused = 0
    while made < CHAINS:
        chain = [fix_scopes.scope(rng)]
        for _ in range(rng.randrange(1, 4)):
            child = fix_scopes.near(rng, chain[-1])
            if outside(child, chain[-1]):
                refused += 1
                break
            chain.append(child)
        if len(chain) == 1:
            continue
        made += 1
        for _ in range(CALLS):
            call = fix_scopes.call(rng)
            verdicts = [allows(scope, call) for scope in chain]
            assert verdicts == sorted(verdicts, reverse=True), (chain, call)
            assert chain_allows(chain, call) == verdicts[-1]
            allowed += verdicts[-1]
    assert allowed > CHAINS / 100
    assert refused > CHAINS / 100


def test_every_scope_is_within_itself_and_within_everything() -> None:
    rng = random.Random(SEED)
    for _ in range(500):
        scope = fix_scopes.scope(rng)
        assert outside(scope, scope) == []
        assert outside(scope, ALL) == []


@pytest.mark.parametrize(
    ("child", "parent", "axis"),
    [
        (Scope(any_tool=True), Scope(tools=("bank/pay",)), "tools"),
        (Scope(tools=("bank/pay",)), Scope(tools=("bank/read",)), "tools"),
        (Scope(tools=("bank/*",)), Scope(tools=("bank/pay",)), "tools"),
        (Scope(tools=("bank/pay",)), Scope(tool_groups=("money",)), "tools"),
        (Scope(tool_groups=("money",)), Scope(tools=("bank/*",)), "tool_groups"),
        (Scope(actions=("send",)), Scope(actions=("read",)), "actions"),
        (Scope(any_dest=True), Scope(zones=("internal",)), "destinations"),
        (Scope(destinations=("mail.example",)), Scope(destinations=("*.mail.example",)), "destinations"),
        (Scope(zones=("public",)), Scope(zones=("internal",)), "zones"),
        (Scope(max_level=2), Scope(max_level=1), "max_level"),
        (Scope(), Scope(label_allow=("pii",)), "label_allow"),
        (Scope(label_allow=("pii", "secret")), Scope(label_allow=("pii",)), "label_allow"),
        (Scope(), Scope(label_deny=("pii",)), "label_deny"),
        (Scope(methods=("GET", "POST")), Scope(methods=("GET",)), "methods"),
        (Scope(any_tool=True), Scope(any_tool=True, arg_rules=(ArgRule("", "to", "eq", ("a",)),)), "arg_rules"),
    ],
)
def test_each_axis_refuses_more_than_the_parent_has(child: Scope, parent: Scope, axis: str) -> None:
    """What is wider is named by its axis."""
    lines = outside(child, parent)
    assert [line.partition(":")[0] for line in lines] == [axis]


@pytest.mark.parametrize(
    ("ours", "theirs", "within"),
    [
        (("eq", (5,)), ("range", (0, 10)), True),
        (("eq", (50,)), ("range", (0, 10)), False),
        (("eq", (True,)), ("eq", (1,)), False),
        (("in", ("ab", "abc")), ("prefix", ("a",)), True),
        (("range", (2, 6)), ("range", (0, 10)), True),
        (("range", (2, 16)), ("range", (0, 10)), False),
        (("prefix", ("ab",)), ("prefix", ("a",)), True),
        (("prefix", ("a",)), ("prefix", ("ab",)), False),
        (("host_suffix", ("a.example",)), ("host_suffix", ("example",)), True),
        (("host_suffix", ("notexample",)), ("host_suffix", ("example",)), False),
        (("cidr", ("10.1.0.0/16",)), ("cidr", ("10.0.0.0/8",)), True),
        (("cidr", ("10.0.0.0/8",)), ("cidr", ("10.1.0.0/16",)), False),
        (("cidr", ("::/0",)), ("cidr", ("10.0.0.0/8",)), False),
        (("prefix", ("a",)), ("host_suffix", ("example",)), False),
    ],
)
def test_a_rule_stands_in_for_another_when_it_lets_less_through(ours, theirs, within) -> None:
    parent = Scope(tools=("bank/pay",), arg_rules=(ArgRule("bank/pay", "x", *theirs),))
    child = Scope(tools=("bank/pay",), arg_rules=(ArgRule("bank/*", "x", *ours),))
    assert (outside(child, parent) == []) is within


def test_a_rule_of_a_tool_that_the_child_lacks_is_not_needed() -> None:
    parent = Scope(tools=("bank/pay", "bank/read"), arg_rules=(ArgRule("bank/pay", "amount", "range", (0, 10)),))
    assert outside(Scope(tools=("bank/read",)), parent) == []
    assert outside(Scope(tools=("bank/pay",)), parent) != []


def test_a_call_without_the_argument_that_a_rule_is_about_is_not_covered() -> None:
    scope = Scope(tools=("bank/pay",), arg_rules=(ArgRule("bank/pay", "amount", "range", (0, 10)),))
    call = Call(tool="bank/pay", action="send", destination="")
    assert not covers(scope, call).tool


def test_names_and_hosts_match_whole_labels_only() -> None:
    assert tool_within("bank/pay", "bank/*")
    assert not tool_within("banker/pay", "bank/*")
    assert host_within("a.mail.example", "*.mail.example")
    assert not host_within("amail.example", "*.mail.example")
    assert not host_within("mail.example", "*.mail.example")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("https://a.example/x", "a.example"),
        ("A.Example:443", "a.example"),
        ("a.example.", "a.example"),
        ("https://a.example@evil.example/", None),
        ("https://evil.example\\.a.example/", None),
        ("https://evil.example;.a.example/", None),
        ("https://evil.example\uff0f.a.example/", None),
        ("https://\u212a.example", None),
        ("//a.example", None),
        ("a.example/://evil.example", "a.example"),
        ("", None),
    ],
)
def test_the_host_of_a_text_is_where_a_client_would_go(text: str, host: str | None) -> None:
    assert host_of(text) == host


def test_values_of_another_type_never_hold() -> None:
    assert not holds(ArgRule("", "x", "range", (0, 10)), True)
    assert not holds(ArgRule("", "x", "eq", (1,)), True)
    assert not holds(ArgRule("", "x", "prefix", ("1",)), 1)
    assert not holds(ArgRule("", "x", "cidr", ("10.0.0.0/8",)), "not an address")


@pytest.mark.parametrize(
    ("scope", "field"),
    [
        (Scope(tools=("",)), "scope.tools[0]"),
        (Scope(destinations=("UPPER",)), "scope.destinations[0]"),
        (Scope(destinations=("a.*.b",)), "scope.destinations[0]"),
        (Scope(max_level=5), "scope.max_level"),
        (Scope(arg_rules=(ArgRule("t", "", "eq", (1,)),)), "scope.arg_rules[0]"),
        (Scope(arg_rules=(ArgRule("t", "p", "eq", (1, 2)),)), "scope.arg_rules[0].values"),
        (Scope(arg_rules=(ArgRule("t", "p", "range", (1,)),)), "scope.arg_rules[0].values"),
        (Scope(arg_rules=(ArgRule("t", "p", "cidr", ("10.0.0.1/8",)),)), "scope.arg_rules[0].values"),
        (Scope(arg_rules=(ArgRule("t", "p", "in", (1 << 63,)),)), "scope.arg_rules[0].values"),
        (Scope(arg_rules=(ArgRule("t", "p", "prefix", (1,)),)), "scope.arg_rules[0].values"),
    ],
)
def test_a_scope_that_means_nothing_is_refused_by_the_name_of_its_field(scope: Scope, field: str) -> None:
    with pytest.raises(InvalidError, match=f"`{field}".replace("[", "\\[").replace("]", "\\]")):
        check(scope)
