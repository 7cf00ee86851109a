"""Compiled conditions: what each construct comes to, equal to Cedar's own engine."""

from __future__ import annotations

import pytest

from sidecar.policy.cells import encode_context
from tests.fix_rules import ALICE, DOC, READ, ask, cedar_verdict, entity, evaluator, verdict

GROUP, TOP, OTHER = ("Group", "g"), ("Group", "top"), ("Group", "other")
ENTITIES = [
    entity(ALICE, {"level": 3, "name": "alice", "address": {"city": "Bern"}, "has space": 1}, [GROUP], team="blue"),
    entity(GROUP, {}, [TOP]),
    entity(TOP),
    entity(DOC, {"owner": {"__entity": {"type": "User", "id": "alice"}}}),
]
CONTEXT = {
    "one": 1,
    "text": "abc",
    "flag": True,
    "set": [1, 2, 3],
    "record": {"a": 1, "b": {"c": 2}},
    "who": {"__entity": {"type": "User", "id": "alice"}},
    "ghost": {"__entity": {"type": "User", "id": "ghost"}},
}
MAX, MIN = "9223372036854775807", "(-9223372036854775807 - 1)"

ROWS: dict[str, bool | str] = {
    # && || ! if: the right side is type-checked when it is reached, and only then.
    "true && 1": "type",
    "false && 1": False,
    "1 && true": "type",
    "false || 1": "type",
    "true || 1": True,
    "1 || true": "type",
    "false && (1 + true == 2)": False,
    "true || (1 + true == 2)": True,
    "!true": False,
    "!1": "type",
    "if context.flag then true else 1": True,
    "if !context.flag then true else 1": "type",
    "if 1 then true else false": "type",
    "1": "type",
    # Equality never errs.
    "1 == true": False,
    '"1" == 1': False,
    "context.ghost == context.who": False,
    "[1, 2] == [2, 1, 1]": True,
    '{"a": 1, "b": 2} == {"b": 2, "a": 1}': True,
    "[[1], [2]] == [[2], [1]]": True,
    '{"a": [1]} == {"a": [2]}': False,
    "1 != true": True,
    # i64 arithmetic.
    f"{MAX} + 0 == {MAX}": True,
    f"{MAX} + 1 == 0": "overflow",
    f"{MIN} - 1 == 0": "overflow",
    f"{MAX} * 2 == 0": "overflow",
    f"-{MIN} == 0": "overflow",
    f"({MAX} + 1) - 1 == {MAX}": "overflow",
    "3037000500 * 3037000500 > 0": "overflow",
    "3037000499 * 3037000499 > 0": True,
    "1 + true == 2": "type",
    '-"a" == 1': "type",
    # Order.
    "1 < 1": False,
    "1 <= 1": True,
    "2 > 1": True,
    "1 >= 2": False,
    '"a" < "b"': "type",
    'datetime("2024-01-01") < 5': "type",
    'datetime("2024-01-01") < datetime("2024-01-02")': True,
    'duration("1h") >= duration("60m")': True,
    'decimal("1.0") < decimal("2.0")': "type",
    # Attributes.
    "principal.level == 3": True,
    "principal.missing == 3": "attribute",
    "context.ghost.level == 3": "entity",
    "context.ghost has level": False,
    "principal has level": True,
    "principal has missing": False,
    'principal["has space"] == 1': True,
    'principal has "has space"': True,
    "principal.address.city == \"Bern\"": True,
    "principal has address.city": True,
    "principal has address.zip.code": False,
    "principal has level.deep": "type",
    "context.record.b.c == 2": True,
    "context has record.b.c": True,
    "context.one has a": "type",
    "context.one.a == 1": "type",
    "resource.owner == principal": True,
    "resource.owner.level == 3": True,
    # Tags are apart from attributes.
    'principal.getTag("team") == "blue"': True,
    'principal.hasTag("team")': True,
    'principal.hasTag("level")': False,
    "principal has team": False,
    'principal.getTag("level") == 1': "tag",
    'context.ghost.hasTag("team")': False,
    'context.ghost.getTag("team") == 1': "entity",
    "principal.hasTag(1)": "type",
    'context.hasTag("a")': "type",
    # Hierarchy.
    'principal in Group::"g"': True,
    'principal in Group::"top"': True,
    'principal in Group::"other"': False,
    "principal in principal": True,
    "context.ghost in context.ghost": True,
    'context.ghost in Group::"g"': False,
    'Group::"g" in Group::"top"': True,
    'Group::"top" in Group::"g"': False,
    "principal in []": False,
    'principal in [Group::"other", Group::"top", Group::"top"]': True,
    'principal in [1, Group::"top"]': "type",
    'principal in [Group::"top", 1]': "type",
    "principal in 1": "type",
    "1 in principal": "type",
    "principal is User": True,
    "principal is Doc": False,
    "1 is User": "type",
    'principal is User in Group::"top"': True,
    'principal is Doc in Group::"top"': False,
    'principal is Doc in 1': False,
    'principal is User in 1': "type",
    # Sets.
    "context.set.contains(2)": True,
    "context.set.contains(4)": False,
    'context.set.contains("2")': False,
    "context.set.containsAll([1, 3])": True,
    "context.set.containsAll([1, 4])": False,
    "context.set.containsAll([])": True,
    "context.set.containsAny([4, 3])": True,
    "context.set.containsAny([4])": False,
    "context.set.containsAny([])": False,
    "context.set.containsAll(1)": "type",
    "context.one.contains(1)": "type",
    "[].isEmpty()": True,
    "context.set.isEmpty()": False,
    "context.one.isEmpty()": "type",
    # like
    '"" like ""': True,
    '"" like "*"': True,
    '"a" like ""': False,
    '"abc" like "a*c"': True,
    '"abc" like "*b*"': True,
    '"abab" like "*ab"': True,
    '"aab" like "a*ab"': True,
    '"ab" like "ab*ab"': False,
    '"aba" like "ab*ba"': False,
    '"a*c" like "a\\*c"': True,
    '"abc" like "a\\*c"': False,
    '"a\\nb" like "a*b"': True,
    '"x😀y" like "x*y"': True,
    '"ab" like "**a**b**"': True,
    '1 like "*"': "type",
    # Extension types.
    'ip("1.2.3.4") == ip("1.2.3.4/32")': True,
    'ip("10.1.2.3").isInRange(ip("10.0.0.0/8"))': True,
    'ip("10.0.0.0/8").isInRange(ip("10.1.2.3"))': False,
    'ip("10.0.0.0/7").isInRange(ip("10.0.0.0/8"))': False,
    'ip("10.128.0.0/9").isInRange(ip("10.0.0.0/9"))': False,
    'ip("::1").isInRange(ip("0.0.0.0/0"))': False,
    'ip("1.2.3.4").isIpv4()': True,
    'ip("::1").isIpv4()': False,
    'ip("::1").isIpv6()': True,
    'ip("127.0.0.1").isLoopback()': True,
    'ip("127.0.0.0/7").isLoopback()': False,
    'ip("127.0.0.0/8").isLoopback()': True,
    'ip("::1").isLoopback()': True,
    'ip("::1/127").isLoopback()': False,
    'ip("224.0.0.1").isMulticast()': True,
    'ip("224.0.0.0/3").isMulticast()': False,
    'ip("ff00::/8").isMulticast()': True,
    'ip("ff00::/7").isMulticast()': False,
    'ip("nonsense") == 1': "extension",
    "ip(1) == 1": "type",
    'ip("1.2.3.4").isInRange(1)': "type",
    'decimal("1.0") == decimal("1.0000")': True,
    'decimal("1.0").lessThan(decimal("1.0001"))': True,
    'decimal("1.0").lessThan(decimal("1.0"))': False,
    'decimal("1.0").lessThanOrEqual(decimal("1.0"))': True,
    'decimal("1.0").greaterThan(decimal("1.0"))': False,
    'decimal("1.0").greaterThanOrEqual(decimal("1.0"))': True,
    'decimal("1.0").lessThan(1)': "type",
    'datetime("2024-01-01T01:00:00+0100") == datetime("2024-01-01")': True,
    'datetime("1970-01-01").offset(duration("-1ms")) == datetime("1969-12-31T23:59:59.999Z")': True,
    'datetime("1969-12-31T23:59:59.999Z").toDate() == datetime("1969-12-31")': True,
    'datetime("1969-12-31T23:59:59.999Z").toTime() == duration("23h59m59s999ms")': True,
    'datetime("2024-01-02").durationSince(datetime("2024-01-01")) == duration("1d")': True,
    'datetime("2024-01-01").durationSince(datetime("2024-01-02")) == duration("-1d")': True,
    f'datetime("1970-01-02").offset(duration("{MAX}ms")) == 1': "extension",
    'datetime("1970-01-01").offset(duration("-9223372036854775808ms")).toDate() == 1': "extension",
    'datetime("1970-01-01").offset(datetime("1970-01-01")) == 1': "type",
    'duration("-36h").toDays() == -1': True,
    'duration("-90m").toHours() == -1': True,
    'duration("-90s").toMinutes() == -1': True,
    'duration("-1500ms").toSeconds() == -1': True,
    'duration("1s1ms").toMilliseconds() == 1001': True,
    "duration(1).toDays() == 1": "type",
    # The context as a whole.
    "context.missing == 1": "attribute",
    "context has missing": False,
    'context.record == {"a": 1, "b": {"c": 2}}': True,
    "context == context": True,
    "(if context.flag then context else principal).one == 1": True,
}  # fmt: skip


@pytest.mark.parametrize("expression", ROWS)
def test_an_expression_comes_to_what_cedar_says(expression: str):
    """Result or cause of the error, and cedarpy agrees on the result and on that there is an error."""
    expected = ROWS[expression]
    assert verdict(expression, ENTITIES, CONTEXT) == expected
    assert cedar_verdict(expression, ENTITIES, CONTEXT) == (None if isinstance(expected, str) else expected)


def test_wrong_arity_errs_when_it_is_reached():
    """Cedar parses `ip()` of a wrong arity and raises at run time."""
    assert verdict('true || ip("1.2.3.4", "x") == 1', ENTITIES) is True
    assert verdict('ip("1.2.3.4", "x") == 1', ENTITIES) == "arity"


def test_po_04_like_is_linear():
    """PO-04: every part of a pattern is looked for once; the worst pattern against the worst text ends at once."""
    pattern = "*a" * 2000 + "*b"
    assert verdict(f'context.t like "{pattern}"', context={"t": "a" * 200_000}) is False
    assert verdict(f'context.t like "*{"a" * 2000}b"', context={"t": "a" * 200_000}) is False


def test_several_clauses_are_checked_left_to_right():
    """A false clause before a raising one hides it; after it, it does not."""
    scope = "permit(principal, action, resource)"
    assert ask(evaluator(f"{scope} when {{ false }} when {{ 1 }};")).errors == []
    assert ask(evaluator(f"{scope} when {{ 1 }} when {{ false }};")).errors == [("policy0", "type")]
    assert ask(evaluator(f"{scope} unless {{ true }} when {{ 1 }};")).errors == []
    assert ask(evaluator(f"{scope} unless {{ false }} when {{ true }};")).outcome == "ALLOW"


# ---------------------------------------------------------------- columns


def columns(condition: str, context: dict | None = None, **options: object):
    """The evaluation of one permit in an image with live-state columns."""
    policy = f'@id("p") permit(principal, action, resource) when {{ {condition} }};'
    return ask(evaluator(policy, named=True, columns=True), context=context, **options)


def test_columns_have_their_absent_values_when_nothing_is_known():
    """Facts 2.2: no task, never untrusted (-1), unknown destination; an owner does not exist."""
    absent = (
        '!context.task.present && context.task.state == "none" && context.session.untrusted_calls_ago == -1'
        ' && context.dest == Destination::"unknown" && !(context.task has owner) && context.call.data_labels.isEmpty()'
    )
    assert columns(absent).outcome == "ALLOW"
    assert columns("context.task.owner == principal").errors == [("p", "attribute")]


def test_columns_carry_what_the_state_holds():
    """Booleans, numbers, texts, sets and entities arrive in their columns."""
    state = {
        "task": {"present": True, "max_level": 2, "owner": {"__entity": {"type": "User", "id": "alice"}}},
        "call": {"data_labels": ["pii", "secret"]},
        "dest": {"__entity": {"type": "Destination", "id": "mail"}},
    }
    condition = (
        "context.task.present && context.task.max_level >= 2 && context.task.owner == principal"
        ' && context.call.data_labels.contains("pii") && context.dest == Destination::"mail"'
    )
    assert columns(condition, state).outcome == "ALLOW"


def test_a_group_of_columns_is_a_record():
    """A policy that uses `context.approval` whole sees all of its columns, in a record's order."""
    whole = (
        'context.approval == {"state": "none", "matches": false, "self_approved": false,'
        ' "age_s": 0, "break_glass": false}'
    )
    assert columns(whole).outcome == "ALLOW"
    assert columns("[context.task].contains(context.task)").outcome == "ALLOW"


def test_the_whole_context_holds_columns_and_extras():
    """`context` as one value has every group and the caller's own attributes, which cannot take a group's name."""
    condition = "(if true then context else {}).input.n == 1 && (if true then context else {}).task.present == false"
    assert columns(condition, {"input": {"n": 1}}).outcome == "ALLOW"


@pytest.mark.parametrize("condition", ["context.input.n == 1", "context has input", "[context] == [context]"])
def test_reading_an_input_that_was_not_sent_denies(condition: str):
    """Design 5: a rule that reads what was not sent denies with input.missing.<name>, also by `has` and as a whole."""
    got = columns(condition, {"input": {"n": 1}}, unsent=["input"])
    assert (got.outcome, got.reason, got.input_missing) == ("DENY", "input.missing.input", "input")


def test_an_unsent_input_that_nobody_reads_does_not_matter():
    assert columns("!context.task.present", unsent=["input"]).outcome == "ALLOW"


# ---------------------------------------------------------------- limits


def test_an_arena_that_is_too_small_ends_in_error():
    """EVAL_LIMIT: what cannot be built is never taken for false."""
    policy = "permit(principal, action, resource) when { [1, 2, 3, 4, context.one].contains(1) };"
    got = ask(evaluator(policy), context={"one": 1}, arena_bytes=200)
    assert (got.outcome, got.reason) == ("ERROR", "limit")


def test_evaluating_leaves_nothing_behind():
    """The arena of a prepared request is as before after each evaluation, so that it can be asked for ever."""
    asked = evaluator("permit(principal, action, resource) when { [context.one, 2].contains(1) };")
    prepared = asked.prepare(ALICE, READ, DOC, encode_context({"one": 1}), arena_bytes=600)
    assert {asked.evaluate_prepared(prepared).outcome for _ in range(1000)} == {"ALLOW"}
