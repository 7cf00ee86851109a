"""The index: which policies can match a call, found by its own uids, their ancestors and their types."""
from fastpath.image cimport Policy
from fastpath.program cimport EvalContext
from fastpath.rows cimport Table
from libc.stdint cimport uint32_t


# Called with each candidate; a result other than 0 ends the walk.
ctypedef int (*Visit)(void *state, uint32_t policy) noexcept nogil


cdef enum:
    MET_MAX = 16


cdef struct Candidate:
    uint32_t policy
    uint32_t action          # whose list it was met in, else UID_UNKNOWN


cdef struct Walk:            # of one call
    const Table *t
    const EvalContext *context
    Visit visit              # NULL: policies are only met
    void *state
    uint32_t action          # node whose lists of actions are walked, else UID_UNKNOWN
    uint32_t n
    Candidate met[MET_MAX]   # and not visited yet: their rows are on their way, from whichever lists they come
    bint met_all


# Find the policies that could match a call, whose uids are resolved, and begin to fetch their rows and what programs
# read: what is done before the visit is done meanwhile.
cdef void candidates_meet(Walk *walk, const Table *t, const EvalContext *context) noexcept nogil
# Visit every policy that is filed where the call could match it, each once; 0, or the result that ended the walk. To be
# called once after each candidates_meet.
cdef int candidates_visit(Walk *walk, Visit visit, void *state) noexcept nogil
# Whether the call is in the policy's scope.
cdef bint scope_matches(const Table *t, const EvalContext *context, const Policy *policy) noexcept nogil
