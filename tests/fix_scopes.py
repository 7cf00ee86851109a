"""Random scopes and calls over a small world, so that they often meet."""

import random

from sidecar.authority.covers import Call
from sidecar.authority.scope import ArgRule, ArgValue, Scope

SERVERS = ("bank", "mail")
TOOLS = ("bank/pay", "bank/read", "mail/send", "mail/read")
GROUPS = {"bank/pay": {"money"}, "bank/read": {"money", "reads"}, "mail/send": set(), "mail/read": {"reads"}}
ACTIONS = ("read", "send", "change", "bank/pay")
CLASSES = {"read": {"observe"}, "send": {"change", "egress"}, "change": set(), "bank/pay": {"send", "change"}}
HOSTS = ("bank.example", "a.mail.example", "b.a.mail.example", "mail.example", "evil.example")
PATTERNS = (*HOSTS, "*.example", "*.mail.example", "*.a.mail.example")
ZONES = {"bank.example": {"internal"}, "evil.example": {"public"}}
LABELS = ("pii", "secret", "source")
METHODS = ("GET", "POST")
PATHS = ("amount", "to", "risk")
VARIANTS = ("Amount", "TO", "ri\u017fk", "ris\u212a", "amounts")
URLS = (
    "https://x.mail.example", "HTTPS://MAIL.EXAMPLE.:8443/a?b#c", "mail.example:443", "mail.example:", "//mail.example",
    "https://evil.com;.mail.example", "https://evil.com\uff0f.mail.example", "https://evil.com\u3002mail.example",
    "https://mail.example:443@evil.com", "https://evil.com\\.mail.example", "https://evil.com#.mail.example",
    "https://evil.com,.mail.example", "https://mail.example\t.evil.com", "https://x.mail.example..", "x..mail.example",
    "https://[::1].mail.example", "https:mail.example", "x/://mail.example", "1x://mail.example", "a:1:2",
    "https://evil.com&.mail.example", "https://evil.com'.mail.example", "mail.example:x", "https://mai\u212a.example",
    "javascript://mail.example/%0aalert(1)", "https://evil.com\x7f.mail.example", "*.mail.example", ".mail.example",
)  # fmt: skip
ADDRESSES = ("10.1.2.3/8", "10.0.0.0/4", "010.1.2.3", "::ffff:10.1.2.3", "10.1.2", " 10.1.2.3", "10.1.2.3%eth0", "::1")
VALUES: tuple[ArgValue, ...] = (1, 5, 50, True, "a", "ab", "b", "x.mail.example", "10.1.2.3", "10.9.0.1")
RULES = (
    ("eq", (5,)), ("eq", ("a",)), ("eq", (True,)), ("in", (1, 5)), ("in", ("a", "ab")), ("in", (1, "10.1.2.3")),
    ("range", (0, 10)), ("range", (2, 6)), ("range", (5, 5)), ("range", (9, 1)),
    ("prefix", ("a",)), ("prefix", ("ab", "a")), ("prefix", ("ab",)),
    ("host_suffix", ("example",)), ("host_suffix", ("mail.example",)),
    ("cidr", ("10.0.0.0/8",)), ("cidr", ("10.1.0.0/16",)), ("cidr", ("::/0",)),
)  # fmt: skip


def some(rng: random.Random, of: tuple[str, ...], share: float = 0.5) -> tuple[str, ...]:
    return tuple(one for one in of if rng.random() < share)


def rule(rng: random.Random) -> ArgRule:
    op, values = rng.choice(RULES)
    return ArgRule(rng.choice(("", *TOOLS, "bank/*")), rng.choice(PATHS), op, values)


def scope(rng: random.Random) -> Scope:
    """Any scope."""
    return Scope(
        any_tool=rng.random() < 0.3,
        tools=some(rng, (*TOOLS, "bank/*")),
        tool_groups=some(rng, ("money", "reads"), 0.3),
        any_action=rng.random() < 0.3,
        actions=some(rng, (*ACTIONS, "observe")),
        any_dest=rng.random() < 0.3,
        destinations=some(rng, PATTERNS, 0.3),
        zones=some(rng, ("internal", "public"), 0.3),
        max_level=rng.randrange(5),
        label_allow=None if rng.random() < 0.5 else some(rng, LABELS),
        label_deny=some(rng, LABELS, 0.2),
        methods=None if rng.random() < 0.5 else some(rng, METHODS, 0.7),
        arg_rules=tuple(rule(rng) for _ in range(rng.choice((0, 0, 1, 2)))),
    )


def near(rng: random.Random, parent: Scope) -> Scope:
    """A scope that differs from `parent` in a few fields, in any direction."""
    other = scope(rng)
    fields = {name: getattr(parent, name) for name in parent.__struct_fields__}
    for name in rng.sample(sorted(fields), rng.randrange(4)):
        mine, theirs = fields[name], getattr(other, name)
        if isinstance(mine, tuple) and rng.random() < 0.6:
            fields[name] = tuple(one for one in mine if rng.random() < 0.7)
            if name in ("arg_rules", "label_deny"):
                fields[name] = (*mine, *theirs)
        else:
            fields[name] = theirs
    return Scope(**fields)


def arguments(rng: random.Random) -> dict[str, object]:
    """Mostly plain values; also hosts and addresses that readers differ about, and names but for case."""
    given: dict[str, object] = {
        path: rng.choice(rng.choice((VALUES, VALUES, URLS, ADDRESSES))) for path in some(rng, PATHS, 0.8)
    }
    if rng.random() < 0.1:
        given[rng.choice(VARIANTS)] = rng.choice(VALUES)
    return given


def call(rng: random.Random) -> Call:
    """Any call."""
    tool, action, host = rng.choice(TOOLS), rng.choice(ACTIONS), rng.choice(HOSTS)
    return Call(
        tool=tool,
        action=action,
        destination=host,
        tool_groups=frozenset(GROUPS[tool]),
        action_classes=frozenset(CLASSES[action]),
        zones=frozenset(ZONES.get(host, ())),
        level=rng.choice((0, 0, 1, 2, 4)),
        labels=frozenset(some(rng, LABELS, 0.2)),
        method=rng.choice(METHODS),
        arguments=arguments(rng),
    )
