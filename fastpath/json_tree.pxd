"""JSON values in the arena, from text (RFC 8259, by jansson) and from google.protobuf.Struct, in one canonical form.

Both sources give the same tree for the same value: a number without a fraction up to 2^53 is an integer however it was
written (1, 1.0, 1e0), every other number is its decimal text, so that nothing is rounded behind a policy's back.
"""
from fastpath.value cimport Arena
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t


cpdef enum JsonKind:
    TREE_NULL = 0
    TREE_BOOL = 1
    TREE_INTEGER = 2     # |integer| <= 2^53
    TREE_NUMBER = 3      # `text` is its shortest decimal form
    TREE_STRING = 4
    TREE_ARRAY = 5
    TREE_OBJECT = 6


cpdef enum JsonError:
    JSON_OK = 0
    JSON_MALFORMED = 1   # not JSON, not UTF-8, a NUL, an integer beyond 64 bits, NaN
    JSON_DUPLICATE = 2   # a key stands twice in one object
    JSON_DEEP = 3        # nested more than VALUE_DEPTH_MAX deep
    JSON_ROOM = 4        # the arena (then also a.failed) or the heap is full


cdef struct Json:
    uint8_t kind         # JsonKind
    uint32_t n           # members of an object, elements of an array
    int64_t integer      # of TREE_BOOL (0 or 1) and TREE_INTEGER
    Text text            # of TREE_STRING and TREE_NUMBER
    Json *items          # n children; those of an object are sorted by the bytes of `key`
    Text key             # name of this member in its object


# Parse n bytes that hold one object or array. A JsonError.
cdef int json_parse(const char *p, size_t n, Arena *arena, Json *out) noexcept nogil
# Read a google.protobuf.Struct that wire_check accepted. A JsonError. Its texts are borrowed from `message`.
cdef int json_struct(Text message, Arena *arena, Json *out) noexcept nogil
# The member `key` of an object, or NULL (also when `object` is NULL or no object).
cdef const Json *json_member(const Json *object, Text key) noexcept nogil
# Whether some member is named like `key` but for the case of letters, as readers that ignore case compare: Go's
# encoding/json takes it for `key`, whichever stands last. ASCII keys; in names also U+017F and U+212A, which fold to
# s and k. False when `object` is NULL or no object.
cdef bint json_has_variant(const Json *object, Text key) noexcept nogil
# Whether `name` is `key`, or would be to such a reader.
cdef bint same_folded(Text name, Text key) noexcept nogil
cdef const Json *json_get(const Json *object, const char *key) noexcept nogil
# The canonical text in the arena: keys sorted by bytes, no white space, only what must be escaped is. Empty when the
# arena is full.
cdef Text json_text(const Json *json, Arena *arena) noexcept nogil
