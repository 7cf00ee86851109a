"""One generation's rule table: opened from LMDB, verified once, then read in place."""
import contextlib
import hashlib
import os
import struct
import weakref

import lmdb
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from fastpath.columns import COLUMNS as _COLUMNS
from fastpath.image cimport NONE32, Header, InputShape, Node, Policy, Posting, Span, Type
from fastpath.structure cimport Fault, structure_check
from fastpath.value cimport UID_UNKNOWN, Cell, Field, Ip, Uid, type_hash, uid_equal, uid_type
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp

from fastpath.errors import RuleTableError
from fastpath.lmdb_file import fault_of, open_regular

IMAGE_KEY = b"image"

# struct formats of image.pxd and value.pxd for whoever writes an image; checked against the C compiler's sizes below.
LAYOUT = {
    "Span": "<QII",
    "Posting": "<QII",
    "Cell": "<BBHIq",
    "Field": "<BBHIqBBHIq",
    "Uid": "<QIIII",
    "Ip": "<BB6x16s",
    "Header": "<8sIIQ2Q8I9QQIIQIIQII",
    "Node": "<QIIQ" + 2 * "BBHIq" + 6 * "QII",
    "Type": "<QII" + 2 * "QII",
    "Policy": "<5B3x6IQIIQ" + 5 * "QII",
    "InputShape": "<IIQ",
}
SIZES = {
    "Span": sizeof(Span),
    "Posting": sizeof(Posting),
    "Cell": sizeof(Cell),
    "Field": sizeof(Field),
    "Uid": sizeof(Uid),
    "Ip": sizeof(Ip),
    "Header": sizeof(Header),
    "Node": sizeof(Node),
    "Type": sizeof(Type),
    "Policy": sizeof(Policy),
    "InputShape": sizeof(InputShape),
}

if SIZES != {name: struct.calcsize(form) for name, form in LAYOUT.items()}:
    raise ImportError("table.pyx and image.pxd disagree about the layout of an image")


# ---------------------------------------------------------------- lookups


cdef inline const uint32_t *rows_at(const Table *t, uint64_t off) noexcept nogil:
    return <const uint32_t *> (t.image + off)


cdef const Node *table_node(const Table *t, uint32_t index) noexcept nogil:
    if index == UID_UNKNOWN:
        return NULL
    return <const Node *> (t.image + t.header.off_nodes) + index


cdef const Policy *table_policy(const Table *t, uint32_t index) noexcept nogil:
    return <const Policy *> (t.image + t.header.off_policies) + index


cdef uint32_t table_find(const Table *t, const Uid *uid) noexcept nogil:
    cdef const uint32_t *slots = rows_at(t, t.header.off_uid_slots)
    cdef uint32_t mask = t.header.uid_slots - 1
    cdef uint32_t slot = <uint32_t> uid.hash & mask
    # INVARIANT (free slots): at least half of the slots are free, so every probe ends (structure.pyx).
    while slots[slot] != NONE32:
        if uid_equal(<const Uid *> (t.image + table_node(t, slots[slot]).off_uid), uid):
            return slots[slot]
        slot = (slot + 1) & mask
    return UID_UNKNOWN


cdef uint32_t find_type(const Table *t, const Uid *uid) noexcept nogil:
    cdef const uint32_t *slots = rows_at(t, t.header.off_type_slots)
    cdef const Type *types = <const Type *> (t.image + t.header.off_types)
    cdef uint32_t mask = t.header.type_slots - 1
    cdef uint32_t slot = <uint32_t> type_hash(uid_type(uid), uid.type_len) & mask
    cdef const Span *name
    while slots[slot] != NONE32:
        name = &types[slots[slot]].name
        if name.n == uid.type_len and memcmp(t.image + name.off, uid_type(uid), name.n) == 0:
            return slots[slot]
        slot = (slot + 1) & mask
    return UID_UNKNOWN


cdef void table_resolve(const Table *t, Uid *uid) noexcept nogil:
    uid.index = table_find(t, uid)
    if uid.index != UID_UNKNOWN:
        uid.type_index = (<const Uid *> (t.image + table_node(t, uid.index).off_uid)).type_index
    else:
        uid.type_index = find_type(t, uid)


cdef bint node_is_in(const Table *t, const Node *node, uint32_t ancestor) noexcept nogil:
    cdef const uint32_t *rows = rows_at(t, node.off_ancestors)
    cdef uint32_t low = 0
    cdef uint32_t high = node.ancestor_count
    cdef uint32_t middle
    while low < high:
        middle = low + (high - low) // 2
        if rows[middle] == ancestor:
            return True
        if rows[middle] < ancestor:
            low = middle + 1
        else:
            high = middle
    return False


cdef bint table_is_in(const Table *t, const Uid *uid, uint32_t ancestor) noexcept nogil:
    if uid.index == UID_UNKNOWN or ancestor == UID_UNKNOWN:
        # Every uid of the table has a node, so a uid without one equals none of them.
        return False
    return uid.index == ancestor or node_is_in(t, table_node(t, uid.index), ancestor)


# ---------------------------------------------------------------- the owner


cdef bytes _aligned(object data):
    """The same bytes in memory of our own: values that LMDB keeps inside a page lie at odd addresses."""
    return bytes(data)


class _File:
    """One open LMDB file with its read transaction. All tables over it share it, since a process can open it only once;
    the last one that lets go of it closes it.
    """

    def __init__(self, file):
        self.file = file
        # By its descriptor: what was verified is what gets mapped, whatever bears the name by now.
        self.env = lmdb.open(
            f"/proc/self/fd/{file.fileno()}", readonly=True, lock=False, subdir=False, max_spare_txns=0
        )
        self.txn = self.env.begin(buffers=True)
        self.image = self.txn.get(IMAGE_KEY)


_files = weakref.WeakValueDictionary()      # by device and inode


def _file_at(path, digest, size):
    """The verified file at `path`; OSError or lmdb.Error when it cannot be opened, RuleTableError when it is another.

    INVARIANT (digest first): LMDB sees no byte of a file before all of them gave the digest of the manifest.
    """
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open_regular(path))
        fault = fault_of(file, size=size, digest=digest)
        if fault:
            raise RuleTableError(fault)
        found = os.fstat(file.fileno())
        key = (found.st_dev, found.st_ino)
        known = _files.get(key)
        if known is None:
            known = _files[key] = _File(file)
            opened.pop_all()
    return known


cdef class Generation:
    """An immutable rule table. Made by `from_bytes` or `open`; both verify it whole before anyone can use it."""

    def __cinit__(self):
        self.table.image = NULL
        self.table.header = NULL

    @staticmethod
    def from_bytes(image, *, generation=0, str digest="", strict=True):
        """A table over `image` (bytes-like; a bytes object is kept, not copied).

        `digest`, "sha256:" and hex, is compared when given. Raises RuleTableError naming section and cause.
        """
        cdef Generation made = Generation.__new__(Generation)
        made._take(image if isinstance(image, bytes) else bytes(image), generation, digest, strict)
        return made

    @staticmethod
    def open(path, *, generation, str digest, size, str file_digest, file_size, strict=True):
        """The table in the LMDB file at `path`, which has `file_size` bytes and the SHA-256 `file_digest`; its image
        has `size` bytes and the SHA-256 `digest` (each "sha256:<hex>").

        Opened read-only, without a lock file: a generation's file never changes. Raises RuleTableError when the file
        cannot be read, or is not what the manifest says.
        """
        cdef Generation made = Generation.__new__(Generation)
        if not digest or not file_digest:
            raise RuleTableError(f"generation {generation}: the manifest names no digest")
        try:
            file = _file_at(path, file_digest, file_size)
        except RuleTableError as fault:
            raise RuleTableError(f"generation {generation}: `{path}` is damaged: {fault}; publish it again") from None
        except (OSError, lmdb.Error) as error:
            raise RuleTableError(f"generation {generation}: cannot read `{path}`: {error}; publish it again") from None
        if file.image is None:
            raise RuleTableError(f"generation {generation}: `{path}` holds no image; publish it again")
        if len(file.image) != size:
            raise RuleTableError(
                f"generation {generation}: `{path}` holds {len(file.image)} bytes, the manifest says {size}"
            )
        made._take(file.image, generation, digest, strict)
        made._file = file
        return made

    cdef int _take(self, object image, generation, str digest, strict) except -1:
        """Verify `image` and point the table into it.

        INVARIANT (mapped image): the object that owns the memory, and for LMDB the file with its transaction and
        environment, live in this object until close(); ending a transaction under a pointer into its values is a crash.
        """
        cdef Py_buffer view
        cdef Fault fault
        cdef const uint8_t *base
        cdef uint64_t size
        cdef int bad
        computed = f"sha256:{hashlib.sha256(image).hexdigest()}"
        if digest and digest != computed:
            raise RuleTableError(f"generation {generation}: digest of the image is {computed}, expected `{digest}`")
        PyObject_GetBuffer(image, &view, PyBUF_SIMPLE)
        if <uintptr_t> view.buf % 8:
            PyBuffer_Release(&view)
            image = _aligned(image)
            PyObject_GetBuffer(image, &view, PyBUF_SIMPLE)
        base, size = <const uint8_t *> view.buf, view.len
        # The buffer's export ends here; `_buffer` keeps the memory itself alive and nothing of ours resizes it.
        PyBuffer_Release(&view)
        with nogil:
            bad = structure_check(base, size, &fault)
        if bad:
            where = f"{fault.section.decode()}[{fault.row}]"
            raise RuleTableError(f"generation {generation}: {where}: {fault.cause.decode()}; publish it again")
        self._buffer = image
        self._digest = computed.encode()
        self.table.image = base
        self.table.header = <const Header *> base
        self.table.generation = generation
        self.table.digest.p = self._digest
        self.table.digest.n = <uint32_t> len(self._digest)
        self.table.strict = bool(strict)
        _open_tables.add(self)
        return 0

    cdef const Table *enter(self) except NULL:
        if self.table.image is NULL or self._closing:
            raise RuleTableError("the generation is closed")
        self._users += 1
        return &self.table

    cdef int leave(self) except -1:
        self._users -= 1
        if self._closing and self._users == 0:
            self._release()
        return 0

    cdef int _release(self) except -1:
        self.table.image = NULL
        self.table.header = NULL
        self._buffer = None
        self._file = None
        return 0

    cpdef close(self):
        """Let go of the memory, at once or when the last call in progress ends. May be called again."""
        self._closing = True
        if self._users == 0:
            self._release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ------------------------------------------------------------ what people ask

    cdef const Header *_header(self) except NULL:
        if self.table.header is NULL:
            raise RuleTableError("the generation is closed")
        return self.table.header

    cdef str _text(self, const Span *span):
        return (<const char *> self.table.image + span.off)[:span.n].decode()

    @property
    def generation(self):
        """Number from the manifest; 0 for an image that a test made."""
        return self.table.generation

    @property
    def digest(self):
        """ "sha256:<hex>" of the image."""
        return self._digest.decode()

    @property
    def strict(self):
        """Whether an error in a forbid whose scope matches denies."""
        return bool(self.table.strict)

    @property
    def closed(self):
        return self.table.header is NULL

    @property
    def policy_count(self):
        return self._header().policy_count

    @property
    def entity_count(self):
        return self._header().entity_count

    @property
    def columns_read(self):
        """Paths below `context` of the live-state columns that some policy reads, in the order of Column."""
        cdef const Header *header = self._header()
        return [row[0] for i, row in enumerate(_COLUMNS) if (header.columns_read[i >> 6] >> (i & 63)) & 1]

    @property
    def extras_read(self):
        """Other names below `context` that some policy reads; "*" when one reads `context` whole."""
        cdef str text = self._text(&self._header().extras_read)
        return text.split("\0") if text else []

    @property
    def policy_ids(self):
        """Ids of all policies, in the table's order."""
        cdef uint32_t count = self._header().policy_count
        cdef uint32_t i
        return [self._text(&table_policy(&self.table, i).id) for i in range(count)]


# ---------------------------------------------------------------- fork

_open_tables = weakref.WeakSet()
_forked = []


def _poison():
    """In a forked child: no table may be read, and nothing that the parent still maps may be closed (row DB-13)."""
    cdef Generation table
    for table in list(_open_tables):
        table.table.image = NULL
        table.table.header = NULL
        _forked.append((table, table._file, table._buffer))
        table._file = table._buffer = None
    _files.clear()


os.register_at_fork(after_in_child=_poison)
