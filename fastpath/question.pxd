"""An agent's own question (remit.authz.v1.CheckRequest) as a Request."""
from fastpath.target cimport Mapper


# Decode n bytes and fill the request: 0, or 1 when the bytes are not a CheckRequest. The principal is already there.
cdef int map_question(Mapper *m, const unsigned char *p, size_t n) noexcept nogil
