"""Cedar values in flat memory: building, comparing and normalising cells and uids."""
from fastpath.c.xxhash cimport XXH3_64bits, XXH3_64bits_withSeed
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy


cdef inline bint points(const Cell *c) noexcept nogil:
    return c.kind in (KIND_STRING, KIND_ENTITY, KIND_SET, KIND_RECORD, KIND_IP)


cdef inline void blank(Cell *c, int kind, uint32_t n) noexcept nogil:
    c.kind = kind
    c.flags = 0
    c.reserved = 0
    c.n = n


cdef void cell_copy(Cell *to, const Cell *source) noexcept nogil:
    """Copy `source` so that `to` names the same memory."""
    cdef Cell moved = source[0]
    if points(source):
        moved.v += <const char *> source - <const char *> to
    to[0] = moved


cdef void cell_bool(Cell *c, bint b) noexcept nogil:
    blank(c, KIND_BOOL, 0)
    c.v = b


cdef void cell_long(Cell *c, int64_t i) noexcept nogil:
    blank(c, KIND_LONG, 0)
    c.v = i


cdef void cell_string(Cell *c, const char *p, uint32_t n) noexcept nogil:
    blank(c, KIND_STRING, n)
    cell_point(c, p)


cdef void cell_entity(Cell *c, const Uid *u) noexcept nogil:
    blank(c, KIND_ENTITY, 0)
    cell_point(c, u)


# ---------------------------------------------------------------- uids


cdef uint64_t uid_hash(const char *text, uint32_t type_len, uint32_t id_len) noexcept nogil:
    return XXH3_64bits_withSeed(text, <size_t> type_len + id_len, type_len)


cdef uint64_t type_hash(const char *text, uint32_t n) noexcept nogil:
    return XXH3_64bits(text, n)


cdef bint uid_equal(const Uid *a, const Uid *b) noexcept nogil:
    if a is b:
        return True
    if a.hash != b.hash or a.type_len != b.type_len or a.id_len != b.id_len:
        return False
    return memcmp(uid_type(a), uid_type(b), <size_t> a.type_len + a.id_len) == 0


cdef Uid *uid_make(Arena *a, const char *type_, uint32_t type_len, const char *id_, uint32_t id_len) noexcept nogil:
    cdef size_t n = <size_t> type_len + id_len
    cdef Uid *uid = <Uid *> arena_take(a, sizeof(Uid) + n)
    cdef char *text
    if uid is NULL:
        return NULL
    text = <char *> uid + sizeof(Uid)
    memcpy(text, type_, type_len)
    memcpy(text + type_len, id_, id_len)
    uid.hash = uid_hash(text, type_len, id_len)
    uid.index = uid.type_index = UID_UNKNOWN
    uid.type_len = type_len
    uid.id_len = id_len
    return uid


# ---------------------------------------------------------------- order


cdef int text_compare(const char *a, uint32_t a_len, const char *b, uint32_t b_len) noexcept nogil:
    cdef uint32_t n = a_len if a_len < b_len else b_len
    # An empty text may have no memory, and C compares none.
    cdef int order = memcmp(a, b, n) if n else 0
    if order:
        return order
    return (a_len > b_len) - (a_len < b_len)


cdef inline int compare_long(int64_t a, int64_t b) noexcept nogil:
    return (a > b) - (a < b)


cdef int compare_uid(const Uid *a, const Uid *b) noexcept nogil:
    cdef int order
    if uid_equal(a, b):
        return 0
    order = text_compare(uid_type(a), a.type_len, uid_type(b), b.type_len)
    return order if order else text_compare(uid_id(a), a.id_len, uid_id(b), b.id_len)


cdef int compare_ip(const Ip *a, const Ip *b) noexcept nogil:
    if a.v6 != b.v6:
        return <int> a.v6 - <int> b.v6
    if a.prefix != b.prefix:
        return <int> a.prefix - <int> b.prefix
    return memcmp(a.addr, b.addr, 16)


cdef int compare_cells(const Cell *a, const Cell *b, uint32_t n) noexcept nogil:
    cdef uint32_t i
    cdef int order
    for i in range(n):
        order = cell_compare(a + i, b + i)
        if order:
            return order
    return 0


cdef int compare_string(const Cell *a, const Cell *b) noexcept nogil:
    # INVARIANT (sanitised text): altered text differs from every text that was not altered, whatever its bytes.
    cdef int order = <int> (a.flags & CELL_SANITISED) - <int> (b.flags & CELL_SANITISED)
    return order if order else text_compare(<const char *> cell_at(a), a.n, <const char *> cell_at(b), b.n)


cdef int cell_compare(const Cell *a, const Cell *b) noexcept nogil:
    """Recursion is bounded by VALUE_DEPTH_MAX per stored value plus the nesting of one policy."""
    if a.kind != b.kind:
        return <int> a.kind - <int> b.kind
    if a.kind == KIND_STRING:
        return compare_string(a, b)
    if a.kind == KIND_ENTITY:
        return compare_uid(<const Uid *> cell_at(a), <const Uid *> cell_at(b))
    if a.kind == KIND_IP:
        return compare_ip(<const Ip *> cell_at(a), <const Ip *> cell_at(b))
    if a.kind == KIND_SET or a.kind == KIND_RECORD:
        if a.n != b.n:
            return 1 if a.n > b.n else -1
        # A Field is two cells, so a record is 2n cells in the order key, value, key, value.
        return compare_cells(
            <const Cell *> cell_at(a), <const Cell *> cell_at(b), a.n if a.kind == KIND_SET else 2 * a.n
        )
    return compare_long(a.v, b.v) if a.kind != KIND_ABSENT else 0


# ---------------------------------------------------------------- sets and records

# Heap sort over rows of `width` cells (1: members of a set, 2: fields of a record), ordered by each row's first
# cell: in place, no recursion, n log n whatever the caller of an agent puts into an array.


cdef inline void row_swap(Cell *a, Cell *b, int width) noexcept nogil:
    cdef Cell held
    cdef int i
    for i in range(width):
        cell_copy(&held, a + i)
        cell_copy(a + i, b + i)
        cell_copy(b + i, &held)


cdef void sift(Cell *rows, int width, uint32_t at, uint32_t n) noexcept nogil:
    cdef uint64_t child
    while True:
        child = 2 * <uint64_t> at + 1
        if child >= n:
            return
        if child + 1 < n and cell_compare(rows + child * width, rows + (child + 1) * width) < 0:
            child += 1
        if cell_compare(rows + <uint64_t> at * width, rows + child * width) >= 0:
            return
        row_swap(rows + <uint64_t> at * width, rows + child * width, width)
        at = <uint32_t> child


cdef bint ascending(const Cell *rows, int width, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(1, n):
        if cell_compare(rows + <uint64_t> (i - 1) * width, rows + <uint64_t> i * width) >= 0:
            return False
    return True


cdef void rows_sort(Cell *rows, int width, uint32_t n) noexcept nogil:
    cdef uint32_t i
    if ascending(rows, width, n):
        return
    i = n // 2
    while i > 0:
        i -= 1
        sift(rows, width, i, n)
    i = n
    while i > 1:
        i -= 1
        row_swap(rows, rows + <uint64_t> i * width, width)
        sift(rows, width, 0, i)


cdef uint32_t set_normalise(Cell *cells, uint32_t n) noexcept nogil:
    cdef uint32_t kept = 1
    cdef uint32_t i
    if n < 2:
        return n
    rows_sort(cells, 1, n)
    for i in range(1, n):
        if cell_compare(cells + kept - 1, cells + i) != 0:
            if kept != i:
                cell_copy(cells + kept, cells + i)
            kept += 1
    return kept


cdef int record_normalise(Field *fields, uint32_t n) noexcept nogil:
    cdef uint32_t i
    if n < 2:
        return 0
    rows_sort(<Cell *> fields, 2, n)
    for i in range(1, n):
        if cell_compare(&fields[i - 1].key, &fields[i].key) == 0:
            return 1
    return 0


cdef const Cell *record_get(const Cell *record, const char *key, uint32_t n) noexcept nogil:
    cdef const Field *fields = <const Field *> cell_at(record)
    cdef uint32_t low = 0
    cdef uint32_t high = record.n
    cdef uint32_t middle
    cdef int order
    while low < high:
        middle = low + (high - low) // 2
        order = text_compare(<const char *> cell_at(&fields[middle].key), fields[middle].key.n, key, n)
        if order == 0:
            return &fields[middle].value
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return NULL


# ---------------------------------------------------------------- Python face


def _uid_hash(str type_, str id_):
    """The XXH3-64 that a Uid of this type and id carries."""
    cdef bytes type_bytes = type_.encode()
    cdef bytes text = type_bytes + id_.encode()
    return uid_hash(text, <uint32_t> len(type_bytes), <uint32_t> (len(text) - len(type_bytes)))


def text_hash(str text):
    """The XXH3-64 (seed 0) of a text, as used for type slots."""
    cdef bytes data = text.encode()
    return type_hash(<const char *> data, <uint32_t> len(data))


# The Python name is that of the C function, which Cython keeps for itself.
globals()["uid_hash"] = _uid_hash
