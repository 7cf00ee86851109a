"""What an MCP call is: from Mcp-* headers, metadata of Envoy's MCP filter and the JSON-RPC body, which must agree.

Source: MCP specification 2024-11-05 to 2026-07-28 (base protocol, transports), JSON-RPC 2.0.
"""
from fastpath.envoy cimport HttpCall, header_bit
from fastpath.json_tree cimport Json
from fastpath.value cimport Arena
from fastpath.wire cimport Text, text_of
from libc.stdint cimport uint8_t, uint32_t


cpdef enum McpTarget:        # what a method acts on
    MCP_NOTHING = 0          # no MCP method that we know
    MCP_SERVER = 1           # the server itself
    MCP_TOOL = 2             # params.name; the class of the tool is the caller's to look up
    MCP_PROMPT = 3           # params.name
    MCP_URI = 4              # params.uri
    MCP_TASK = 5             # params.taskId
    MCP_REFERENCE = 6        # params.ref: a prompt's name or a resource's uri


cdef struct McpTrust:        # when headers alone say what a call is
    uint8_t headers_alone    # the server refuses a call whose headers and body differ
    const Text *versions     # protocol versions in which servers must do so
    uint32_t version_count


cdef struct McpCall:
    Text refusal             # reason code, or empty; static memory
    Text action              # class action: "list", "read", ..; empty for a tool
    uint8_t target           # McpTarget; MCP_PROMPT or MCP_URI in place of MCP_REFERENCE
    uint8_t input_mode       # InputMode of request.pxd
    uint8_t body_read        # the body was there, whole and parsed
    uint8_t header_mismatch
    Text method
    Text name                # the subject that `target` names; empty when the method has none
    Text id                  # JSON text of the message's id, or empty
    const Json *params       # of the body, or NULL


# Read the call; out.refusal says why it has no meaning. GET and DELETE (older versions: stream, end of session) act on
# the server. Memory that a body too large for the arena took is given back.
cdef void mcp_read(const HttpCall *call, const McpTrust *trust, Arena *arena, McpCall *out) noexcept nogil
# As header_single, of a name whose bit is set; `value` is left alone when there is none.
cdef int header_found(const HttpCall *call, Text name, Text *value) noexcept nogil


cdef inline int header_single(const HttpCall *call, const char *name, Text *value) noexcept nogil:
    """The single value of a header: 0 when absent, 1 with `value` set, -1 when it has several or arrived altered."""
    cdef Text wanted = text_of(name)
    value.p, value.n = NULL, 0
    if wanted.n == 0 or not call.header_bits & header_bit(wanted.p, wanted.n):
        return 0
    return header_found(call, wanted, value)


# Whether the parameters of a content type name a charset that is not UTF-8: its reader would see another text than we.
cdef bint names_other_charset(Text parameters) noexcept nogil
# Whether the method's name is one of MCP's.
cdef bint mcp_is_method(Text method) noexcept nogil
