"""The canonical request: what every door turns its bytes into, and all that `decide` reads of a call."""
from fastpath.columns cimport COLUMN_COUNT
from fastpath.json_tree cimport Json
from fastpath.value cimport Arena, Cell, Uid
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cpdef enum Door:
    DOOR_NONE = 0
    DOOR_EXT_AUTHZ = 1       # Envoy, HTTP filter
    DOOR_EXT_AUTHZ_NETWORK = 2   # Envoy, network filter: no `http`
    DOOR_CHECK = 3           # the agent's own gRPC check
    DOOR_BATCH = 4
    DOOR_EXPLAIN = 5
    DOOR_REPORT = 6          # what became of an allowed call: no decision


cpdef enum InputMode:        # where the action and its arguments were read from
    INPUT_HEADERS = 0
    INPUT_METADATA = 1
    INPUT_BODY = 2
    INPUT_DIRECT = 3         # named by the caller of Check


cdef enum:
    EXTRAS_MAX = 8           # attributes of context that are not columns: input, http, and those of routes
    REASON_NAME_MAX = 128    # bytes of a name in a reason code


cdef struct Content:         # what an exact approval is bound to, beside the subject, the action and the arguments
    uint8_t seen             # all of it reached us, unaltered; 0: only an approval by class fits the call
    Text method              # HTTP method; empty: no HTTP call
    Text target              # path and query as sent
    Text media               # content-type and content-encoding: what the body means
    Text coding
    Text body                # as sent; empty where `params` stands for it
    const Json *params       # of an MCP message, or NULL


cdef struct Request:
    # What decide evaluates.
    Uid *principal
    Uid *action
    Uid *resource
    Uid *resource_parent     # or NULL: taken as the resource's only parent when the store does not have the resource
    Cell extras              # KIND_RECORD: context attributes that are not columns
    Text unsent[EXTRAS_MAX]  # names of extras whose input the caller did not send (or not whole); reading one denies
    uint32_t unsent_count
    Text refusal             # reason code when the request is malformed or ambiguous: decide denies with it
    # What the record and the reply name besides.
    uint8_t door
    uint8_t input_mode
    uint8_t dry_run          # decide without side effects: no budget, history or counter moves
    Text request_id          # the caller's, or empty
    Text trace_id            # 32 hex digits, or empty
    Text span_id             # 16 hex digits, or empty
    Text task                # id that the call names (header x-agent-task or Check.task), or empty
    Text protocol            # "http", "grpc", "mcp", "check", "network"
    Text method              # HTTP method, gRPC path or MCP method
    Text host                # canonical
    Text path                # canonical, without query
    Text destination         # canonical authority
    Text certificate         # of the principal as an Envoy passes it on, URL-encoded PEM; or empty
    Text subject             # delegated subject: on whose behalf, as verified; else empty
    Text denial_id           # JSON text of the JSON-RPC id, to be echoed by an MCP denial; else empty
    uint8_t args_digest[32]  # SHA-256 over the canonical arguments
    uint8_t has_args_digest
    Content content
    int64_t cost             # what the caller says the call costs, in units of its task's budget; 0: nothing
    uint8_t body_present     # a body arrived
    uint8_t sanitised        # some text arrived altered by the proxy
    int64_t started_ns       # monotonic, when the call's bytes were handed to us
    int64_t started_unix_ns  # wall clock at the same moment
    int64_t deadline_ns      # monotonic; a decision after it is ERROR `late`
    Cell columns[COLUMN_COUNT]   # filled with absent values, then by the door (dest, cred, call) and by the authority


# Make `request` empty: all zero, columns absent, extras an empty record. Doors call it first, then set door, times and
# deadline.
cdef void request_init(Request *request) noexcept nogil
# A reason code that ends in a name, such as "input.missing." and "body"; in the arena, cut after REASON_NAME_MAX bytes.
cdef Text reason_named(const char *prefix, Text name, Arena *arena) noexcept nogil
# Note why the request is malformed or ambiguous; the first reason stays.
cdef inline void request_refuse(Request *request, Text reason) noexcept nogil:
    if request.refusal.n == 0:
        request.refusal = reason
