"""The scope of a task: which resources, actions, destinations, data and arguments it covers."""
from fastpath.request cimport Request
from fastpath.rows cimport Table
from fastpath.value cimport Ip, Uid
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum ArgOp:
    ARG_EQ = 0
    ARG_IN = 1               # one of the values
    ARG_RANGE = 2            # values[0] <= x <= values[1], integers
    ARG_PREFIX = 3
    ARG_HOST_SUFFIX = 4      # host of a URL, or a host: equal to a value or below it
    ARG_CIDR = 5             # an address inside a range


cdef struct ArgValue:
    uint8_t kind             # KIND_STRING, KIND_LONG or KIND_BOOL; of ARG_CIDR: KIND_IP
    int64_t number
    Text text
    Ip ip


cdef struct ArgRule:         # what one argument of a tool must be; a call without that argument is not covered
    Text tool                # resource id, "server/*", or empty: of every tool
    Text path                # dotted, below context.input
    uint8_t op               # ArgOp
    uint32_t count
    ArgValue *values


cdef struct Names:
    Text *items
    uint32_t count
    uint8_t any              # covers everything


cdef struct Uids:
    Uid **items
    uint32_t count


cdef struct Scope:
    Names tools              # resource ids, or "server/*"
    Uids tool_groups         # the resource is in one of them
    Uids actions             # the action is one of them or in one
    uint8_t any_action
    Names methods            # HTTP method, gRPC path or MCP method; any: not constrained
    Names destinations       # ids, hosts, or "*.suffix"
    Uids zones               # the destination is in one of them
    int64_t max_level
    Names labels_allowed     # any: all but the denied
    Names labels_denied
    uint32_t rule_count
    ArgRule *rules
    uint64_t table           # serial of the table that the uids above are resolved against


cdef struct Covers:
    uint8_t tool             # and its arguments
    uint8_t action           # and the method
    uint8_t dest
    uint8_t data


cdef struct Block:           # followed by an array
    Block *next
    uint64_t unused          # what follows is aligned as malloc aligns


cdef class ScopeRow:
    """Owns the memory of one Scope. What it holds is texts, so the collector of cycles need not know it."""
    cdef Scope scope
    cdef tuple _kept         # what texts and uids point into
    cdef list _building      # the same until it is built
    cdef Block *_blocks
    cdef void *_take(self, size_t n) except NULL
    cdef Text _text(self, str text)
    cdef int _names(self, Names *out, object names, bint any_) except -1
    cdef int _uids(self, Uids *out, object names, str prefix, str type_) except -1
    cdef int _rule(self, ArgRule *out, object rule) except -1
    cdef int _value(self, ArgValue *out, object value, int op) except -1


# Take from `out` what `scope` does not cover of a mapped request, whose uids are resolved against `t`; `dest` is the
# row of its destination. Only one thread at a time: the scope keeps the rows of its own uids from call to call.
cdef void scope_narrow(
    Scope *scope, const Request *request, const Table *t, uint32_t dest, Covers *out
) noexcept nogil
