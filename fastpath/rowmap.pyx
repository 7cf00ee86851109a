"""A hash map from a kind and a text to a row of its owner's (rowmap.pxd)."""
from fastpath.c.xxhash cimport XXH3_64bits_withSeed
from fastpath.rows cimport prefetch
from fastpath.wire cimport text_equal
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef enum:
    SLOTS_MIN = 16


cdef inline uint64_t hash_of(uint32_t kind, Text text) noexcept nogil:
    return XXH3_64bits_withSeed(text.p, text.n, kind)


cdef inline uint8_t tag_of(uint64_t hash) noexcept nogil:
    cdef uint8_t tag = <uint8_t> (hash >> 56)
    return tag if tag else 1


cdef inline void put_slot(RowMap *rows, RowSlot *slot, RowSlot filled) noexcept nogil:
    """INVARIANT (tags): every slot changes here or in `free_slot`, and its tag with it."""
    slot[0] = filled
    rows.tags[slot - rows.slots] = tag_of(filled.hash)


cdef inline void free_slot(RowMap *rows, size_t at) noexcept nogil:
    rows.slots[at].row = NULL
    rows.tags[at] = 0


cdef RowSlot *slot_of(const RowMap *rows, uint64_t hash, uint32_t kind, Text text) noexcept nogil:
    """The slot that holds the row, or the free one where it would stand. At least half are free, so the probe ends."""
    cdef size_t mask = rows.size - 1
    cdef size_t at = hash & mask
    cdef RowKey *row
    while True:
        row = rows.slots[at].row
        if row == NULL or (rows.slots[at].hash == hash and row.kind == kind and text_equal(row.text, text)):
            return &rows.slots[at]
        at = (at + 1) & mask


cdef RowKey *rows_find(const RowMap *rows, uint32_t kind, Text text) noexcept nogil:
    if rows.used == 0:
        return NULL
    return slot_of(rows, hash_of(kind, text), kind, text).row


cdef void rows_begin(const RowMap *rows, uint32_t kind, Text text, RowProbe *out) noexcept nogil:
    out.hash, out.kind, out.text = hash_of(kind, text), kind, text
    prefetch(&rows.tags[out.hash & (rows.size - 1)])


cdef RowKey *rows_finish(const RowMap *rows, const RowProbe *probe) noexcept nogil:
    cdef size_t mask = rows.size - 1
    cdef size_t at = probe.hash & mask
    cdef uint8_t tag = tag_of(probe.hash)
    cdef const RowSlot *slot
    while rows.tags[at]:
        slot = &rows.slots[at]
        # Of a slot that holds another row the tag says so, but for one in 255.
        if (
            rows.tags[at] == tag and slot.hash == probe.hash and slot.row.kind == probe.kind
            and text_equal(slot.row.text, probe.text)
        ):
            return slot.row
        at = (at + 1) & mask
    return NULL


cdef int grow(RowMap *rows) noexcept nogil:
    cdef RowMap larger
    cdef RowSlot *slot
    cdef size_t i
    larger.size = 2 * rows.size if rows.size else SLOTS_MIN
    larger.used = rows.used
    larger.slots = <RowSlot *> calloc(larger.size, sizeof(RowSlot) + 1)
    if larger.slots == NULL:
        return 1
    larger.tags = <uint8_t *> (larger.slots + larger.size)
    for i in range(rows.size):
        if rows.slots[i].row != NULL:
            slot = slot_of(&larger, rows.slots[i].hash, rows.slots[i].row.kind, rows.slots[i].row.text)
            put_slot(&larger, slot, rows.slots[i])
    free(rows.slots)
    rows[0] = larger
    return 0


cdef int rows_add(RowMap *rows, RowKey *row) noexcept nogil:
    cdef RowSlot made
    made.hash, made.row = hash_of(row.kind, row.text), row
    if 2 * (rows.used + 1) > rows.size and grow(rows):
        return 1
    put_slot(rows, slot_of(rows, made.hash, row.kind, row.text), made)
    rows.used += 1
    return 0


cdef RowKey *rows_take(RowMap *rows, uint32_t kind, Text text) noexcept nogil:
    cdef size_t mask = rows.size - 1
    cdef size_t at, hole, home
    cdef RowSlot *slot
    cdef RowKey *row
    if rows.used == 0:
        return NULL
    slot = slot_of(rows, hash_of(kind, text), kind, text)
    row = slot.row
    if row == NULL:
        return NULL
    hole = slot - rows.slots
    at = (hole + 1) & mask
    # What stands behind moves up where it may, so that no probe ends early at the hole and no tombstone stays.
    while rows.slots[at].row != NULL:
        home = rows.slots[at].hash & mask
        if ((at - home) & mask) >= ((at - hole) & mask):
            put_slot(rows, rows.slots + hole, rows.slots[at])
            hole = at
        at = (at + 1) & mask
    free_slot(rows, hole)
    rows.used -= 1
    return row


cdef void rows_free(RowMap *rows) noexcept nogil:
    free(rows.slots)
    memset(rows, 0, sizeof(RowMap))
