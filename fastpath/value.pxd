"""Cedar values in flat memory: cells, uids, and the per-call arena.

A cell is 16 bytes and position-independent: what it points to is found by adding `v` to the cell's own address, so the
same cell works inside a mapped generation, inside an arena and from one to the other. Copying a cell therefore means
`cell_copy`, never plain assignment.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cpdef enum Kind:
    KIND_ABSENT = 0      # no value: an optional column that is not set
    KIND_BOOL = 1        # v is 0 or 1
    KIND_LONG = 2        # v is the i64
    KIND_STRING = 3      # n bytes of UTF-8 at v
    KIND_ENTITY = 4      # a Uid at v; n is 0
    KIND_SET = 5         # n Cells at v, sorted by cell_compare, no duplicates
    KIND_RECORD = 6      # n Fields at v, sorted by key bytes, no duplicates
    KIND_DECIMAL = 7     # v is the value times 10,000
    KIND_IP = 8          # an Ip at v; n is 0
    KIND_DATETIME = 9    # v is milliseconds since 1970-01-01T00:00:00Z
    KIND_DURATION = 10   # v is milliseconds


cpdef enum CellFlag:
    CELL_SANITISED = 1   # text that a peer altered (bad UTF-8 replaced): equals no policy constant, matches no `like`


cdef struct Cell:
    uint8_t kind
    uint8_t flags
    uint16_t reserved
    uint32_t n
    int64_t v


cdef struct Field:       # one entry of a record
    Cell key             # KIND_STRING
    Cell value


cdef struct Uid:         # 24 bytes, then the type's text, then the id's text, padded to 8
    uint64_t hash        # XXH3-64 of type text + id text, seed = type_len
    uint32_t index       # row in the table's nodes; UID_UNKNOWN when the table does not name it
    uint32_t type_index  # row in the table's types; UID_UNKNOWN when the table does not name the type
    uint32_t type_len
    uint32_t id_len


cdef struct Ip:          # 24 bytes
    uint8_t v6           # 0: IPv4 in addr[12..15] (addr[0..11] are 0), 1: IPv6
    uint8_t prefix       # 0..32 or 0..128
    uint8_t reserved[6]
    uint8_t addr[16]     # network byte order


cdef struct Arena:       # bump allocator, one per call in flight, reset when it ends; never grows
    uint8_t *base
    size_t used
    size_t cap
    int failed           # set once an allocation did not fit; the call then ends in ERROR


cdef enum:
    UID_UNKNOWN = 0xFFFFFFFF
    VALUE_DEPTH_MAX = 64  # nesting of sets and records; deeper values are refused where they are built


cdef inline void *cell_at(const Cell *c) noexcept nogil:
    """Address of what a string, entity, set, record or ip cell points to."""
    return <void *> (<const uint8_t *> c + c.v)


cdef inline void cell_point(Cell *c, const void *p) noexcept nogil:
    """Make `c` point to `p`; the caller has set kind and n."""
    c.v = <const uint8_t *> p - <const uint8_t *> c


cdef inline const char *uid_type(const Uid *u) noexcept nogil:
    return <const char *> u + sizeof(Uid)


cdef inline const char *uid_id(const Uid *u) noexcept nogil:
    return <const char *> u + sizeof(Uid) + u.type_len


cdef inline void *arena_take(Arena *a, size_t n) noexcept nogil:
    """`n` bytes aligned to 8, or NULL with `a.failed` set. Not zeroed."""
    cdef size_t at = (a.used + 7) & ~(<size_t> 7)
    if n > a.cap or at > a.cap - n:
        a.failed = 1
        return NULL
    a.used = at + n
    return a.base + at


cdef void cell_copy(Cell *to, const Cell *source) noexcept nogil
cdef void cell_bool(Cell *c, bint b) noexcept nogil
cdef void cell_long(Cell *c, int64_t i) noexcept nogil
cdef void cell_string(Cell *c, const char *p, uint32_t n) noexcept nogil   # borrows p
cdef void cell_entity(Cell *c, const Uid *u) noexcept nogil                # borrows u
# Total order; 0 iff equal in Cedar's sense. By kind number first, then: bool, long, decimal, datetime, duration by v
# as a signed number; string by CELL_SANITISED (unaltered first), then by bytes (memcmp of the common length, then the
# shorter first: Python's order of bytes); entity by the type's bytes, then by the id's bytes (each as for strings);
# ip by v6, prefix, addr bytes; set by n, then member by member; record by n, then key, value, key, value. Python:
# (kind, v), (kind, bytes), (kind, type, id), (kind, v6, prefix, addr), (kind, n, *..).
cdef int cell_compare(const Cell *a, const Cell *b) noexcept nogil
cdef bint uid_equal(const Uid *a, const Uid *b) noexcept nogil
cdef uint64_t uid_hash(const char *text, uint32_t type_len, uint32_t id_len) noexcept nogil
# XXH3-64 of a type's text, seed 0: the hash of a type slot. Python: fastpath.value.text_hash.
cdef uint64_t type_hash(const char *text, uint32_t n) noexcept nogil
# Order of two texts as cell_compare has it: negative, 0 or positive.
cdef int text_compare(const char *a, uint32_t a_len, const char *b, uint32_t b_len) noexcept nogil
# A Uid built in the arena (index and type_index UID_UNKNOWN until table_resolve), or NULL with a.failed set.
cdef Uid *uid_make(Arena *a, const char *type_, uint32_t type_len, const char *id_, uint32_t id_len) noexcept nogil
# Sort and deduplicate n cells in place into set order; returns the new count.
cdef uint32_t set_normalise(Cell *cells, uint32_t n) noexcept nogil
# Sort n fields by key in place; returns 0, or 1 when a key stands twice.
cdef int record_normalise(Field *fields, uint32_t n) noexcept nogil
# The value under `key`, or NULL.
cdef const Cell *record_get(const Cell *record, const char *key, uint32_t n) noexcept nogil
