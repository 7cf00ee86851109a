"""Byte strings are kept once each, numbered as they come and ordered by their bytes, however many there are."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.elements import skip_elements
from fastpath.names import Names, inverse


@given(st.lists(st.binary(max_size=12)))
def test_numbers_and_order_are_those_of_a_dict(raws):
    """Equal strings share a number; `order` sorts as Python sorts bytes."""
    names = Names()
    numbers = names.add_all(raws)
    known = {raw: number for number, raw in enumerate(dict.fromkeys(raws))}
    assert list(numbers) == [known[raw] for raw in raws]
    assert len(names) == len(known)
    assert [names[number] for number in names.order()] == sorted(known)
    assert all(names.find(raw) == number for raw, number in known.items())


def test_a_hundred_thousand_are_found_again():
    """Growing moves text, ends and slots; nothing is lost by it."""
    names = Names()
    raws = [b"%d" % (number * 7919 % 100_003) * (number % 5 + 1) for number in range(100_000)]
    numbers = names.add_all(raws)
    assert all(names[number] == raw for number, raw in zip(numbers, raws, strict=True))
    assert names.find(b"nothing") == -1
    order = names.order()
    ranks = inverse(order)
    assert all(ranks[number] == rank for rank, number in enumerate(order))


def test_what_is_not_there_is_an_error():
    with pytest.raises(IndexError):
        Names()[0]
    with pytest.raises(TypeError):
        Names().add_all(["text"])  # type: ignore[list-item]
    with pytest.raises(IndexError):
        inverse(array("I", [3]))


@pytest.mark.parametrize(
    ("text", "at", "count", "found"),
    [
        ("[]", 1, 9, (1, 0, -1)),
        ("[ ]", 1, 9, (2, 0, -1)),
        ("[1, 2]", 1, 9, (5, 2, -1)),
        ("[1, 2]", 1, 1, (2, 1, 3)),
        ("[1,", 1, 1, (2, 1, 3)),
        ("[1,", 3, 1, (3, 0, -2)),
        ('[{"a": [1, "],}\\"", 2]}, 3]', 1, 1, (23, 1, 24)),
        ('["\\', 1, 9, (3, 1, -2)),
        ('["é", "\U0001f600,"]', 1, 1, (4, 1, 5)),
    ],
)
def test_elements_are_passed_over_by_brackets_and_strings(text, at, count, found):
    """Commas and brackets inside strings and deeper brackets do not count."""
    assert skip_elements(text, at, count, 1 << 20) == found
