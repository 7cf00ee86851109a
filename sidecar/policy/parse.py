"""Cedar policy text to parsed policies: split by our lexer, parsed by cedarpy, chunk by chunk."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cedarpy

from sidecar.errors import PolicyError
from sidecar.policy import deepjson
from sidecar.policy.lexer import Piece, PolicyText, split
from sidecar.policy.limits import PolicyLimits

# A chunk bounds the memory of one call to cedarpy and the search for the policy that it refuses.
CHUNK_POLICIES = 512
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Parsed:
    """One policy or template: its text and place, and its Cedar JSON form ("EST")."""

    piece: Piece
    est: dict[str, Any]
    template: bool
    position: int

    @property
    def annotations(self) -> dict[str, str]:
        """Annotations by name; one without a value has the empty text (Cedar docs "Annotations")."""
        return {name: value or "" for name, value in self.est.get("annotations", {}).items()}


def chunks(pieces: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    start = size = 0
    for i, piece in enumerate(pieces):
        if i > start and (i - start == CHUNK_POLICIES or size + len(piece.text) > CHUNK_BYTES):
            yield pieces[start:i]
            start, size = i, 0
        size += len(piece.text)
    if start < len(pieces):
        yield pieces[start:]


def text_of(pieces: Iterable[Piece]) -> str:
    return "\n".join(piece.text for piece in pieces)


def _est(text: str) -> dict[str, Any]:
    document = cedarpy.policies_to_json_str(text)
    try:
        return json.loads(document)
    except RecursionError:
        return deepjson.loads(document)


def first_refused(pieces: Sequence[Piece], check: Callable[[str], object]) -> tuple[Piece, ValueError] | None:
    """The first piece whose text alone makes `check` raise ValueError."""
    for piece in pieces:
        try:
            check(piece.text)
        except ValueError as error:
            return piece, error
    return None


def _parse_chunk(pieces: Sequence[Piece], position: int) -> list[Parsed]:
    try:
        document = _est(text_of(pieces))
    except ValueError as error:
        found = first_refused(pieces, cedarpy.policies_to_json_str)
        if found is None:
            raise PolicyError(f"policies from {pieces[0].where} on cannot be parsed: {error}") from None
        raise PolicyError(f"{found[0].title} cannot be parsed: {found[1]}") from None
    static, templates = document["staticPolicies"], document["templates"]
    if len(static) + len(templates) != len(pieces):
        raise PolicyError(f"policies from {pieces[0].where} on are split in another way than Cedar reads them")
    parsed = []
    for i, piece in enumerate(pieces):
        name = f"policy{i}"
        template = name in templates
        parsed.append(Parsed(piece, templates[name] if template else static[name], template, position + i))
    return parsed


def split_all(sources: Sequence[PolicyText], limits: PolicyLimits) -> list[Piece]:
    """The policies of all texts, in order, after every cap has held."""
    pieces: list[Piece] = []
    size = 0
    for source in sources:
        pieces += split(source, limits)
        size += len(source.text.encode())
        if size > limits.text_bytes_max:
            raise PolicyError(f"policies up to `{source.name}` have more than {limits.text_bytes_max} bytes together")
    if len(pieces) > limits.policies_max:
        raise PolicyError(f"there are {len(pieces)} policies; at most {limits.policies_max} are compiled")
    return pieces


def parse(pieces: Sequence[Piece]) -> list[Parsed]:
    """Each piece parsed by cedarpy. PolicyError names the policy, its place and the cause."""
    parsed: list[Parsed] = []
    for chunk in chunks(pieces):
        parsed += _parse_chunk(chunk, len(parsed))
    return parsed
