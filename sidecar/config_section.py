"""What every section of the configuration is made of."""

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file. Its first docstring line is its documentation."""


def doc(text: str, unit: str = "", *, ge: int | None = None, le: int | None = None) -> msgspec.Meta:
    """The documentation of a field: what it means, its unit, and its bounds."""
    return msgspec.Meta(description=text, extra={"unit": unit}, ge=ge, le=le)
