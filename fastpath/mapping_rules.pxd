"""The compiled `mapping` section: flat, immutable memory that mapping and routes read. Texts end in NUL as well."""
from fastpath.mcp cimport McpTrust
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef enum HostKind:
    HOST_ANY = 0
    HOST_EXACT = 1
    HOST_BELOW = 2           # `*.example.org`: any name that ends in the text and is longer


cdef enum SegmentKind:
    SEGMENT_LITERAL = 0
    SEGMENT_STAR = 1         # one segment, not empty
    SEGMENT_CAPTURE = 2      # the same, kept
    SEGMENT_TAIL = 3         # the rest, also none


cdef enum PieceKind:
    PIECE_LITERAL = 0
    PIECE_CAPTURE = 1
    PIECE_HOST = 2
    PIECE_METHOD = 3
    PIECE_PATH = 4
    PIECE_HEADER = 5
    PIECE_QUERY = 6


cdef enum SourceKind:        # where a context attribute comes from
    SOURCE_CAPTURE = 0
    SOURCE_HEADER = 1
    SOURCE_QUERY = 2
    SOURCE_CONSTANT = 3


cdef enum AttributeKind:
    ATTRIBUTE_STRING = 0
    ATTRIBUTE_LONG = 1
    ATTRIBUTE_BOOL = 2
    ATTRIBUTE_SET = 3        # of String


cdef enum ExtensionFlag:     # keys of context_extensions that are read
    EXTENSION_PROTOCOL = 1
    EXTENSION_DEST = 2
    EXTENSION_SERVER = 4
    EXTENSION_ROUTE = 8
    EXTENSION_DRY_RUN = 16


cdef enum:
    CAPTURES_MAX = 16


cdef struct HostRule:
    Text text                # lower case; of HOST_BELOW with its leading dot
    uint8_t kind             # HostKind
    uint32_t port            # 0: any


cdef struct ServerRule:
    HostRule at
    Text path                # the endpoint: this path and what is below it
    Text name
    uint8_t headers_alone


cdef struct DestinationRule:
    HostRule at
    Text id


cdef struct ToolRule:
    Text name                # "server/tool"
    Text action              # class action, or empty
    Text destination_from    # argument, or empty


cdef struct Segment:
    uint8_t kind             # SegmentKind
    Text text


cdef struct Piece:
    uint8_t kind             # PieceKind
    uint32_t capture
    Text text                # literal, header or parameter name


cdef struct Template:
    Text type                # with its namespace; empty: no entity
    Piece *pieces
    uint32_t piece_count


cdef struct Attribute:
    Text name
    uint8_t source           # SourceKind
    uint8_t kind             # AttributeKind
    uint8_t required
    uint32_t capture
    Text text                # header or parameter name, or the constant string
    int64_t number           # constant Long or Bool


cdef struct RouteRule:
    Text name
    HostRule at
    Text *methods            # none: any
    uint32_t method_count
    Segment *segments
    uint32_t segment_count
    Text principal_type
    Text action_type         # empty: by the HTTP method
    Text action_id
    Template resource
    Template parent
    Text destination         # id, or empty: by host
    Attribute *attributes
    uint32_t attribute_count


cdef struct MappingRules:
    Text *trust_domains
    uint32_t trust_domain_count
    Text agent_type          # types with their namespace
    Text action_type
    Text tool_type
    Text endpoint_type
    Text server_type
    Text destination_type
    Text namespace           # empty: none
    ToolRule *tools          # sorted by name
    uint32_t tool_count
    Text tool_action         # class action of every other tool
    int64_t tool_level       # of a tool whose entity has none
    ServerRule *servers
    uint32_t server_count
    DestinationRule *destinations
    uint32_t destination_count
    RouteRule *routes
    uint32_t route_count
    uint8_t extensions       # ExtensionFlag
    uint8_t grpc_by_content_type
    McpTrust mcp             # headers_alone is the server's


cdef class Room:
    """Memory that compiled rules point into; it lives as long as this object."""
    cdef list _kept
    cdef void *take(self, size_t n) except NULL
    cdef Text text(self, str value)


# Compile a sidecar.config_mapping.MappingConfig into `room`. Raises ValueError for what the config should have refused.
cdef MappingRules *compile_rules(object config, Room room) except NULL
# Whether host and port (0: the default of `scheme`) fit the rule.
cdef bint host_fits(const HostRule *rule, Text host, uint32_t port, Text scheme) noexcept nogil
# The rule of tool "server/tool", or NULL.
cdef const ToolRule *find_tool(const MappingRules *rules, Text name) noexcept nogil
