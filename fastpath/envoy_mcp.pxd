"""What Envoy's MCP filter says of a call, in the dynamic metadata of a CheckRequest."""
from fastpath.wire cimport Text, text_equal, text_of
from libc.stdint cimport uint8_t


cdef struct Mcp:             # what one namespace of dynamic metadata says of the MCP call
    uint8_t present
    Text method
    Text name                # params.name
    Text uri                 # params.uri


# Take one namespace of dynamic metadata: `filtered` is what envoy.filters.http.mcp says, `proxied` what mcp_proxy does,
# the name of older filters; any other is left alone. `entry` is of a message that was judged already.
cdef void mcp_namespace(Text entry, Mcp *filtered, Mcp *proxied) noexcept nogil


cdef inline Text mcp_subject(const Mcp *mcp) noexcept nogil:
    """What an MCP call names: a resource by its uri, all else by its name."""
    if mcp.method.n > 10 and text_equal(Text(mcp.method.p, 10), text_of("resources/")):
        return mcp.uri
    return mcp.name
