"""The index: which policies can match a call, found by its own uids, their ancestors and their types."""
from fastpath.image cimport Policy
from fastpath.program cimport EvalContext
from fastpath.rows cimport Table
from fastpath.value cimport Uid
from libc.stdint cimport uint32_t


# Called with each candidate; a result other than 0 ends the walk.
ctypedef int (*Visit)(void *state, uint32_t policy) noexcept nogil

# Begin to fetch what a walk for these two, which are resolved, reads first.
cdef void candidates_fetch(const Table *t, const Uid *principal, const Uid *resource) noexcept nogil
# Visit every policy that is filed where the call could match it, each once; 0, or the result that ended the walk.
cdef int candidates_walk(const Table *t, const EvalContext *context, Visit visit, void *state) noexcept nogil
# Whether the call is in the policy's scope.
cdef bint scope_matches(const Table *t, const EvalContext *context, const Policy *policy) noexcept nogil
