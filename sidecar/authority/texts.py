"""What a text of a request may be."""

from sidecar.authority.errors import invalid

TEXT_BYTES_MAX = 1024


def check_text(field: str, text: str, *, empty: bool = False) -> None:
    """Refuse what cannot be stored and shown."""
    if not text and not empty:
        raise invalid(field, "is empty")
    # What is printable has no surrogates.
    if not text.isprintable() or len(text) > TEXT_BYTES_MAX or len(text.encode()) > TEXT_BYTES_MAX:
        raise invalid(field, f"is longer than {TEXT_BYTES_MAX} bytes, or not printable")
