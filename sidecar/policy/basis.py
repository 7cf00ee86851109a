"""What a compiled base holds beside its image: all that an edit is checked against and that the image does not tell."""

import msgspec

from fastpath.rowview import Rows
from fastpath.table import Generation
from sidecar.errors import RuleTableError
from sidecar.policy.compile import CompileReport, TemplateUse

BASIS_KEY = b"basis"
"""Its key in the LMDB file of a base."""


class Basis(msgspec.Struct, frozen=True):
    """The schema's text, the templates by id, and how and to what the base was compiled."""

    schema: str | None
    columns: bool
    templates: dict[str, TemplateUse]
    report: CompileReport


def basis_of(base: Generation) -> Basis:
    """What `base`, opened from a store, was compiled with. RuleTableError for one that cannot be edited."""
    raw = Rows(base).value_of(BASIS_KEY)
    if raw is None:
        raise RuleTableError("the generation in force cannot be edited; run remit policy publish once")
    try:
        return msgspec.json.decode(raw, type=Basis)
    except msgspec.DecodeError as error:
        raise RuleTableError(
            f"the generation in force cannot be edited: {str(error).lower()}; run remit policy publish once"
        ) from None
