"""A hash map from a kind and a text to a row of its owner's: open addressing, no Python object."""
from fastpath.wire cimport Text
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef struct RowKey:      # first member of every row; the row owns the text
    Text text
    uint32_t kind        # rows of different kinds never meet


cdef struct RowSlot:
    uint64_t hash
    RowKey *row          # NULL: free


cdef struct RowMap:      # all zero: empty
    RowSlot *slots
    # A byte of each slot's hash, 0: free. What is not there is known by them, and of many rows they alone fit into the
    # cache.
    uint8_t *tags
    size_t size          # power of two, or 0
    size_t used          # at most half of the slots


cdef struct RowProbe:    # a lookup of which only the first half is done
    uint64_t hash
    Text text
    uint32_t kind


# Begin to fetch what the lookup of a row reads first that is probably not there, and finish it: of many lookups in a
# large map, all begin before any is waited for. The map must not change in between, nor be empty.
cdef void rows_begin(const RowMap *rows, uint32_t kind, Text text, RowProbe *out) noexcept nogil
cdef RowKey *rows_finish(const RowMap *rows, const RowProbe *probe) noexcept nogil
# The row that is probably there; NULL when it is not.
cdef RowKey *rows_find(const RowMap *rows, uint32_t kind, Text text) noexcept nogil
# Add a row whose key is not there yet; 0, or 1 when there is no memory (then nothing changed).
cdef int rows_add(RowMap *rows, RowKey *row) noexcept nogil
# Take the row out; NULL when it is not there.
cdef RowKey *rows_take(RowMap *rows, uint32_t kind, Text text) noexcept nogil
# Give the slots back; the rows are their owner's.
cdef void rows_free(RowMap *rows) noexcept nogil
