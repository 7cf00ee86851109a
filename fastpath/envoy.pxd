"""What Envoy tells about one call: a CheckRequest decoded and made canonical, before it has a meaning.

wire reads it, canonical judges it, mapping turns it into a Request. All text is borrowed from the received bytes or
from the arena.
"""
from fastpath.value cimport Arena
from fastpath.wire cimport Text, text_of
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef struct Pair:
    Text name
    Text value


cdef struct HeaderLine:      # one occurrence; the `headers` map gives one line per name with values already joined
    Text name                # lower case; pseudo headers are not in the list
    Text value
    uint64_t head            # the name's first bytes as a number that sorts as they do
    uint8_t joined           # from the map: a comma may join several values
    uint8_t sanitised        # the value was not UTF-8, or carries Envoy's replacement
    uint8_t marks            # text_marks of the value as received
    uint8_t plain            # the name is lower case, digits and dashes alone
    uint32_t order           # breaks ties between lines of one name: as received, or by spelling in the map's form


cdef struct HttpCall:
    # As received.
    Text source_principal    # as Envoy asserts it, unparsed
    Text source_certificate  # the caller's, URL-encoded PEM; empty without include_peer_certificate
    Text source_address      # ip of the downstream, text
    Text destination_principal
    Text sni
    uint8_t has_http         # 0: network filter
    Text http_id             # x-request-id
    Text method
    Text raw_path            # with query, undecoded
    Text raw_host
    Text scheme
    Text protocol
    int64_t size             # -1: unknown
    HeaderLine *headers      # sorted by name, stable
    uint32_t header_count
    uint64_t header_bits     # header_bit of every name
    uint8_t sanitised        # some line is
    Text body
    uint8_t body_present
    uint8_t body_raw         # the very bytes: what arrives as text had its bad bytes replaced
    uint8_t body_complete    # present and not marked partial, and as long as content-length says when that is given
    Pair *extensions         # context_extensions, sorted by name, no duplicates
    uint32_t extension_count
    Text mcp_method          # dynamic metadata of Envoy's MCP filter, when forwarded
    Text mcp_name
    uint8_t mcp_metadata     # such metadata was there
    int64_t time_unix_ns     # request.time
    # Canonical (fastpath.canonical), valid when `refusal` is empty.
    Text host                # lower case, without default port and trailing dot; IPv6 in brackets
    uint32_t port            # 0: the scheme's default
    Text path                # decoded once, dot segments and doubled slashes resolved or refused
    Text query               # after the first raw `?`, undecoded
    Pair *query_pairs        # decoded once; in the order sent
    uint32_t query_count
    Text refusal             # first reason why the call is malformed or ambiguous: "path.not_canonical", .., or empty


cdef struct CanonicalRules:
    uint8_t strict_path      # raw path differs from canonical: refuse (default 1); 0: collapse and go on
    uint32_t headers_max     # lines
    uint32_t path_bytes_max


cdef inline void call_refuse(HttpCall *call, const char *reason) noexcept nogil:
    """Note the first reason why the call is malformed or ambiguous."""
    if call.refusal.n == 0:
        call.refusal = text_of(reason)


# Decode `n` bytes of envoy.service.auth.v3.CheckRequest. 0, or 1 when they are not one (then nothing in `call` may be
# used). Memory that runs out shows in arena.failed.
cdef int envoy_decode(const uint8_t *p, size_t n, Arena *arena, HttpCall *call) noexcept nogil
cdef inline uint64_t header_bit(const char *name, uint32_t n) noexcept nogil:
    """One of 64 bits: a name whose bit no header set is not there. `n` is not 0."""
    return <uint64_t> 1 << ((n + 5 * <uint8_t> name[0] + 11 * <uint8_t> name[n - 1] + 3 * <uint8_t> name[n // 2]) & 63)


# The values of header `name` (lower case): how many lines; the first into `line`. More than one line, or a joined value
# with a comma in a header that is single-valued, is the caller's ambiguity to refuse; so is a sanitised line that names
# an identity, a task, a method or a tool.
cdef uint32_t header_lines(const HttpCall *call, Text name, HeaderLine *line) noexcept nogil


cdef inline uint32_t envoy_header(const HttpCall *call, const char *name, HeaderLine *line) noexcept nogil:
    cdef Text wanted = text_of(name)
    if wanted.n == 0 or not call.header_bits & header_bit(wanted.p, wanted.n):
        return 0
    return header_lines(call, wanted, line)


cdef Text extension_value(const HttpCall *call, Text name) noexcept nogil


cdef inline Text envoy_extension(const HttpCall *call, const char *name) noexcept nogil:
    """The value of a context extension; empty when it is not there."""
    if call.extension_count == 0:
        return text_of("")
    return extension_value(call, text_of(name))
