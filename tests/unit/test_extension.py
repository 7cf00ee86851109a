"""ip, decimal, datetime, duration: what Cedar takes, what it refuses, and the values."""

from __future__ import annotations

import datetime as dt
import json
import random

import cedarpy
import pytest

from fastpath.extension import parse

I64_MAX = 2**63 - 1
UTC = dt.UTC

TAKEN = {
    "ip": {
        "1.2.3.4": (False, 32, bytes(12) + bytes((1, 2, 3, 4))),
        "0.0.0.0/0": (False, 0, bytes(16)),
        "10.0.0.0/8": (False, 8, bytes(12) + bytes((10, 0, 0, 0))),
        "::": (True, 128, bytes(16)),
        "::1/128": (True, 128, bytes(15) + b"\1"),
        "1:2:3:4:5:6:7::": (True, 128, bytes.fromhex("00010002000300040005000600070000")),
        "::2:3:4:5:6:7:8": (True, 128, bytes.fromhex("00000002000300040005000600070008")),
        "ABCD::ef/64": (True, 64, bytes.fromhex("abcd00000000000000000000000000ef")),
    },
    "decimal": {
        "1.0": 10000,
        "-0.0": 0,
        "-0.5": -5000,
        "0.0001": 1,
        "000001.5": 15000,
        "922337203685477.5807": I64_MAX,
        "-922337203685477.5808": -I64_MAX - 1,
    },
    "datetime": {
        "1970-01-01": 0,
        "1969-12-31T23:59:59.999Z": -1,
        "2024-02-29": 1709164800000,
        "2000-01-01T00:00:00+0130": 946679400000,
        "2000-01-01T00:00:00-2359": 946771140000,
        "2000-01-01T12:30:01.005Z": 946729801005,
        "0000-01-01": -62167219200000,
        "9999-12-31T23:59:59.999Z": 253402300799999,
    },
    "duration": {
        "1d2h3m4s5ms": 93784005,
        "-1d": -86400000,
        "0ms": 0,
        "01d": 86400000,
        "9223372036854775807ms": I64_MAX,
        "-9223372036854775808ms": -I64_MAX - 1,
        "106751991167d7h12m55s807ms": I64_MAX,
    },
}
REFUSED = {
    "ip": [
        "", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.4/33", "1.2.3.4/032", "1.2.3.4/", "1.2.3.4/+8",
        " 1.2.3.4", "::ffff:1.2.3.4", "fe80::1%eth0", "1:::2", "12345::", "1::2:3:4:5:6:7:8", "::/129", "::/0128",
        "1.2.3.4/8/8",
    ],
    "decimal": [
        "", "1", "1.", ".5", "+1.0", "1.12345", "1.0 ", "--1.0", "1.-1", "922337203685477.5808",
        "-922337203685477.5809",
    ],
    "datetime": [
        "", "2023-02-29", "1900-02-29", "2024-13-01", "2024-00-01", "2024-01-00", "2024-1-1", "2024-01-01T24:00:00Z",
        "2024-01-01T23:59:60Z", "2024-01-01T00:00:00", "2024-01-01T00:00:00.12Z", "2024-01-01T00:00:00-2400",
        "2024-01-01T00:00:00+0160", "2024-01-01Z", "2024-01-01t00:00:00Z", "2024-01-01T00:00:00Z ",
    ],
    "duration": [
        "", "-", "5", "1ms1s", "1d1d", "1m1m", "1d 2h", "+1d", "1w", "-1d-2h", "9223372036854775808ms",
        "106751991167d7h12m55s808ms", "106751991168d",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("fn", "text"), [(fn, text) for fn, table in TAKEN.items() for text in table])
def test_a_text_that_cedar_takes_has_the_value_that_cedar_gives_it(fn: str, text: str):
    """Boundaries of each form: full i64 range, shortest and longest notation, leap days, zones on both sides."""
    assert parse(fn, text) == TAKEN[fn][text]
    assert cedar_takes(fn, [text]) == [True]


@pytest.mark.parametrize(("fn", "text"), [(fn, text) for fn, texts in REFUSED.items() for text in texts])
def test_a_text_that_cedar_refuses_is_refused(fn: str, text: str):
    """One fault each: overflow by one, a missing or doubled part, a form of another notation."""
    with pytest.raises(ValueError, match=fn):
        parse(fn, text)
    assert cedar_takes(fn, [text]) == [False]


@pytest.mark.parametrize("fn", TAKEN)
def test_mutated_texts_are_taken_or_refused_as_by_cedar(fn: str):
    """Seeded edits of valid and invalid texts."""
    rng = random.Random(fn)
    seeds = [*TAKEN[fn], *REFUSED[fn]]
    alphabet = "".join(sorted(set("".join(seeds))))
    texts = [mutated(rng, rng.choice(seeds), alphabet) for _ in range(400)]
    assert [takes(fn, text) for text in texts] == cedar_takes(fn, texts)


def test_every_day_has_the_number_that_the_calendar_gives_it():
    """The first of every month of the years 1 to 9999."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=UTC)
    for year in range(1, 10000, 7):
        for month in range(1, 13):
            day = dt.datetime(year, month, 1, tzinfo=UTC)
            assert parse("datetime", f"{year:04}-{month:02}-01") == (day - epoch) // dt.timedelta(milliseconds=1)


def test_an_unknown_constructor_is_an_error_of_ours():
    with pytest.raises(KeyError):
        parse("money", "1.00")


def takes(fn: str, text: str) -> bool:
    try:
        parse(fn, text)
    except ValueError:
        return False
    return True


def mutated(rng: random.Random, text: str, alphabet: str) -> str:
    for _ in range(rng.randint(1, 2)):
        at = rng.randint(0, len(text))
        put = rng.choice(["", rng.choice(alphabet)])
        text = text[:at] + put + text[at + rng.randint(0, 1) :]
    return text


def cedar_takes(fn: str, texts: list[str]) -> list[bool]:
    """Which texts Cedar's constructor takes: the policy of one that it refuses errs."""
    policies = "\n".join(
        f"permit(principal, action, resource) when {{ {fn}(context.t{i}) == {fn}(context.t{i}) }};"
        for i in range(len(texts))
    )
    request = {"principal": 'U::"a"', "action": 'A::"a"', "resource": 'U::"b"'}
    request["context"] = json.dumps({f"t{i}": text for i, text in enumerate(texts)})
    reasons = set(cedarpy.is_authorized(request, policies, []).diagnostics.reasons)
    return [f"policy{i}" in reasons for i in range(len(texts))]
