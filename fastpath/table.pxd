"""The rule table of one generation, read in place: lookups by uid, type, ancestors and posting lists."""
from fastpath.image cimport Header, Node, Policy, Span, Type
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
    cdef object _file            # the open LMDB file (table.pyx), shared by all tables over it, or None
    cdef object _buffer          # the object whose memory `table.image` points into
    cdef bytes _digest
    cdef int _users              # calls that read the table without the GIL; the last one closes what close() could not
    cdef int _closing
    cdef object __weakref__
    # The table for a call that releases the GIL, and its end. Raises RuleTableError when closed. Whoever holds a
    # reference to the object for the whole call, and never calls close(), may read `table` directly instead.
    cdef const Table *enter(self) except NULL
    cdef int leave(self) except -1
    cdef int _take(self, object image, generation, str digest, strict) except -1
    cdef int _release(self) except -1
    cpdef close(self)
    cdef const Header *_header(self) except NULL
    cdef str _text(self, const Span *span)


# Set uid.index and uid.type_index from the table.
cdef void table_resolve(const Table *t, Uid *uid) noexcept nogil
# Node index of a uid by its hash and text, or UID_UNKNOWN.
cdef uint32_t table_find(const Table *t, const Uid *uid) noexcept nogil
cdef const Node *table_node(const Table *t, uint32_t index) noexcept nogil
cdef const Policy *table_policy(const Table *t, uint32_t index) noexcept nogil
# Whether node `ancestor` is among the ancestors of `node`.
cdef bint node_is_in(const Table *t, const Node *node, uint32_t ancestor) noexcept nogil
# Whether node `ancestor` is `uid` itself or among its ancestors; false when uid.index is UID_UNKNOWN.
cdef bint table_is_in(const Table *t, const Uid *uid, uint32_t ancestor) noexcept nogil
