"""Header lines and context extensions of a CheckRequest while they are collected: added, sorted, mended."""
from fastpath.envoy cimport HeaderLine, header_bit
from fastpath.value cimport Arena
from fastpath.wire cimport TEXT_BANG, Text
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef struct Lines:
    HeaderLine *p
    uint32_t n
    uint32_t room
    int overflow
    uint8_t marks            # text_marks of some value
    uint8_t odd              # some name is not plain
    uint8_t pseudo           # some were left out: pseudo headers of the map
    uint64_t bits            # header_bit of every name


cdef extern from * nogil:
    """
    /* The first eight bytes as a number that sorts as they do; zeros stand behind a shorter text. */
    static inline uint64_t remit_head(const char *text, size_t n) {
        const uint8_t *p = (const uint8_t *) text;
        uint64_t v;
        uint32_t first, last;
        if (n >= 8) {
            memcpy(&v, p, 8);
            return __builtin_bswap64(v);
        }
        if (n >= 4) {
            memcpy(&first, p, 4);
            memcpy(&last, p + n - 4, 4);
            return (uint64_t) __builtin_bswap32(first) << 32 | (uint64_t) __builtin_bswap32(last) << (64 - 8 * n);
        }
        if (n == 0) return 0;
        return (uint64_t) p[0] << 56 | (uint64_t) p[n / 2] << (56 - 8 * (n / 2)) | (uint64_t) p[n - 1] << (64 - 8 * n);
    }
    """
    uint64_t remit_head(const char *p, size_t n)


cdef extern from * nogil:
    """
    /* Blocks of bytes are as in wire.pxd, which is included before. */
    static inline remit_block remit_not_plain(remit_block b) {
        return ~((remit_block) ((remit_block) (b - 'a') < 26) | (remit_block) ((remit_block) (b - '0') < 10)
            | (remit_block) (b == '-'));
    }

    /* Whether n bytes are lower-case letters, digits and dashes. */
    static inline int remit_is_plain(const char *name, size_t n) {
        const uint8_t *p = (const uint8_t *) name;
        remit_block b, seen;
        size_t i;
        if (n == 0) return 0;
        if (n < 16) return !remit_any(remit_not_plain(remit_few(p, n)));
        memcpy(&b, p + n - 16, 16);
        seen = remit_not_plain(b);
        for (i = 0; i < n - 16; i += 16) {
            memcpy(&b, p + i, 16);
            seen |= remit_not_plain(b);
        }
        return !remit_any(seen);
    }
    """
    int remit_is_plain(const char *name, size_t n)


# Room for more lines, in the arena; false when there are too many, or when it is full.
cdef bint lines_grow(Lines *lines, Arena *arena) noexcept nogil


cdef inline void lines_add(
    Lines *lines, Text name, Text value, unsigned marks, uint8_t joined, uint8_t plain, Arena *arena
) noexcept nogil:
    cdef HeaderLine *line
    if lines.n == lines.room and not lines_grow(lines, arena):
        return
    line = &lines.p[lines.n]
    line.name = name
    line.value = value
    line.head = remit_head(name.p, name.n)
    line.joined = joined
    line.marks = <uint8_t> marks
    line.plain = plain
    line.sanitised = joined and (marks & TEXT_BANG) != 0
    line.order = lines.n
    lines.n += 1
    lines.marks |= <uint8_t> marks
    lines.odd |= not plain
    if name.n:
        lines.bits |= header_bit(name.p, name.n)


# Stable, by name.
cdef void lines_sort(Lines *lines) noexcept nogil
# Of sorted entries of a protobuf map keep the last under each key. The order of a map means nothing: it goes.
cdef void lines_last_wins(Lines *lines) noexcept nogil
# Make a header's name lower case: 0 when it was, 1 when it is now a copy, -1 when it is no name or memory is out.
cdef int lines_lower(Text *name, Arena *arena) noexcept nogil
# Replace each byte of the value that is not UTF-8 by `!`, in a copy (EX-13).
cdef void lines_sanitise(HeaderLine *line, Arena *arena) noexcept nogil
