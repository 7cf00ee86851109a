"""JSON of any depth, read without recursion: what cedarpy makes of a chain of 10,000 `&&` nests as deeply."""

import json
import re
from typing import Any

_DECODER = json.JSONDecoder()
_NEXT = re.compile(r'[\s,:]*(?:([{\[])|([}\]])|(")|([^\s,:{}\[\]"]+))')


def loads(text: str) -> Any:
    """The document in `text`, which must be well formed as cedarpy writes it. ValueError when it is not."""
    root: list[Any] = []
    stack: list[Any] = [root]
    keys: list[str | None] = [None]
    at = 0
    while match := _NEXT.match(text, at):
        at = match.end()
        opened, closed, quote, scalar = match.groups()
        if closed:
            stack.pop()
            keys.pop()
            continue
        value: Any
        if quote:
            value, at = _DECODER.raw_decode(text, at - 1)
            if isinstance(stack[-1], dict) and keys[-1] is None:
                keys[-1] = value
                continue
        else:
            value = ({} if opened == "{" else []) if opened else json.loads(scalar)
        _add(stack[-1], keys, value)
        if opened:
            stack.append(value)
            keys.append(None)
    if len(stack) != 1 or len(root) != 1 or text[at:].strip():
        raise ValueError("not one complete JSON document")
    return root[0]


def _add(container: Any, keys: list[str | None], value: Any) -> None:
    if isinstance(container, dict):
        container[keys[-1]] = value
        keys[-1] = None
    else:
        container.append(value)
