"""Cedar source text of names and strings, and grammar-aware texts of extension values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
KEYWORDS = frozenset(
    [
        "true",
        "false",
        "if",
        "then",
        "else",
        "in",
        "is",
        "like",
        "has",
        "permit",
        "forbid",
        "when",
        "unless",
        "principal",
        "action",
        "resource",
        "context",
    ]
)
ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0", "\\": "\\\\", '"': '\\"', "'": "\\'"}


def quoted(text: str, rng: Random | None = None, *, pattern: bool = False) -> str:
    """`text` as a Cedar string literal, with escapes where needed and (given `rng`) sometimes where not.

    With `pattern` it is a `like` pattern without wildcards: stars are escaped.
    """
    made = []
    for char in text:
        if char == "*" and pattern:
            made.append("\\*")
        elif char in ESCAPES:
            raw = char in "\t'" and rng is not None and rng.random() < 0.5
            made.append(char if raw else ESCAPES[char])
        elif ord(char) < 32 or (rng is not None and rng.random() < 0.02):
            made.append(f"\\u{{{ord(char):x}}}")
        else:
            made.append(char)
    return '"' + "".join(made) + '"'


def is_plain(name: str) -> bool:
    """Whether `name` may follow a dot."""
    return bool(PLAIN.match(name)) and name not in KEYWORDS and not name.startswith("__")


def uid_text(uid: dict[str, str]) -> str:
    """A uid as Cedar text."""
    return f"{uid['type']}::{quoted(uid['id'])}"


def pick(rng: Random, weighted: Sequence[tuple[float, object]]) -> object:
    """One of the values, by weight."""
    return rng.choices([value for _, value in weighted], [weight for weight, _ in weighted])[0]


# ---------------------------------------------------------------- extension texts

DECIMALS = (
    "0.0", "1.0", "1.0000", "-0.0", "0.1", "0.0001", "-0.0001", "12.34", "1.23", "-1.5", "99.9999", "+1.0", "1.",
    ".5", "1", "", "-", "1.00000", "01.50", "-01.5", "922337203685477.5807", "922337203685477.5808",
    "-922337203685477.5808", "-922337203685477.5809", "922337203685478.0", "1e3", " 1.0", "1.0 ", "1,0",
    "\u0661.\u0660", "--1.0", "1.0.0",
)  # fmt: skip
IPS = (
    "0.0.0.0", "1.2.3.4", "1.2.3.4/32", "1.2.3.4/24", "1.2.3.0/24", "10.0.0.0/8", "10.1.2.3", "127.0.0.1",
    "127.0.0.2/8", "127.0.0.0/7", "224.0.0.1", "239.255.255.255", "224.0.0.0/4", "224.0.0.0/3", "255.255.255.255",
    "0.0.0.0/0", "1.2.3.4/33", "1.2.3.4/0", "01.2.3.4", "1.2.3", "1.2.3.256", "1.2.3.4/", "1.2.3.4/08", "1.2.3.4/+8",
    "::", "::/0", "::1", "::1/128", "::1/127", "::1/129", "2001:db8::", "2001:db8::/32", "2001:DB8::1",
    "2001:db8:0:0:0:0:0:1", "ff00::", "ff00::/8", "ff02::1", "fe80::1%eth0", "::ffff:1.2.3.4", "::1.2.3.4", "1::2::3",
    "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7::", "12345::", " 1.2.3.4", "1.2.3.4 ", "[::1]", "::0001",
    "::00001", "", "/", "1.2.3.4/24/8", "::/00", "::/064", "::/256", "a", "1.2.3.4/1a",
)  # fmt: skip
DATETIMES = (
    "1970-01-01", "1969-12-31", "2024-02-29", "2023-02-29", "1900-02-29", "2000-02-29", "0000-01-01", "0000-02-29",
    "9999-12-31", "10000-01-01", "2024-13-01", "2024-00-10", "2024-04-31", "2024-01-00", "2024-1-1",
    "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.001Z", "1969-12-31T23:59:59.999Z",
    "1970-01-01T24:00:00Z", "1970-01-01T23:60:00Z", "1970-01-01T23:59:60Z", "1970-01-01T01:00:00+0100",
    "1970-01-01T00:00:00.000+0000", "1969-12-31T23:00:00-0100", "1970-01-01T00:00:00+2359",
    "1970-01-01T00:00:00-2359", "1970-01-01T00:00:00+2400", "1970-01-01T00:00:00+0060", "1970-01-01T00:00:00+01:00",
    "9999-12-31T23:59:59.999-2359", "0000-01-01T00:00:00.000+2359", "2024-10-15T11:35:00Z", "2024-10-15T11:35:00.5Z",
    "2024-10-15T11:35:00.0000Z", "2024-10-15T11:35Z", "2024-10-15 11:35:00Z", "2024-10-15t11:35:00z",
    "2024-10-15T11:35:00", "2024-10-15Z", "+2024-10-15", "", "2016-12-31T23:59:60Z", "-0001-01-01",
)  # fmt: skip
DURATIONS = (
    "1ms", "0ms", "-0ms", "1s", "-1s", "1m", "1h", "1d", "1d2h3m4s5ms", "-1d2h3m4s5ms", "2h1d", "1s1s", "1ms1s",
    "1h30m", "90m", "-", "", "1", "ms", "1 s", " 1s", "1s ", "1d-2h", "+1s", "1.5s", "9223372036854775807ms",
    "9223372036854775808ms", "-9223372036854775808ms", "-9223372036854775809ms", "106751991167d", "106751991168d",
    "-106751991167d", "9223372036854775s", "9223372036854776s", "106751991167d7h12m55s807ms",
    "106751991167d7h12m55s808ms", "-106751991167d7h12m55s808ms", "-106751991167d7h12m55s809ms", "0d0h0m0s0ms",
    "00001s", "1D", "1w", "86400000ms", "25h", "61s", "-1ms", "-25h", "-1d1ms", "99999999999999999999d", "1ms1",
    "1dd",
)  # fmt: skip
TEXTS = {"decimal": DECIMALS, "ip": IPS, "datetime": DATETIMES, "duration": DURATIONS}
ALPHABETS = {
    "decimal": "0123456789.-+5e ",
    "ip": "0123456789.:/abcfF% ",
    "datetime": "0123456789-:TZ+.tz",
    "duration": "0123456789dhms- ",
}
# Texts that every parser takes, for values that have to be right.
GOOD = {
    "decimal": ("0.0", "1.0", "1.0000", "-1.5", "0.1", "99.9999", "922337203685477.5807", "-922337203685477.5808",
                "12.34"),
    "ip": ("1.2.3.4", "1.2.3.4/32", "10.0.0.0/8", "10.1.2.3", "127.0.0.1", "::1", "2001:db8::/32", "2001:db8::1",
           "ff02::1", "0.0.0.0/0", "::/0", "224.0.0.1", "10.0.0.0/9", "127.0.0.0/7"),
    "datetime": ("1970-01-01", "1969-12-31", "2024-02-29", "1969-12-31T23:59:59.999Z", "2024-10-15T11:35:00Z",
                 "1970-01-01T01:00:00+0100", "1970-01-01T00:00:00Z", "9999-12-31", "0000-01-01",
                 "2024-10-15T11:35:00.500-0230"),
    "duration": ("0ms", "1ms", "-1ms", "1s", "90m", "1h30m", "1d", "-25h", "1d2h3m4s5ms", "9223372036854775807ms",
                 "-9223372036854775808ms", "86400000ms", "-1d1ms"),
}  # fmt: skip


def random_decimal(rng: Random) -> str:
    digits = str(rng.choice((0, 1, 9, 10, 99, 922337203685477, rng.randrange(10**15))))
    return rng.choice(("", "", "-")) + digits + "." + "".join(rng.choices("05789", k=rng.choice((1, 2, 3, 4, 4, 5))))


def random_ip(rng: Random) -> str:
    if rng.random() < 0.5:
        text = ".".join(str(rng.choice((0, 1, 10, 127, 128, 223, 224, 239, 240, 255, 256))) for _ in range(4))
        return text + rng.choice(("", "", f"/{rng.choice((0, 1, 7, 8, 23, 24, 31, 32, 33))}"))
    groups = [
        rng.choice(("0", "1", "ff", "db8", "ff00", "FFFF", "7f00", "8000"))
        for _ in range(rng.choice((8, 8, 4, 2, 7, 9)))
    ]
    if len(groups) < 8 and rng.random() < 0.8:
        groups.insert(rng.randrange(len(groups) + 1), "")
    text = ":".join(groups)
    text = ":" + text if text.startswith(":") else text
    text = text + ":" if text.endswith(":") else text
    return text + rng.choice(("", "", f"/{rng.choice((0, 1, 8, 32, 64, 127, 128, 129))}"))


def random_datetime(rng: Random) -> str:
    year, month = rng.choice((0, 1, 1600, 1899, 1900, 1969, 1970, 2000, 2023, 2024, 9999)), rng.randrange(0, 14)
    text = f"{year:04}-{month:02}-{rng.choice((0, 1, 2, 28, 29, 30, 31, 32)):02}"
    if rng.random() < 0.3:
        return text
    text += f"T{rng.choice((0, 1, 12, 23, 24)):02}:{rng.choice((0, 1, 59, 60)):02}:{rng.choice((0, 30, 59, 60)):02}"
    text += rng.choice(("", f".{rng.choice((0, 1, 500, 999)):03}"))
    sign, hours, minutes = rng.choice("+-"), rng.choice((0, 1, 12, 23, 24)), rng.choice((0, 30, 59, 60))
    return text + rng.choice(("Z", "Z", f"{sign}{hours:02}{minutes:02}"))


def random_duration(rng: Random) -> str:
    units = sorted(rng.sample(("d", "h", "m", "s", "ms"), rng.randrange(1, 6)), key=("d", "h", "m", "s", "ms").index)
    if rng.random() < 0.1:
        rng.shuffle(units)
    return rng.choice(("", "", "-")) + "".join(
        f"{rng.choice((0, 1, 23, 24, 59, 60, 999, 1000, 106751991167))}{u}" for u in units
    )


RANDOM = {"decimal": random_decimal, "ip": random_ip, "datetime": random_datetime, "duration": random_duration}


def extension_text(rng: Random, kind: str, *, wild: bool) -> str:
    """A text for the constructor of `kind`; `wild` ones are often refused by it."""
    if not wild:
        return rng.choice(GOOD[kind])
    text = rng.choice(TEXTS[kind]) if rng.random() < 0.5 else RANDOM[kind](rng)
    return mutated(rng, text, ALPHABETS[kind]) if rng.random() < 0.3 else text


def mutated(rng: Random, text: str, alphabet: str) -> str:
    """`text` with one character inserted, dropped, swapped or changed."""
    at = rng.randrange(len(text) + 1)
    kind = rng.randrange(4)
    if kind == 0 or not text:
        return text[:at] + rng.choice(alphabet) + text[at:]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2 and at + 1 < len(text):
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + rng.choice(alphabet) + text[at + 1 :]
