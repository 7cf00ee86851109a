"""The rule table of one generation, read in place: lookups by uid, type, ancestors and posting lists."""
from fastpath.image cimport Header, Node, Policy, Type
from fastpath.value cimport Arena, Cell, Uid
from fastpath.wire cimport Text
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef struct Table:               # what decide reads; borrowed from a Generation, valid while that object lives
    const uint8_t *image
    const Header *header
    uint64_t generation          # number from the manifest, monotonic; 0 only for images loaded by tests
    Text digest                  # "sha256:.." of the image
    int strict                   # an error in a forbid whose scope matches denies


cdef class Generation:
    """Owns the LMDB environment and read transaction (or the bytes) behind one Table."""
    cdef Table table
    cdef object _env             # lmdb.Environment or None
    cdef object _txn             # lmdb.Transaction or None
    cdef object _buffer          # the object whose memory `table.image` points into
    cdef bytes _digest


# Set uid.index and uid.type_index from the table.
cdef void table_resolve(const Table *t, Uid *uid) noexcept nogil
cdef const Node *table_node(const Table *t, uint32_t index) noexcept nogil
# Whether node `ancestor` is `uid` itself or among its ancestors; false when uid.index is UID_UNKNOWN (unless equal uids).
cdef bint table_is_in(const Table *t, const Uid *uid, uint32_t ancestor) noexcept nogil
