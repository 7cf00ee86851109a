"""The class of a tool without trust in its server: operator, then the verb of its name; annotations only raise.

Source: MCP specification, tool annotations ("untrusted unless from a trusted server"); an unknown tool is the worst.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# From harmless to dangerous: a less trusted source can only move a tool to the right.
DANGER = ("list", "read", "write", "delete", "send", "execute", "admin")

VERBS: dict[str, tuple[str, ...]] = {
    "list": ("list", "ls", "enumerate"),
    "read": (
        "get", "read", "fetch", "show", "describe", "search", "find", "query", "lookup", "view", "count", "browse",
    ),
    "write": (
        "create", "add", "update", "set", "put", "write", "edit", "insert", "upload", "append", "save", "move",
        "rename", "schedule", "reschedule", "upsert", "patch", "modify", "reserve", "book",
    ),
    "delete": ("delete", "remove", "purge", "drop", "destroy", "cancel", "clear", "erase"),
    "send": (
        "send", "email", "mail", "publish", "notify", "post", "share", "reply", "forward", "invite", "transfer", "pay",
        "submit", "tweet",
    ),
    "execute": ("run", "exec", "execute", "eval", "invoke", "call", "deploy", "start", "stop", "restart"),
    "admin": ("grant", "revoke", "configure", "enable", "disable", "approve", "install", "promote", "impersonate"),
}  # fmt: skip
_CLASS_OF = {verb: class_ for class_, verbs in VERBS.items() for verb in verbs}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_JOINS = {"and", "or", "then"}


class ToolClass(NamedTuple):
    """A class and where it comes from: `operator`, `name`, `annotations` or `unknown`."""

    name: str
    source: str


def worse(a: str, b: str) -> str:
    """The more dangerous of two classes."""
    return max(a, b, key=DANGER.index)


def by_name(tool: str) -> str | None:
    """The class that the tool's name says, or None.

    The first word decides, and every word behind `and`, `or` and `then`: `get_and_delete` deletes.
    """
    words = [word.lower() for word in _WORDS.findall(tool)]
    verbs = words[:1] + [word for before, word in itertools.pairwise(words) if before in _JOINS]
    classes = [_CLASS_OF[verb] for verb in verbs if verb in _CLASS_OF]
    if not words or words[0] not in _CLASS_OF:
        return None
    return max(classes, key=DANGER.index)


def by_annotations(annotations: Any) -> str:
    """The least class that the server itself admits to; `list` when it admits nothing.

    `destructiveHint` defaults to true once `readOnlyHint` is stated false. No annotation makes a tool more harmless.
    """
    if not isinstance(annotations, Mapping):
        return DANGER[0]
    least = DANGER[0]
    if annotations.get("readOnlyHint") is False:
        least = "write" if annotations.get("destructiveHint") is False else "delete"
    if annotations.get("destructiveHint") is True:
        least = worse(least, "delete")
    if annotations.get("openWorldHint") is True and least != DANGER[0]:
        least = worse(least, "send")
    return least


def classify(tool: str, annotations: Any, operator: str | None) -> ToolClass:
    """The class of a tool. `operator` is what the configuration says, or None."""
    if operator is not None:
        return ToolClass(operator, "operator")
    named = by_name(tool)
    if named is None:
        return ToolClass("execute", "unknown")
    worst = worse(named, by_annotations(annotations))
    return ToolClass(worst, "name" if worst == named else "annotations")
