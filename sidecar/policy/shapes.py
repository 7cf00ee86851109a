"""Policies that differ in literals alone share one shape, which is capped, parsed, validated and compiled once.

A shape is a policy's text with its annotations' values, its entities' ids and the strings behind `==` taken out
("lifted") and markers in their place. None of these can change how Cedar parses the rest or types it: the validator
judges an entity literal by its type alone, except actions and enumerated types, which are never lifted. Which literals
are equal belongs to the shape, since the validator knows that `A::"x" == A::"x"` is true.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sidecar.policy.drafts import Draft
from sidecar.policy.literals import mark

Key = tuple[object, ...]

# A whole policy of the ordinary form. Strings that are lifted hold neither escapes nor ends of lines.
PLAIN = re.compile(
    r"""(?:\s++|//[^\n\r]*+)*+
    (?P<head>(?:@[A-Za-z_]\w*+\s*+(?:\(\s*+"[^"\\\n]*+"\s*+\)\s*+)?+)*+
        (?:permit|forbid)\s*+\((?:[^()"/;]++|"[^"\\\n]*+")*+\))
    (?P<tail>(?:[^;"/]++|"(?:[^"\\\n]|\\[^\n])*+"|/(?!/))*+;)""",
    re.VERBOSE | re.ASCII,
)
_ID = re.compile(r"@id\s*\($", re.ASCII)


@dataclass(slots=True)
class Shape:
    """What policies of one shape share. A policy with nothing to lift is a shape of its own."""

    text: str
    """The policy with markers for its lifted literals."""
    id_at: int = -1
    """Which literal is the value of `@id`, -1 for none."""
    tail: Key | None = None
    """Equal for shapes with equal conditions; None when that is not known."""
    est: dict[str, Any] = field(default_factory=dict)
    """Cedar's JSON form of `text`; filled by the parser, without `conditions` where it made a draft of them."""
    template: bool = False
    draft: Draft | None = None
    cache: dict[str, Any] = field(default_factory=dict)
    """What the compiler made of it, by purpose."""


class Shapes:
    """The shapes of one policy set."""

    def __init__(self, verbatim: Iterable[str] = ()) -> None:
        """`verbatim` names entity types whose ids matter to the validator, beside actions."""
        types = sorted({"Action", *(name.rpartition("::")[2] for name in verbatim)})
        entity = "(?<=::)" + "".join(f"(?<!{re.escape(name)}::)" for name in types)
        plain, other = r'"([^"\\\n]*+)"', r'|("(?:[^"\\\n]|\\[^\n])*+")'
        self._head = re.compile(rf"(?:(?<=\()|{entity}){plain}{other}")
        # Not behind a literal: the validator compares two literals by value.
        self._tail = re.compile(rf"(?:(?<=[\w\]] [=!]= )|{entity}){plain}{other}", re.ASCII)
        self._known: dict[Key, Shape] = {}

    def lift(self, head: str, tail: str, confirm: Callable[[], bool]) -> tuple[Shape, tuple[str, ...]] | None:
        """The shape of a policy and its literals; None when `confirm` refuses the first policy of a new shape."""
        heads, tails = self._head.split(head), self._tail.split(tail)
        values = tuple([value for value in heads[1::3] + tails[1::3] if value is not None])
        same: tuple[int, ...] = ()
        if len(set(values)) != len(values):
            same = tuple([values.index(value) for value in values])
        behind = (*tails[0::3], None, *tails[2::3])
        key = (*heads[0::3], None, *heads[2::3], behind, same)
        shape = self._known.get(key)
        if shape is None:
            if not confirm():
                return None
            shape = self._known[key] = _made(heads, tails, (behind, same))
        return shape, values


def _made(heads: list[str | None], tails: list[str | None], tail: Key) -> Shape:
    parts: list[str] = []
    number, id_at = 0, -1
    for i, part in enumerate([*heads, *tails]):
        # `split` gives text, lifted, other string, text, ..; head and tail both begin and end with text.
        lifted = (i if i < len(heads) else i - len(heads)) % 3 == 1
        if part is None:
            continue
        if lifted:
            if id_at < 0 and i < len(heads) and _ID.search(parts[-1]):
                id_at = number
            part = f'"{mark(number)}"'
            number += 1
        parts.append(part)
    before = sum(part is not None for part in heads[1::3])
    return Shape("".join(parts), id_at, (*tail, before))
