"""Cedar JSON values to cells: order, equality and refusals as the native values have them."""

import itertools

import pytest

from sidecar.errors import PolicyError
from sidecar.policy import cells
from sidecar.policy.cells import encode_context, encode_value, of_json
from tests.fix_policy import condition


def extension(function, text):
    return {"__extn": {"fn": function, "arg": text}}


def entity(type_, id_):
    return {"__entity": {"type": type_, "id": id_}}


VALUES = [
    True, False, 0, 1, -1, (1 << 63) - 1, -(1 << 63), "", "a", "b", "é", "\0", "1",
    entity("A", "x"), entity("A", "y"), entity("AA", ""), entity("A", "Ax"), entity("B", ""),
    extension("ip", "1.2.3.4"), extension("ip", "1.2.3.0/24"), extension("ip", "::1"),
    extension("decimal", "1.0"), extension("datetime", "2024-01-01"), extension("duration", "1h"),
    [], [1], [1, 2], [True], [[1]], ["1"], {}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 2},
]  # fmt: skip


def test_every_pair_is_equal_natively_when_it_is_equal_here():
    """`1`, `true` and `"1"` differ; sets forget order and duplicates, records the order of keys."""
    for left, right in itertools.product(VALUES, repeat=2):
        same = of_json(left) == of_json(right)
        assert condition("context.l == context.r", {"l": left, "r": right}) is same, (left, right)


def test_a_set_of_everything_is_accepted_by_the_native_reader():
    """Members are sorted and deduplicated exactly as the table demands: it refuses a set out of order."""
    everything = [*VALUES, *reversed(VALUES)]
    for value in VALUES:
        assert condition("context.all.contains(context.one)", {"all": everything, "one": value}) is True
    assert of_json(everything)[1] == len(VALUES)


def test_offset_calls_are_datetimes():
    """A datetime may be written as an offset from another, as Cedar prints those before 1970."""
    start, shift = extension("datetime", "2024-01-02"), extension("duration", "-1d")
    value = {"__extn": {"fn": "offset", "args": [start, shift]}}
    assert of_json(value) == of_json(extension("datetime", "2024-01-01"))


def test_equal_addresses_and_decimals_are_one_value():
    """Equality is that of values: an address is its network of one, and zeros at the end count for nothing."""
    assert of_json(extension("ip", "1.2.3.4")) == of_json(extension("ip", "1.2.3.4/32"))
    assert of_json(extension("decimal", "1.0")) == of_json(extension("decimal", "1.0000"))


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "value is null, which is no Cedar value"),
        (1.5, "value is float"),
        (1 << 63, "does not fit into 64 bits"),
        ({"a": [1, {"b": None}]}, "value.a[1].b is null"),
        ({"__entity": {"type": "A"}}, "is not an entity uid"),
        ({"__entity": {"type": "A", "id": "x"}, "more": 1}, "mixes `__entity` with other keys"),
        ({"__extn": {"fn": "ip", "arg": "1.2.3"}}, "is `1.2.3`, which is no ip"),
        ({"__extn": {"fn": "ip", "arg": 1}}, "calls `ip` with something other than one text"),
        ({"__extn": {"fn": "now", "arg": ""}}, "calls the extension function `now`"),
        ({"__extn": {"fn": "ip"}}, "has an `__extn` that is not"),
        ({"__extn": {"fn": "offset", "args": [1, 2]}}, "other than a datetime and a duration"),
        ({"__expr": "1"}, "uses `__expr`"),
        ("\ud800", "is not valid Unicode"),
        (nested(65), "is nested deeper than 64 levels"),
        (object(), "value is object"),
    ],
)
def test_what_is_no_value_is_refused_with_its_place(value, problem):
    """What JSON has and Cedar has not, what is out of range and what is too deep: by the path that leads there."""
    with pytest.raises(PolicyError) as caught:
        encode_value(value)
    assert problem in str(caught.value)


def test_offset_out_of_range_is_refused():
    """A constant that overflows is refused as it is encoded, where Cedar would err at each evaluation."""
    far = {
        "__extn": {
            "fn": "offset",
            "args": [extension("datetime", "1970-01-01"), extension("duration", f"{(1 << 63) - 1}ms")],
        }
    }
    with pytest.raises(PolicyError, match="out of range"):
        encode_value({"__extn": {"fn": "offset", "args": [far, extension("duration", "1ms")]}})


def test_64_levels_are_kept():
    """The deepest value that is taken compares as a whole."""
    assert condition("context.a == context.b", {"a": nested(63), "b": nested(63)}) is True


def test_a_context_is_a_record():
    """Nothing else can be a context in Cedar."""
    with pytest.raises(PolicyError, match="context is not a record"):
        encode_context(entity("A", "x"))


def test_uids_in_finds_entities_at_any_depth():
    """Whatever a value names must be resolved with it."""
    value = of_json({"a": [entity("A", "1"), {"b": entity("B", "2")}], "c": "no"})
    assert sorted(cells.uids_in(value)) == [("A", "1"), ("B", "2")]
