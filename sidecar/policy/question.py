"""One question to a policy set, as people write it in tests and on the command line."""

import re
from typing import Any

import msgspec

from fastpath.evaluator import Evaluation, Evaluator
from sidecar.errors import PolicyError
from sidecar.policy.cells import Uid, encode_context
from sidecar.policy.schema_text import unescape

_UID = re.compile(r'((?:[A-Za-z_][A-Za-z0-9_]*::)*[A-Za-z_][A-Za-z0-9_]*)::("(?:[^"\\]|\\.)*")', re.DOTALL)


def parse_uid(text: str, what: str = "uid") -> Uid:
    """(type, id) of Cedar text such as `Agent::"a"`. PolicyError names `what` when it is not one."""
    match = _UID.fullmatch(text.strip())
    if match is None:
        raise PolicyError(f'{what} is `{text}`; an entity like Agent::"a" is expected')
    return match.group(1), unescape(match.group(2))


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who wants to do what to which resource, and what the sidecar knows about the call."""

    principal: str
    action: str
    resource: str
    resource_parent: str = ""
    """Taken as the resource's only parent when the entities do not hold the resource."""
    context: dict[str, Any] = {}
    """Cedar JSON under `context`. Live-state columns that are not given have their absent values."""
    unsent: list[str] = []
    """Names under `context`, like `input`, that the caller did not send."""

    def arguments(self) -> tuple[Uid, Uid, Uid, bytes, dict[str, Any]]:
        """What Evaluator.evaluate takes: three uids, the context's cells, and the rest by name."""
        parent = parse_uid(self.resource_parent, "resource_parent") if self.resource_parent else None
        return (
            parse_uid(self.principal, "principal"),
            parse_uid(self.action, "action"),
            parse_uid(self.resource, "resource"),
            encode_context(self.context),
            {"resource_parent": parent, "unsent": tuple(self.unsent)},
        )


def ask(evaluator: Evaluator, question: Question) -> Evaluation:
    """The decision on `question`. PolicyError when it is malformed."""
    principal, action, resource, context, rest = question.arguments()
    try:
        return evaluator.evaluate(principal, action, resource, context, **rest)
    except ValueError as error:
        raise PolicyError(f"request cannot be evaluated: {error}") from None
