from fastpath.wire cimport (
    WIRE_BYTES, WIRE_FIXED64, WIRE_VARINT, Reader, Text, WireField, reader_next, reader_open, text_is, text_of,
)

# Read once the message is known to be one: reader_next cannot fail.


cdef bint read_entry(Text entry, Text *key, Text *value) noexcept nogil:
    """Key and last value of an entry of a map from strings to strings or messages.

    False when it holds anything else: upb then leaves the whole entry out of the map.
    """
    cdef Reader r
    cdef WireField f
    key[0] = value[0] = text_of(b"")
    reader_open(&r, entry)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES or f.number > 2:
            return False
        if f.number == 1:
            key[0] = f.bytes
        else:
            value[0] = f.bytes
    return r.groups == 0


cdef inline bint key_is(Text entry, const char *key) noexcept nogil:
    """Whether a map has this entry under `key`."""
    cdef Text found, value
    return read_entry(entry, &found, &value) and text_is(found, key)


cdef inline bint is_value_member(const WireField *f) noexcept nogil:
    """Whether the field sets the oneof of google.protobuf.Value."""
    if f.type == WIRE_VARINT:
        return f.number == 1 or f.number == 4
    if f.type == WIRE_FIXED64:
        return f.number == 2
    return f.type == WIRE_BYTES and (f.number == 3 or f.number == 5 or f.number == 6)


cdef Text entry_text(Text entry) noexcept nogil:
    """The string in the Value of a Struct's entry; empty when the value is anything else."""
    cdef Reader outer, r
    cdef WireField f, member
    cdef Text found = text_of(b"")
    reader_open(&outer, entry)
    while reader_next(&outer, &f):
        if f.number != 2 or f.type != WIRE_BYTES:
            continue
        reader_open(&r, f.bytes)
        while reader_next(&r, &member):
            if is_value_member(&member):
                found = member.bytes if member.number == 3 else text_of(b"")
    return found


cdef void read_mcp_params(Text params, Mcp *mcp) noexcept nogil:
    """Add a Struct to what is known of `params`."""
    cdef Reader r
    cdef WireField f
    reader_open(&r, params)
    while reader_next(&r, &f):
        if f.number != 1 or f.type != WIRE_BYTES:
            continue
        if key_is(f.bytes, "name"):
            mcp.name = entry_text(f.bytes)
        elif key_is(f.bytes, "uri"):
            mcp.uri = entry_text(f.bytes)


cdef void read_mcp_params_entry(Text entry, Mcp *mcp) noexcept nogil:
    """Take `params` from a Struct's entry, in place of an earlier one."""
    cdef Reader outer, r
    cdef WireField f, member
    mcp.name = mcp.uri = text_of(b"")
    reader_open(&outer, entry)
    while reader_next(&outer, &f):
        if f.number != 2 or f.type != WIRE_BYTES:
            continue
        reader_open(&r, f.bytes)
        while reader_next(&r, &member):
            if member.number == 5 and member.type == WIRE_BYTES:
                read_mcp_params(member.bytes, mcp)
            elif is_value_member(&member):
                mcp.name = mcp.uri = text_of(b"")


cdef void read_mcp_struct(Text message, Mcp *mcp) noexcept nogil:
    cdef Reader r
    cdef WireField f
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.number != 1 or f.type != WIRE_BYTES:
            continue
        if key_is(f.bytes, "method"):
            mcp.method = entry_text(f.bytes)
        elif key_is(f.bytes, "params"):
            read_mcp_params_entry(f.bytes, mcp)


cdef void mcp_namespace(Text entry, Mcp *filtered, Mcp *proxied) noexcept nogil:
    cdef Reader r
    cdef WireField f
    cdef Mcp *mcp
    if key_is(entry, "envoy.filters.http.mcp"):
        mcp = filtered
    elif key_is(entry, "mcp_proxy"):
        mcp = proxied
    else:
        return
    mcp.present = 1
    mcp.method = mcp.name = mcp.uri = text_of(b"")
    reader_open(&r, entry)
    while reader_next(&r, &f):
        if f.number == 2 and f.type == WIRE_BYTES:
            read_mcp_struct(f.bytes, mcp)
