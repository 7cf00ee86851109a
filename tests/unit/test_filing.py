"""Policies are filed under the rarest of their constraints, ranked by id; a million of them as one by one."""

from array import array
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.filing import Rules
from fastpath.names import Names
from sidecar.policy.rows import (
    ACTION_EQ,
    ACTION_IN,
    PRINCIPAL_EQ,
    PRINCIPAL_IN,
    PRINCIPAL_IS,
    RESOURCE_EQ,
    RESOURCE_IN,
    RESOURCE_IS,
    Scope,
)

NONE = 0xFFFFFFFF
UIDS, TYPES = 5, 3
SPECIFIC = (PRINCIPAL_EQ, RESOURCE_EQ, PRINCIPAL_IN, RESOURCE_IN, ACTION_EQ, ACTION_IN, PRINCIPAL_IS, RESOURCE_IS)

uids = st.integers(0, UIDS - 1)
scopes = st.one_of(
    st.tuples(st.just(Scope.ANY), st.just(NONE), st.just(NONE)),
    st.tuples(st.sampled_from([Scope.EQ, Scope.IN]), uids, st.just(NONE)),
    st.tuples(st.just(Scope.IS), st.just(NONE), st.integers(0, TYPES - 1)),
    st.tuples(st.just(Scope.IS_IN), uids, st.integers(0, TYPES - 1)),
)
actions = st.one_of(
    st.tuples(st.just(Scope.ANY), st.just(NONE)),
    st.tuples(st.sampled_from([Scope.EQ, Scope.IN]), uids),
    st.tuples(st.just(Scope.IN_LIST), st.lists(uids, unique=True, max_size=3)),
)
policies = st.lists(st.tuples(st.binary(min_size=1, max_size=2), scopes, actions, scopes), unique_by=lambda p: p[0])


def ways(policy):
    """The ways to file a policy, as fastpath/filing.pxd has them."""
    _, principal, action, resource = policy
    found = []
    for (op, uid, type_), (eq, in_, is_) in (
        (principal, (PRINCIPAL_EQ, PRINCIPAL_IN, PRINCIPAL_IS)),
        (resource, (RESOURCE_EQ, RESOURCE_IN, RESOURCE_IS)),
    ):
        if op in (Scope.EQ, Scope.IN, Scope.IS_IN):
            found.append([(eq if op is Scope.EQ else in_, uid)])
        elif op is Scope.IS:
            found.append([(is_, type_)])
    if action[0] is Scope.IN_LIST:
        found.append([(ACTION_IN, uid) for uid in action[1]])
    elif action[0] is not Scope.ANY:
        found.append([(ACTION_EQ if action[0] is Scope.EQ else ACTION_IN, action[1])])
    return found


def reference(given):
    """Ranks by key, and those that are filed under nothing."""
    ranked = sorted(given)
    # An empty list of actions matches nothing, so its policy is filed nowhere and makes no key less rare.
    count = Counter(key for policy in ranked if [] not in ways(policy) for way in ways(policy) for key in way)
    filed, anywhere = {}, []
    for rank, policy in enumerate(ranked):
        found = ways(policy)
        if [] in found:
            continue
        if not found:
            anywhere.append(rank)
            continue
        best = min(found, key=lambda way: (sum(count[key] for key in way), SPECIFIC.index(way[0][0])))
        for key in best:
            filed.setdefault(key, []).append(rank)
    return filed, anywhere


def filled(given):
    rules = Rules(Names())
    for id_, principal, (action_op, action), resource in given:
        named = action if isinstance(action, int) else NONE
        listed = rules.actions(array("I", action)) if isinstance(action, list) else NONE
        ops = (principal[0], action_op, resource[0])
        number = rules.ids.add(id_)
        rules.add(number, 0, 0, ops, principal[1:], (named, listed), resource[1:], (0, 0, 0), 0)
    return rules


@given(policies)
def test_each_policy_is_filed_under_its_rarest_constraint(given):
    """Every key has the policies, and only those, that a plain reading of the rule gives it."""
    rules = filled(given)
    rules.file(UIDS, TYPES)
    keys = [(kind, n) for kind in range(6) for n in range(UIDS)] + [(kind, n) for kind in (6, 7) for n in range(TYPES)]
    found = {key: list(rules.under(*key)) for key in keys}
    filed, anywhere = reference(given)
    assert {key: ranks for key, ranks in found.items() if ranks} == filed
    assert list(rules.anywhere_ranks()) == anywhere
    assert len(rules) == len(given)


def test_links_take_the_place_of_what_they_are_like():
    """A row for links to be like is no policy; what a link does not fill stays as it is there."""
    rules = Rules(Names())
    like = rules.add(rules.ids.add(b""), 0, 0, (1, 0, 1), (NONE, NONE), (NONE, NONE), (4, NONE), (0, 0, 0), 0)
    rules.add_links(like, rules.ids.add_all([b"b", b"a"]), array("I", [1, 2]), array("I", [NONE, 3]))
    rules.forget(like)
    rules.file(UIDS, 0)
    assert len(rules) == 2
    assert list(rules.under(PRINCIPAL_EQ, 2)) == [0]
    assert list(rules.under(PRINCIPAL_EQ, 1)) == [1]
    assert not list(rules.anywhere_ranks())


def test_numbers_that_name_nothing_are_errors():
    rules = Rules(Names())
    with pytest.raises(IndexError):
        rules.add(0, 0, 0, (0, 5, 0), (NONE, NONE), (NONE, 7), (NONE, NONE), (0, 0, 0), 0)
    with pytest.raises(IndexError):
        rules.add_links(0, array("I"), array("I"), array("I"))
    with pytest.raises(IndexError):
        rules.forget(0)
    rules.add(rules.ids.add(b"x"), 0, 0, (1, 0, 0), (9, NONE), (NONE, NONE), (NONE, NONE), (0, 0, 0), 0)
    with pytest.raises(IndexError):
        rules.file(UIDS, 0)
    with pytest.raises(IndexError):
        rules.under(0, UIDS)
