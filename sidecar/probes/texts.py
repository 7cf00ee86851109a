"""jansson, utf8proc and xxHash, as the data plane uses them."""

import ctypes
from collections.abc import Callable

from fastpath.json_tree import JsonError, canonical
from sidecar.probes import Probe, Verdict, ok, unknown, unsafe

MEND = "install the distribution's own package again (apt-get install --reinstall)"
XXH3_64_OF_NOTHING = 0x2D06800538D394C2  # xxHash specification, XXH3 64-bit, empty input, seed 0
DEEP = 4096


def probes() -> list[Probe]:
    return [
        Probe("jansson: duplicate keys", duplicate_keys),
        Probe("jansson: nesting", nesting),
        Probe("utf8proc: NFC", composition),
        Probe("xxhash: known answer", known_hash),
    ]


Read = Callable[[bytes], tuple[JsonError, bytes | None]]


def duplicate_keys(read: Read = canonical) -> Verdict:
    """Of two equal keys no reader may choose one (RFC 8259 section 4 leaves it open)."""
    error, _ = read(b'{"a":1,"a":2}')
    if error == JsonError.JSON_DUPLICATE and read(b'{"a":1,"b":2}')[0] == JsonError.JSON_OK:
        return ok("refused")
    return unsafe("an object with the same key twice is read", MEND)


def nesting(read: Read = canonical) -> Verdict:
    error, _ = read(b"[" * DEEP + b"]" * DEEP)
    if error == JsonError.JSON_OK:
        return unsafe(f"{DEEP} nested lists are read, which can use up the stack", MEND)
    return ok("refused beyond its bound")


def composition() -> Verdict:
    """Two spellings of one path must become one (Unicode Annex 15)."""
    try:
        library = ctypes.CDLL("libutf8proc.so.2")
    except OSError:
        return unknown("libutf8proc.so.2 is not found", MEND)
    library.utf8proc_NFC.restype = ctypes.c_void_p
    made = library.utf8proc_NFC("e\u0301".encode())
    if not made:
        return unsafe("composes nothing", MEND)
    text = ctypes.string_at(made).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(made))
    return ok("composed") if text == "\u00e9" else unsafe(f"composes e and U+0301 to {text!a}", MEND)


def known_hash() -> Verdict:
    """Tables and indexes hold hashes: another hash would find nothing, and deny all."""
    try:
        library = ctypes.CDLL("libxxhash.so.0")
    except OSError:
        return unknown("libxxhash.so.0 is not found", MEND)
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    found = library.XXH3_64bits(b"", 0)
    return ok("right") if found == XXH3_64_OF_NOTHING else unsafe(f"XXH3 of nothing is {found:#x}", MEND)
