"""What kind of file system a folder lies on (statfs(2))."""

import ctypes
import os

# linux/magic.h and the file systems' own sources. A file that another machine can change or take away must not be
# mapped: the mapping would end in SIGBUS, and a rename is no commit point there.
REMOTE = {
    0x6969: "nfs",
    0x517B: "smb",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x01021997: "9p",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x5346414F: "afs",
    0x6B414653: "afs",
    0x73757245: "coda",
}
VOLATILE = {0x01021994: "tmpfs", 0x858458F6: "ramfs"}
_STATFS_BYTES = 1024
"""More than struct statfs has on any machine; its first member is `f_type`, a long."""


def filesystem_magic(path: str) -> int:
    """`f_type` of the file system that holds `path`; OSError when the path cannot be reached."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if libc.statfs(os.fsencode(path), found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF
