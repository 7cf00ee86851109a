"""The layout of a compiled generation: one flat, little-endian, position-independent image.

All `off_*` are bytes from the start of the image; every section starts at a multiple of 8. Cells inside the image
are self-relative like all cells (value.pxd). sidecar/policy/image.py writes what is described here; structure.pyx
verifies it, table.pyx reads it. A size or meaning that changes here changes IMAGE_VERSION.
"""
from fastpath.value cimport Cell
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cpdef enum:
    IMAGE_VERSION = 1
    NONE32 = 0xFFFFFFFF


cpdef enum ImageFlag:
    IMAGE_COLUMNS = 1    # compiled with live-state columns: `context.task.present` is a column load


cpdef enum Scope:        # how one of principal, action, resource is constrained
    SCOPE_ANY = 0
    SCOPE_EQ = 1         # == uid
    SCOPE_IN = 2         # in uid
    SCOPE_IS = 3         # is type
    SCOPE_IS_IN = 4      # is type in uid
    SCOPE_IN_LIST = 5    # action in [uid, ..]


cpdef enum Effect:
    EFFECT_PERMIT = 0
    EFFECT_FORBID = 1


cpdef enum PolicyFlag:
    POLICY_CURABLE = 1   # @obligation("approval") or @obligation("step-up"): an approval would lift this forbid
    POLICY_NEVER = 2     # @never: break-glass cannot cross it
    POLICY_SHADOW = 4    # @shadow: evaluated and recorded, never decides
    POLICY_TASKLESS = 8  # @task("none"): this permit needs no task to stand behind the call


cdef struct Span:        # text or array inside the image
    uint64_t off
    uint32_t n
    uint32_t reserved


cdef struct Header:      # at offset 0
    char magic[8]              # "REMITGEN"
    uint32_t version
    uint32_t flags             # ImageFlag
    uint64_t size              # of the whole image
    uint64_t columns_read[2]   # bit i: some policy reads Column i
    uint32_t node_count
    uint32_t type_count
    uint32_t policy_count
    uint32_t entity_count      # nodes that are entities, for people
    uint32_t ancestors_max     # longest ancestor list of a node
    uint32_t stack_max         # deepest value stack of a program
    uint32_t uid_slots         # power of two, at least 2 * node_count
    uint32_t type_slots        # power of two, at least 2 * type_count
    uint64_t off_nodes         # Node[node_count]
    uint64_t off_uid_slots     # uint32_t[uid_slots]: node index or NONE32, linear probing from hash & (uid_slots - 1)
    uint64_t off_types         # Type[type_count]
    uint64_t off_type_slots    # uint32_t[type_slots], hash is XXH3-64 of the type's text, seed 0
    uint64_t off_policies      # Policy[policy_count], sorted by id bytes
    uint64_t off_code          # uint32_t[code_words]
    uint64_t code_words
    uint64_t off_constants     # Cell[constant_count]
    uint64_t constant_count
    Span any_policies          # uint32_t[]: policies whose scope is filed under nothing
    # Text: names under `context` that are not columns and that some policy reads, NUL-separated, sorted; "*" as well
    # when some policy reads `context` whole (then "http" and "input" stand there too).
    Span extras_read
    Span input_actions         # InputShape[], sorted by node index of the action


cdef struct Posting:     # uint32_t[n] policy indexes, ascending
    uint64_t off
    uint32_t n
    uint32_t reserved


cdef struct Node:        # one uid that the image names, as entity, parent, or constant
    uint64_t off_uid     # a Uid (value.pxd) with index and type_index set
    uint32_t present     # 1: is an entity of the store, so has attrs and tags
    uint32_t ancestor_count
    uint64_t off_ancestors   # uint32_t node indexes, ascending, transitively closed, without the node itself
    Cell attrs           # KIND_RECORD (empty when not present)
    Cell tags            # KIND_RECORD
    Posting principal_eq
    Posting principal_in
    Posting action_eq
    Posting action_in
    Posting resource_eq
    Posting resource_in


cdef struct Type:        # one entity type that the image names
    Span name
    Posting principal_is
    Posting resource_is


cdef struct Policy:
    uint8_t effect           # Effect
    uint8_t flags            # PolicyFlag
    uint8_t principal_op     # Scope
    uint8_t action_op
    uint8_t resource_op
    uint8_t reserved[3]
    uint32_t principal_uid   # node index or NONE32
    uint32_t principal_type  # type index or NONE32
    uint32_t action_uid
    uint32_t resource_uid
    uint32_t resource_type
    uint32_t code_words      # 0: no conditions, satisfied when the scope matches
    # uint32_t node indexes, ascending, no duplicates; when filed by its action the policy stands in action_in of every
    # member, so one request may meet it more than once.
    uint64_t off_action_list
    uint32_t action_count
    uint32_t stack           # value stack depth of the program
    uint64_t code            # index of the first word in the code section; links share their template's
    Span id                  # text
    Span template            # text: id of the template a link was made from, else empty
    Span reason              # text: @reason, else empty
    Span obligation          # text: @obligation, else empty
    Span annotations         # text: all annotations as a JSON object, keys sorted


cdef struct InputShape:  # the declared type of context.input for one action, as JSON Schema subset for the decoder
    uint32_t action      # node index
    uint32_t reserved
    uint64_t shape       # index of a constant: record cell; see program.pxd "shapes"
