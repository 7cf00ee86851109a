"""A generation's file, checked byte by byte before LMDB maps it.

LMDB trusts its file: a damaged page can crash the process or lead it astray, and a page beyond the end is a SIGBUS. So
a file is given to LMDB only after its SHA-256 was the one that the manifest names (rows DB-14 to DB-16).
"""

import errno
import hashlib
import os
import stat
import struct
from io import FileIO

MAGIC = 0xBEEFC0DE
FORMAT = 1
"""Data version of LMDB 0.9; files of LMDB 1.0 (version 3) need the other engine."""

# A meta page of lmdb 0.9 on a 64-bit little-endian machine: page header (16 bytes), magic, version, address, map size,
# two databases of 48 bytes, the first of which begins with the page size, last page, transaction.
_META = struct.Struct("<16xII8x8xI92xQ8x")


def digest_of(file: FileIO) -> str:
    """ "sha256:<hex>" of a whole file."""
    file.seek(0)
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """The file at `path`, open for reading. OSError also for what is no regular file: a pipe would block its reader."""
    file = FileIO(path, "rb", opener=_opener)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def fault_of(file: FileIO, *, size: int, digest: str) -> str:
    """Why `file` is not the LMDB file of `size` bytes with the SHA-256 `digest` ("sha256:<hex>"); empty when it is."""
    # The size first: it bounds what is read.
    found = os.fstat(file.fileno()).st_size
    if found != size:
        return f"the file has {found} bytes, the manifest says {size}"
    computed = digest_of(file)
    if computed != digest:
        return f"digest of the file is {computed}, expected `{digest}`"
    return _format_fault(file, size)


def _format_fault(file: FileIO, size: int) -> str:
    """Why LMDB could not read the file, whoever wrote its digest."""
    first = os.pread(file.fileno(), _META.size, 0)
    if len(first) < _META.size:
        return "it is no LMDB file"
    page_bytes = _META.unpack(first)[2]
    for raw in (first, os.pread(file.fileno(), _META.size, page_bytes)):
        if len(raw) < _META.size:
            return "it is no whole LMDB file"
        magic, version, psize, last_page = _META.unpack(raw)
        if magic != MAGIC:
            return "it is no LMDB file"
        if version != FORMAT:
            return f"it has LMDB format {version}, this engine reads {FORMAT}"
        if psize != page_bytes or psize == 0 or (last_page + 1) * psize > size:
            return "it is no whole LMDB file"
    return ""
