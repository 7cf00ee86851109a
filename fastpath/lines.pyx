from fastpath.envoy cimport HeaderLine
from fastpath.value cimport Arena, arena_take
from fastpath.wire cimport Text, text_compare, text_equal, utf8_prefix
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memchr, memcpy

cdef enum:
    LINES_MAX = 4096         # header lines and context extensions each; more refuse the call
    LINES_FIRST = 32         # room at first
    FEW_LINES = 24           # sorted by insertion


cdef bint lines_grow(Lines *lines, Arena *arena) noexcept nogil:
    cdef uint32_t room = 2 * lines.room if lines.room else <uint32_t> LINES_FIRST
    cdef HeaderLine *moved
    if room > LINES_MAX:
        lines.overflow = 1
        return False
    moved = <HeaderLine *> arena_take(arena, room * sizeof(HeaderLine))
    if moved is NULL:
        return False
    if lines.n:
        memcpy(moved, lines.p, lines.n * sizeof(HeaderLine))
    lines.p, lines.room = moved, room
    return True


# ---------------------------------------------------------------- order


cdef inline int by_name(const HeaderLine *x, const HeaderLine *y) noexcept nogil:
    cdef int order
    if x.head != y.head:
        return 1 if x.head > y.head else -1
    order = text_compare(x.name, y.name)
    return order if order else (x.order > y.order) - (x.order < y.order)


cdef int by_name_of(const void *a, const void *b) noexcept nogil:
    return by_name(<const HeaderLine *> a, <const HeaderLine *> b)


cdef struct Rank:            # a line in the order of names
    uint64_t head
    uint32_t at


cdef inline bint goes_before(const Lines *lines, const Rank *x, const Rank *y) noexcept nogil:
    return x.head < y.head or (x.head == y.head and by_name(&lines.p[x.at], &lines.p[y.at]) < 0)


cdef void sort_few(Lines *lines) noexcept nogil:
    """By insertion of ranks; the lines themselves are moved once."""
    cdef HeaderLine unsorted[FEW_LINES]
    cdef Rank ranks[FEW_LINES]
    cdef Rank rank
    cdef uint32_t i, at
    for i in range(lines.n):
        rank.head, rank.at = lines.p[i].head, i
        at = i
        while at > 0 and goes_before(lines, &rank, &ranks[at - 1]):
            ranks[at] = ranks[at - 1]
            at -= 1
        ranks[at] = rank
    memcpy(unsorted, lines.p, lines.n * sizeof(HeaderLine))
    for i in range(lines.n):
        lines.p[i] = unsorted[ranks[i].at]


cdef void lines_sort(Lines *lines) noexcept nogil:
    if lines.n > FEW_LINES:
        qsort(lines.p, lines.n, sizeof(HeaderLine), by_name_of)
    elif lines.n > 1:
        sort_few(lines)


cdef inline bint same_name(const HeaderLine *x, const HeaderLine *y) noexcept nogil:
    return x.head == y.head and text_equal(x.name, y.name)


cdef void lines_last_wins(Lines *lines) noexcept nogil:
    cdef uint32_t i, n = 0
    for i in range(lines.n):
        if i + 1 < lines.n and same_name(&lines.p[i], &lines.p[i + 1]):
            continue
        if n != i:
            lines.p[n] = lines.p[i]
        lines.p[n].order = n
        n += 1
    lines.n = n


# ---------------------------------------------------------------- names and values


cdef enum:
    NAME_TOKEN = 1           # tchar of RFC 9110 section 5.6.2
    NAME_LOWER = 2           # not an upper-case letter

cdef uint8_t NAME_BYTES[256]     # what a byte is in a header's name


cdef void build_name_bytes() noexcept nogil:
    cdef int i
    for i in range(256):
        NAME_BYTES[i] = 0 if c"A" <= i <= c"Z" else NAME_LOWER
        if c"a" <= i | 32 <= c"z" or c"0" <= i <= c"9" or (
            0 < i < 128 and memchr(b"!#$%&'*+-.^_`|~", i, 15) is not NULL
        ):
            NAME_BYTES[i] |= NAME_TOKEN


build_name_bytes()


cdef int lines_lower(Text *name, Arena *arena) noexcept nogil:
    cdef uint32_t i
    cdef uint8_t b, all_ = NAME_TOKEN | NAME_LOWER
    cdef char *copy
    for i in range(name.n):
        all_ &= NAME_BYTES[<uint8_t> name.p[i]]
    if name.n == 0 or not all_ & NAME_TOKEN:
        return -1
    if all_ & NAME_LOWER:
        return 0
    copy = <char *> arena_take(arena, name.n)
    if copy is NULL:
        return -1
    for i in range(name.n):
        b = name.p[i]
        copy[i] = b + 32 if b >= c"A" and b <= c"Z" else b
    name.p = copy
    return 1


cdef void lines_sanitise(HeaderLine *line, Arena *arena) noexcept nogil:
    cdef size_t at = utf8_prefix(line.value.p, line.value.n)
    cdef char *copy
    if at == line.value.n:
        return
    line.sanitised = 1
    copy = <char *> arena_take(arena, line.value.n)
    if copy is NULL:
        return
    memcpy(copy, line.value.p, line.value.n)
    while at < line.value.n:
        copy[at] = c"!"
        at += 1 + utf8_prefix(copy + at + 1, line.value.n - at - 1)
    line.value.p = copy
