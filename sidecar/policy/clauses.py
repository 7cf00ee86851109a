"""The `when` and `unless` of a policy as its author wrote them, split into conjuncts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sidecar.policy.lexer import TOKEN

Kind = Literal["when", "unless"]


@dataclass(frozen=True, slots=True)
class ClauseText:
    """One clause; `conjuncts` joined by `&&` are its condition."""

    kind: Kind
    conjuncts: tuple[str, ...]


def split_clauses(text: str) -> list[ClauseText]:
    """The clauses of one policy that Cedar accepts, in order, without comments and line breaks.

    A condition with `||` or `if` outside of brackets is one conjunct, since both bind weaker than `&&`.
    """
    out = []
    tokens = _tokens(text)
    depth = 0
    before = ""
    for kind, token in tokens:
        depth += (kind == "open") - (kind == "close")
        if depth == 0 and token in ("when", "unless") and before != "@":
            out.append(ClauseText("when" if token == "when" else "unless", _conjuncts(tokens)))
        before = token
    return out


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    for match in TOKEN.finditer(text):
        kind = match.lastgroup or ""
        yield ("space", " ") if kind in ("skip", "newline") else (kind, match.group())


def _conjuncts(tokens: Iterator[tuple[str, str]]) -> tuple[str, ...]:
    """Read `{ .. }` and split what is inside at its `&&`."""
    parts = [""]
    depth = 0
    whole = False
    for kind, token in tokens:
        depth += (kind == "open") - (kind == "close")
        if depth == 0 and kind == "close":
            break
        if depth == 1 and kind == "open":
            continue  # the clause's own bracket: every other one is deeper
        if depth == 1 and token == "&&":
            parts.append("")
            continue
        whole = whole or (depth == 1 and token in ("||", "if"))
        if kind != "space" or not parts[-1].endswith(" "):
            parts[-1] += token
    texts = [part.strip() for part in parts]
    return (" && ".join(texts),) if whole else tuple(texts)
