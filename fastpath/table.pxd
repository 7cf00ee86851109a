"""The rule table of one generation, read in place: lookups by uid, type, ancestors and posting lists."""
from fastpath.image cimport List, Node, Span, Totals
from fastpath.rows cimport Table
from fastpath.value cimport Uid
from fastpath.wire cimport Text
from libc.stdint cimport uint32_t


cdef class Generation:
    """Owns the LMDB environment and read transaction (or the bytes) behind one Table."""
    cdef Table table
    cdef object _file            # the open LMDB file (table.pyx), shared by all tables over it, or None
    cdef object _buffer          # the object whose memory `table.image` points into
    cdef object _delta_file      # the same for the delta, or None
    cdef object _delta_buffer
    cdef bytes _digest           # "sha256:" and hex
    cdef bytes _sha256           # the same
    cdef bytes _base_digest
    cdef int _users              # calls that read the table without the GIL; the last one closes what close() could not
    cdef int _closing
    cdef object __weakref__
    # The table for a call that releases the GIL, and its end. Raises RuleTableError when closed. Whoever holds a
    # reference to the object for the whole call, and never calls close(), may read `table` directly instead.
    cdef const Table *enter(self) except NULL
    cdef int leave(self) except -1
    cdef int _take(self, object image, generation, str digest, object file) except -1
    cdef int _lay(self, object delta, str digest, object file) except -1
    cdef int _begin(self, generation, strict) except -1
    cdef int _release(self) except -1
    cpdef close(self)
    cdef const Totals *_totals(self) except NULL
    cdef str _text(self, const Span *span)
    cdef object in_order(self)   # indexes of all policies by their ids; without those that a delta removes


# Set uid.index and uid.type_index from the table.
cdef void table_resolve(const Table *t, Uid *uid) noexcept nogil
# Begin to fetch the slot of a uid from memory, and then the row that it names: table_resolve waits for neither when
# there was other work to do meanwhile.
cdef void table_fetch_slot(const Table *t, const Uid *uid) noexcept nogil
cdef void table_fetch_row(const Table *t, const Uid *uid) noexcept nogil
# Node index of a uid by its hash and text, or UID_UNKNOWN.
cdef uint32_t table_find(const Table *t, const Uid *uid) noexcept nogil
cdef uint32_t table_find_type(const Table *t, const char *name, uint32_t n) noexcept nogil
# Whether a list holds `row`.
cdef bint list_has(const Table *t, const List *list_, uint32_t row) noexcept nogil
# Whether node `ancestor` is among the ancestors of `node`.
cdef bint node_is_in(const Table *t, const Node *node, uint32_t ancestor) noexcept nogil
# Whether node `ancestor` is `uid` itself or among its ancestors; false when uid.index is UID_UNKNOWN.
cdef bint table_is_in(const Table *t, const Uid *uid, uint32_t ancestor) noexcept nogil
