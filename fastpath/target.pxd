"""What a call acts on: the parts of a Request that all doors fill alike.

One Mapper works on one call. Its functions set parts of the request, note the first refusal in it, and leave what they
cannot set (arena full: the call then ends in ERROR).
"""
from fastpath.json_tree cimport Json
from fastpath.mapping_rules cimport MappingRules
from fastpath.request cimport Request
from fastpath.rows cimport Table
from fastpath.value cimport Arena, Cell, Field, Uid
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint32_t


cdef struct Mapper:
    const MappingRules *rules
    const Table *table       # or NULL
    Arena *arena
    Request *request
    Field *extras            # room for EXTRAS_MAX
    uint32_t extra_count


cdef inline Cell *column(Request *request, int which) noexcept nogil:
    return request.columns + which


# 0, or 1 when the arena is full.
cdef int mapper_open(Mapper *m, const void *rules, const Table *table, Arena *arena, Request *request) noexcept nogil
# Give the request the attributes that were added.
cdef void mapper_close(Mapper *m) noexcept nogil
cdef void refuse(Mapper *m, const char *reason) noexcept nogil
cdef void refuse_named(Mapper *m, const char *reason, Text name) noexcept nogil
# `a`, `separator`, `b` in the arena; empty when it is full.
cdef Text joined(Mapper *m, Text a, const char *separator, Text b) noexcept nogil
# A uid with its row in the table, or NULL when the arena is full.
cdef Uid *entity(Mapper *m, Text type_, Text id_) noexcept nogil

cdef void set_action(Mapper *m, Text type_, Text id_) noexcept nogil
# Action::"<class>".
cdef void set_class(Mapper *m, Text class_) noexcept nogil
cdef void set_resource(Mapper *m, Text type_, Text id_) noexcept nogil
cdef void set_parent(Mapper *m, Text server) noexcept nogil
# Tool "server/tool": Action::"server/tool" when the table has that action, else its class; Tool::"server/tool", whose
# parent is its server.
cdef void set_tool(Mapper *m, Text server, Text name) noexcept nogil
cdef void set_tool_action(Mapper *m, Text name) noexcept nogil

# context.dest by id; request.destination stays.
cdef void set_destination_id(Mapper *m, Text id_) noexcept nogil
# context.dest and request.destination by canonical host and port.
cdef void set_destination(Mapper *m, Text host, uint32_t port, Text scheme) noexcept nogil
# The same from a URL, `host[:port]` or mail address; false when the text is none (then nothing is set).
cdef bint set_destination_text(Mapper *m, Text text) noexcept nogil
# Where tool `name` sends to, from its arguments (NULL: not sent). Nothing when the configuration names no argument.
cdef void set_destination_argument(Mapper *m, Text name, const Json *arguments) noexcept nogil

# Add a context attribute that is not a column; a copy of `cell`.
cdef void add_extra(Mapper *m, Text name, const Cell *cell) noexcept nogil
# Note that context.<name> was not sent whole: a policy that reads it denies.
cdef void add_unsent(Mapper *m, const char *name) noexcept nogil
# context.input from the arguments, typed for the action in place; their digest.
cdef void set_input(Mapper *m, const Json *arguments) noexcept nogil
# context.call.data_level and data_labels: what the resource has and what the caller declares, which can only raise.
cdef void set_data(Mapper *m, int64_t declared, const Cell *labels, uint32_t label_count) noexcept nogil
# context.call.protocol and method, and their names in the record.
cdef void set_protocol(Mapper *m, const char *protocol, Text method) noexcept nogil
# Whether 1 to `n` bytes of printable ASCII stand there.
cdef bint is_printable(Text text, uint32_t n) noexcept nogil
