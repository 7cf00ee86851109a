"""The little languages of the `mapping` section: actions, path patterns and id templates.

Each function raises ValueError that names the field, the text and what is wrong with it.
"""

import re

# What proves who someone is has no place in a policy's input.
CREDENTIAL_HEADERS = frozenset(
    ("authorization", "cookie", "proxy-authorization", "x-forwarded-client-cert", "txn-token")
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[a-z0-9!#$&'+.^_`|~-]+")
_ACTION = re.compile(r'(?:((?:[A-Za-z_][A-Za-z0-9_]*::)*Action)::)?"([^"\\]+)"')
_PIECE = re.compile(r"\{([^{}]*)\}")


def require(ok: object, message: str) -> None:
    """ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def check_header(name: str) -> None:
    """A name of a request header that policies may read."""
    require(_HEADER.fullmatch(name), f"`header`: `{name}` is not a lower-case header name")
    require(name not in CREDENTIAL_HEADERS, f"`header`: `{name}` carries credentials, which policies do not read")


def qualified(type_: str, namespace: str) -> str:
    """The type with the namespace before it, unless it has one of its own or there is none."""
    return type_ if "::" in type_ or not namespace else f"{namespace}::{type_}"


def action_uid(text: str, namespace: str) -> tuple[str, str]:
    """(type, id) of `Ns::Action::"name"` or of a bare name. Raises ValueError."""
    if '"' not in text:
        return qualified("Action", namespace), text
    found = _ACTION.fullmatch(text)
    if found is None:
        raise ValueError(f'`action`: `{text}` is not an action; write Action::"name" or the bare name')
    return qualified(found[1] or "Action", namespace), found[2]


def path_segments(pattern: str) -> list[tuple[str, str]]:
    """(kind, text) per segment of a path pattern; kind is literal, star, capture or tail. Raises ValueError."""
    require(pattern.startswith("/"), f"`path`: `{pattern}` must begin with a slash")
    segments = []
    parts = pattern[1:].split("/")
    for i, part in enumerate(parts):
        if part == "*":
            segments.append(("star", ""))
        elif part == "**":
            require(i == len(parts) - 1, f"`path`: `**` must be the last segment of `{pattern}`")
            segments.append(("tail", ""))
        elif part.startswith("{") and part.endswith("}") and _NAME.fullmatch(part[1:-1]):
            segments.append(("capture", part[1:-1]))
        else:
            require(not set(part) & set("{}*?#%"), f"`path`: segment `{part}` of `{pattern}` is no pattern")
            segments.append(("literal", part))
    return segments


def template_pieces(template: str) -> list[tuple[str, str]]:
    """(kind, text) per piece of an id template; kind is literal, capture, host, method, path, header or query.

    Raises ValueError.
    """
    pieces: list[tuple[str, str]] = []
    for i, text in enumerate(_PIECE.split(template)):
        if i % 2:
            pieces.append(_placeholder(text, template))
        elif text:
            require(not set(text) & set("{}"), f"`id`: a brace in `{template}` is not closed")
            pieces.append(("literal", text))
    require(pieces, "`id`: is empty; write text or a {capture}")
    return pieces


def _placeholder(text: str, template: str) -> tuple[str, str]:
    if text in ("host", "method", "path"):
        return text, ""
    kind, dot, name = text.partition(".")
    if dot and kind == "header":
        check_header(name)
        return kind, name
    if dot and kind == "query" and name:
        return kind, name
    require(_NAME.fullmatch(text), f"`id`: `{{{text}}}` in `{template}` is not a placeholder")
    return "capture", text
