"""One generation's rule table: opened from LMDB, verified once, then read in place."""
import contextlib
import hashlib
import os
import struct
import weakref

import lmdb
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from fastpath.columns import COLUMNS as _COLUMNS
from fastpath.image cimport (
    NODE_DEEP,
    NODE_PARENT,
    NONE32,
    POLICY_GONE,
    DeltaHeader,
    Entries,
    Entry,
    Header,
    InputShape,
    List,
    Node,
    Note,
    Policy,
    Slot,
    Span,
    Totals,
    Type,
)
from fastpath.delta_check cimport delta_check
from fastpath.rowcheck cimport Fault
from fastpath.rows cimport (
    deep_parent,
    list_rows,
    node_uid,
    policy_order,
    prefetch,
    span_text,
    table_at,
    table_base,
    table_delta,
    table_node,
    table_policy,
    table_type,
)
from fastpath.structure cimport structure_check
from fastpath.value cimport UID_UNKNOWN, Cell, Field, Ip, type_hash, uid_equal, uid_type
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memset

from fastpath.errors import RuleTableError
from fastpath.lmdb_file import fault_of, open_regular
from fastpath.resident import fetch, keep

IMAGE_KEY = b"image"
DELTA_KEY = b"delta"

# struct formats of image.pxd and value.pxd for whoever writes an image; checked against the C compiler's sizes below.
_TOTALS = "QQ6III"
LAYOUT = {
    "Span": "<II",
    "List": "<II",
    "Entry": "<II",
    "Entries": "<II",
    "Slot": "<II",
    "Cell": "<BBHIq",
    "Field": "<BBHIqBBHIq",
    "Uid": "<QIIII",
    "Ip": "<BB6x16s",
    "Totals": "<" + _TOTALS,
    "Header": "<8sIIQ" + _TOTALS + "II11Q" + 3 * "II",
    "Node": "<II" + 3 * "II" + "II" + "88s",
    "Type": "<" + 3 * "II",
    "Policy": "<5B3x6I" + 4 * "II",
    "Note": "<" + 4 * "II",
    "InputShape": "<II",
    "DeltaHeader": "<8sIIQQ32s" + _TOTALS + "12I11QII",
}
SIZES = {
    "Span": sizeof(Span),
    "List": sizeof(List),
    "Entry": sizeof(Entry),
    "Entries": sizeof(Entries),
    "Slot": sizeof(Slot),
    "Cell": sizeof(Cell),
    "Field": sizeof(Field),
    "Uid": sizeof(Uid),
    "Ip": sizeof(Ip),
    "Totals": sizeof(Totals),
    "Header": sizeof(Header),
    "Node": sizeof(Node),
    "Type": sizeof(Type),
    "Policy": sizeof(Policy),
    "Note": sizeof(Note),
    "InputShape": sizeof(InputShape),
    "DeltaHeader": sizeof(DeltaHeader),
}

if SIZES != {name: struct.calcsize(form) for name, form in LAYOUT.items()}:
    raise ImportError("table.pyx and image.pxd disagree about the layout of an image")


# ---------------------------------------------------------------- lookups


cdef uint32_t find_uid(const Table *t, const Slot *slots, uint32_t n, const Uid *uid) noexcept nogil:
    cdef uint32_t tag = <uint32_t> (uid.hash >> 32)
    cdef uint32_t at = <uint32_t> uid.hash & (n - 1)
    # INVARIANT (free slots): at least half of the slots are free, so every probe ends (structure.pyx).
    while slots[at].row != NONE32:
        if slots[at].tag == tag and uid_equal(node_uid(t, slots[at].row), uid):
            return slots[at].row
        at = (at + 1) & (n - 1)
    return UID_UNKNOWN


cdef uint32_t table_find(const Table *t, const Uid *uid) noexcept nogil:
    cdef uint32_t found = find_uid(t, <const Slot *> (t.image + t.header.off_uid_slots), t.header.uid_slots, uid)
    if found == UID_UNKNOWN and t.delta is not NULL:
        return find_uid(t, <const Slot *> (t.delta_image + t.delta.off_uid_slots), t.delta.uid_slots, uid)
    return found


cdef uint32_t find_type(
    const Table *t, const Slot *slots, uint32_t n, const char *name, uint32_t length
) noexcept nogil:
    cdef uint64_t hash_ = type_hash(name, length)
    cdef uint32_t at = <uint32_t> hash_ & (n - 1)
    cdef const Span *found
    while slots[at].row != NONE32:
        if slots[at].tag == <uint32_t> (hash_ >> 32):
            found = &table_type(t, slots[at].row).name
            if found.n == length and memcmp(table_at(t, found.at), name, length) == 0:
                return slots[at].row
        at = (at + 1) & (n - 1)
    return UID_UNKNOWN


cdef uint32_t table_find_type(const Table *t, const char *name, uint32_t n) noexcept nogil:
    cdef uint32_t found = find_type(
        t, <const Slot *> (t.image + t.header.off_type_slots), t.header.type_slots, name, n
    )
    if found == UID_UNKNOWN and t.delta is not NULL:
        return find_type(t, <const Slot *> (t.delta_image + t.delta.off_type_slots), t.delta.type_slots, name, n)
    return found


cdef void table_resolve(const Table *t, Uid *uid) noexcept nogil:
    uid.index = table_find(t, uid)
    if uid.index != UID_UNKNOWN:
        uid.type_index = node_uid(t, uid.index).type_index
    else:
        uid.type_index = table_find_type(t, uid_type(uid), uid.type_len)


cdef void table_fetch_slot(const Table *t, const Uid *uid) noexcept nogil:
    if uid.index == UID_UNKNOWN:
        prefetch(<const Slot *> (t.image + t.header.off_uid_slots) + (<uint32_t> uid.hash & (t.header.uid_slots - 1)))


cdef void table_fetch_row(const Table *t, const Uid *uid) noexcept nogil:
    """It may be another's row of the same tag, which costs a fetch and no more."""
    cdef const Slot *slots = <const Slot *> (t.image + t.header.off_uid_slots)
    cdef uint32_t tag = <uint32_t> (uid.hash >> 32)
    cdef uint32_t mask = t.header.uid_slots - 1
    cdef uint32_t at = <uint32_t> uid.hash & mask
    cdef uint32_t index = uid.index
    cdef const char *row
    if index == UID_UNKNOWN:
        while slots[at].row != <uint32_t> NONE32 and slots[at].tag != tag:
            at = (at + 1) & mask
        index = slots[at].row
    if index < t.header.totals.node_count:
        row = <const char *> (t.nodes + index)
        prefetch(row)
        prefetch(row + 64)


cdef bint list_has(const Table *t, const List *list_, uint32_t row) noexcept nogil:
    cdef const uint32_t *rows = list_rows(t, list_)
    cdef uint32_t low = 0
    cdef uint32_t high = list_.n
    cdef uint32_t middle
    while low < high:
        middle = low + (high - low) // 2
        if rows[middle] == row:
            return True
        if rows[middle] < row:
            low = middle + 1
        else:
            high = middle
    return False


cdef bint node_is_in(const Table *t, const Node *node, uint32_t ancestor) noexcept nogil:
    cdef const uint32_t *parents
    cdef const Node *parent
    cdef uint32_t i
    if node.flags & NODE_PARENT:
        return list_has(t, &node.closure, ancestor)
    if list_has(t, &node.parents, ancestor):
        return True
    if t.delta is NULL and not node.flags & NODE_DEEP:
        return False
    parents = list_rows(t, &node.parents)
    for i in range(node.parents.n):
        parent = deep_parent(t, node, parents[i])
        if parent is not NULL and list_has(t, &parent.closure, ancestor):
            return True
    return False


cdef bint table_is_in(const Table *t, const Uid *uid, uint32_t ancestor) noexcept nogil:
    if uid.index == UID_UNKNOWN or ancestor == UID_UNKNOWN:
        # Every uid of the table has a node, so a uid without one equals none of them.
        return False
    return uid.index == ancestor or node_is_in(t, table_node(t, uid.index), ancestor)


# ---------------------------------------------------------------- the owner


cdef object _aligned(object data):
    """`data`, or the same bytes in memory of our own: values that LMDB keeps inside a page lie at odd addresses."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    odd = <uintptr_t> view.buf % 8
    PyBuffer_Release(&view)
    return bytes(data) if odd else data


cdef const uint8_t *_memory(object data) except NULL:
    """Where the bytes of `data` are. Whoever keeps the pointer keeps `data`, which nothing of ours resizes."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    PyBuffer_Release(&view)
    return <const uint8_t *> view.buf


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
        self.state = None        # of the file when all of it gave `digest`
        self.digest = ""
        self.values = {}         # by key: the aligned value
        self.unlocked = ""       # why its pages are not held in memory, as the name of an errno
        self.checked = set()     # SHA-256 of values whose structure is sound by themselves

    def value(self, key):
        """The value under `key`, aligned, or None."""
        if key not in self.values:
            found = self.txn.get(key)
            self.values[key] = None if found is None else _aligned(found)
            if found is not None and self.values[key] is found:
                self.unlocked = self.unlocked or keep(found)
        return self.values[key]


_files = weakref.WeakValueDictionary()      # by device and inode


def _file_at(path, digest, size):
    """The verified file at `path`; OSError or lmdb.Error when it cannot be opened, RuleTableError when it is another.

    INVARIANT (digest first): LMDB sees no byte of a file before all of them gave the digest of the manifest. A file
    that is open here and was not written since is not read again: a delta over a large base costs the delta.
    """
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open_regular(path))
        found = os.fstat(file.fileno())
        state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = _files.get((found.st_dev, found.st_ino))
        if known is not None and known.state == state and known.digest == digest and size == found.st_size:
            return known
        if found.st_size == size:
            fetch(file.fileno(), size)
        fault = fault_of(file, size=size, digest=digest)
        if fault:
            raise RuleTableError(fault)
        if known is None:
            known = _files[found.st_dev, found.st_ino] = _File(file)
            opened.pop_all()
        known.state, known.digest = state, digest
    return known


def _value_at(generation, path, key, named):
    """(open file, value) of `path` as the manifest describes it: digest, size, file_digest, file_size."""
    digest, size, file_digest, file_size = named
    if not digest or not file_digest:
        raise RuleTableError(f"generation {generation}: the manifest names no digest")
    try:
        file = _file_at(path, file_digest, file_size)
    except RuleTableError as fault:
        raise RuleTableError(f"generation {generation}: `{path}` is damaged: {fault}; publish it again") from None
    except (OSError, lmdb.Error) as error:
        raise RuleTableError(f"generation {generation}: cannot read `{path}`: {error}; publish it again") from None
    value = file.value(key)
    if value is None:
        raise RuleTableError(f"generation {generation}: `{path}` holds no {key.decode()}; publish it again")
    if len(value) != size:
        raise RuleTableError(f"generation {generation}: `{path}` holds {len(value)} bytes, the manifest says {size}")
    return file, value


cdef str _digest_of(object value, str wanted, generation, str what):
    computed = f"sha256:{hashlib.sha256(value).hexdigest()}"
    if wanted and wanted != computed:
        raise RuleTableError(f"generation {generation}: digest of the {what} is {computed}, expected `{wanted}`")
    return computed


cdef int _refuse(const Fault *fault, generation) except -1:
    where = f"{fault.section.decode()}[{fault.row}]"
    raise RuleTableError(f"generation {generation}: {where}: {fault.cause.decode()}; publish it again")


cdef uint64_t _tables = 0     # made so far; under the GIL


cdef class Generation:
    """An immutable rule table. Made by `from_bytes` or `open`; both verify it whole before anyone can use it."""

    def __cinit__(self):
        memset(&self.table, 0, sizeof(Table))

    @staticmethod
    def from_bytes(image, *, generation=0, str digest="", strict=True, delta=None):
        """A table over `image` (bytes-like; a bytes object is kept, not copied), with `delta` over it when given.

        `digest`, "sha256:" and hex, is compared when given. Raises RuleTableError naming section and cause.
        """
        cdef Generation made = Generation.__new__(Generation)
        made._take(image if isinstance(image, bytes) else bytes(image), generation, digest, None)
        if delta is not None:
            made._lay(delta if isinstance(delta, bytes) else bytes(delta), "", None)
        made._begin(generation, strict)
        return made

    @staticmethod
    def open(
        path, *, generation, str digest, size, str file_digest, file_size, strict=True, delta=None
    ):
        """The table in the LMDB file at `path`, which has `file_size` bytes and the SHA-256 `file_digest`; its image
        has `size` bytes and the SHA-256 `digest` (each "sha256:<hex>"). `delta` names the file of a delta over it by
        `path` and the same four.

        Opened read-only, without a lock file: a generation's file never changes. Raises RuleTableError when a file
        cannot be read, or is not what the manifest says.
        """
        cdef Generation made = Generation.__new__(Generation)
        file, image = _value_at(generation, path, IMAGE_KEY, (digest, size, file_digest, file_size))
        made._take(image, generation, digest, file)
        if delta is not None:
            named = (delta.digest, delta.size, delta.file_digest, delta.file_size)
            file, value = _value_at(generation, delta.path, DELTA_KEY, named)
            made._lay(value, delta.digest, file)
        made._begin(generation, strict)
        return made

    cdef int _take(self, object image, generation, str digest, object file) except -1:
        """Verify `image` and point the table into it; what lies in an open `file` is verified once.

        INVARIANT (mapped image): the object that owns the memory, and for LMDB the file with its transaction and
        environment, live in this object until close(); ending a transaction under a pointer into its values is a crash.
        """
        cdef Fault fault
        cdef const uint8_t *base
        cdef uint64_t size = len(image)
        cdef int bad = 0
        image = _aligned(image)
        base = _memory(image)
        if file is None or digest not in file.checked:
            digest = _digest_of(image, digest, generation, "image")
            with nogil:
                bad = structure_check(base, size, &fault)
            if bad:
                _refuse(&fault, generation)
            if file is not None:
                file.checked.add(digest)
        self._buffer, self._file = image, file
        self._base_digest = self._digest = digest.encode()
        table_base(&self.table, base)
        self.table.generation = generation
        return 0

    cdef int _lay(self, object delta, str digest, object file) except -1:
        """Verify `delta` against the base that the table has, and lay it over."""
        cdef Fault fault
        cdef const uint8_t *image
        cdef bytes base_digest = bytes.fromhex(self._base_digest.removeprefix(b"sha256:").decode())
        cdef const uint8_t *base = base_digest
        cdef uint64_t size = len(delta)
        cdef int bad
        delta = _aligned(delta)
        digest = _digest_of(delta, digest, self.table.generation, "delta")
        image = _memory(delta)
        with nogil:
            bad = delta_check(&self.table, base, image, size, &fault)
        if bad:
            _refuse(&fault, self.table.generation)
        self._delta_buffer, self._delta_file = delta, file
        both = hashlib.sha256(self._base_digest + digest.encode()).hexdigest()
        self._digest = f"sha256:{both}".encode()
        table_delta(&self.table, image)
        return 0

    cdef int _begin(self, generation, strict) except -1:
        global _tables
        _tables += 1
        self.table.serial = _tables
        self._sha256 = bytes.fromhex(self._digest.removeprefix(b"sha256:").decode())
        self.table.digest.p = self._sha256
        self.table.digest.n = <uint32_t> len(self._sha256)
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
        self.table.delta = NULL
        self.table.delta_image = NULL
        self._buffer = self._delta_buffer = None
        self._file = self._delta_file = None
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

    cdef const Totals *_totals(self) except NULL:
        if self.table.header is NULL:
            raise RuleTableError("the generation is closed")
        return self.table.totals

    cdef str _text(self, const Span *span):
        cdef Text text = span_text(&self.table, span)
        return text.p[:text.n].decode()

    cdef object in_order(self):
        cdef uint32_t count = self._totals().policy_rows
        cdef uint32_t i
        if self.table.delta is NULL:
            return range(count)
        rows = [
            (policy_order(&self.table, i), i) for i in range(count)
            if not table_policy(&self.table, i).flags & POLICY_GONE
        ]
        return [i for _, i in sorted(rows)]

    @property
    def generation(self):
        """Number from the manifest; 0 for an image that a test made."""
        return self.table.generation

    @property
    def digest(self):
        """ "sha256:<hex>" of the image; with a delta, of its digest and the delta's as text, joined."""
        return self._digest.decode()

    @property
    def base_digest(self):
        """ "sha256:<hex>" of the image, whatever lies over it."""
        return self._base_digest.decode()

    @property
    def strict(self):
        """Whether an error in a forbid whose scope matches denies."""
        return bool(self.table.strict)

    @property
    def closed(self):
        return self.table.header is NULL

    @property
    def unlocked(self):
        """Why the table's pages are not locked into memory, as the name of an errno: EPERM, ENOMEM and EAGAIN speak of
        RLIMIT_MEMLOCK. Empty: they are, or it was not made from files.
        """
        return next((file.unlocked for file in (self._file, self._delta_file) if file and file.unlocked), "")

    @property
    def policy_count(self):
        return self._totals().policy_count

    @property
    def entity_count(self):
        return self._totals().entity_count

    @property
    def columns_read(self):
        """Paths below `context` of the live-state columns that some policy reads, in the order of Column."""
        cdef const Totals *totals = self._totals()
        return [row[0] for i, row in enumerate(_COLUMNS) if (totals.columns_read[i >> 6] >> (i & 63)) & 1]

    @property
    def extras_read(self):
        """Other names below `context` that some policy reads; "*" when one reads `context` whole."""
        cdef str text = self._text(&self._totals().extras_read)
        return text.split("\0") if text else []

    @property
    def policy_ids(self):
        """Ids of all policies, in the table's order."""
        return [self._text(&table_policy(&self.table, i).id) for i in self.in_order()]


# ---------------------------------------------------------------- fork

_open_tables = weakref.WeakSet()
_forked = []


def _poison():
    """In a forked child: no table may be read, and nothing that the parent still maps may be closed (row DB-13)."""
    cdef Generation table
    for table in list(_open_tables):
        table.table.image = NULL
        table.table.header = NULL
        table.table.delta = NULL
        table.table.delta_image = NULL
        _forked.append((table, table._file, table._buffer, table._delta_file, table._delta_buffer))
        table._file = table._buffer = table._delta_file = table._delta_buffer = None
    _files.clear()


os.register_at_fork(after_in_child=_poison)
