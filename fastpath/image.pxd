"""The layout of a compiled generation: one flat, little-endian, position-independent image, and a delta on it.

Offsets named `off_*` are bytes from the start; every `at` is an offset divided by 8, so 32 bits reach 32 GiB. Every
section starts at a multiple of 8. Rows that a call touches are one or two lines of the processor's cache, and start
where a pair of lines does when LMDB maps them (ROWS_ALIGNED_AT). Cells inside the image are self-relative like all
cells (value.pxd). sidecar/policy/image.py writes an image, sidecar/policy/delta.py a delta; structure.pyx and
delta_check.pyx verify them, rows.pxd and table.pyx read them. A size or meaning that changes here changes
IMAGE_VERSION.
"""
from fastpath.value cimport Cell
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cpdef enum:
    IMAGE_VERSION = 4
    NONE32 = 0xFFFFFFFF
    ROWS_ALIGNED_AT = 112  # of 128: a value in pages of its own starts 16 bytes into the first one
    NODE_ROOM = 88        # bytes of a Node for its uid and its lists
    GUARD_SHIFT = 28      # a guard's kind is above these bits, its row in them: there is room for no more nodes
    GUARD_ROWS = 0x10000000


cpdef enum ImageFlag:
    IMAGE_COLUMNS = 1    # compiled with live-state columns: `context.task.present` is a column load


cpdef enum Scope:        # how one of principal, action, resource is constrained
    SCOPE_ANY = 0
    SCOPE_EQ = 1         # == uid
    SCOPE_IN = 2         # in uid
    SCOPE_IS = 3         # is type
    SCOPE_IS_IN = 4      # is type in uid
    SCOPE_IN_LIST = 5    # action in [uid, ..]


cpdef enum FiledUnder:   # the constraint that leads a call to a policy
    FILED_PRINCIPAL_EQ = 0
    FILED_PRINCIPAL_IN = 1
    FILED_RESOURCE_EQ = 2
    FILED_RESOURCE_IN = 3
    FILED_ACTION_EQ = 4
    FILED_ACTION_IN = 5
    FILED_NODES = 6      # so many are under a node; the next two are under a type
    FILED_PRINCIPAL_IS = 6
    FILED_RESOURCE_IS = 7
    FILED_ANY = 8


cpdef enum:
    INHERITED = 6        # of a node's lists of policies, behind those by FiledUnder: what is filed under its ancestors
    NODE_LISTS = 7


cpdef enum Effect:
    EFFECT_PERMIT = 0
    EFFECT_FORBID = 1


cpdef enum PolicyFlag:
    POLICY_CURABLE = 1   # @obligation("approval") or @obligation("step-up"): an approval would lift this forbid
    POLICY_NEVER = 2     # @never: break-glass cannot cross it
    POLICY_SHADOW = 4    # @shadow: evaluated and recorded, never decides
    POLICY_OBLIGES = 8   # its Note has an obligation
    POLICY_GONE = 16     # of a delta: removed or changed; its scope is an empty list of actions, which matches nothing
    POLICY_TASKLESS = 32  # @task("none"): this permit needs no task to stand behind the call


cpdef enum NodeFlag:
    NODE_PRESENT = 1     # an entity of the store, so it has attributes and tags
    NODE_PARENT = 2      # some entity names it as a parent, so `closure` is complete
    NODE_SAME = 4        # of a delta: attributes and tags are those of the base's row
    # What there may be above a node, so that no row of a parent is read in vain. A delta's rows have all of them.
    NODE_UNDER_PRINCIPAL_IN = 8    # policies under an ancestor, by FILED_PRINCIPAL_IN; the next two likewise
    NODE_UNDER_RESOURCE_IN = 16
    NODE_UNDER_ACTION_IN = 32
    NODE_DEEP = 64       # ancestors of a parent
    NODE_ABOVE = 120     # these four
    NODE_LIST = 256      # << FiledUnder: it has policies filed so
    NODE_INHERITS = 16384  # << INHERITED, of a base's node that is no parent: it has those that NODE_UNDER speaks of


cdef struct Span:        # text or rows
    uint32_t at
    uint32_t n


cdef struct List:        # uint32_t[n], ascending, without duplicates
    uint32_t at          # n == 1: the member itself
    uint32_t n


cdef struct Entry:       # of a list of policies
    uint32_t policy
    # Another constraint of the policy, as FiledUnder << GUARD_SHIFT | row of the node or type: of a call that does not
    # meet it the policy's row is not read. FILED_ANY << GUARD_SHIFT: none.
    uint32_t guard


cdef struct Entries:     # Entry[n], ascending by policy, without duplicates
    uint32_t at
    uint32_t n


cdef struct Slot:        # of an open-addressed table, probed linearly; a power of two of them, at least half free
    uint32_t tag         # of a uid: the high half of its hash; of a row that is replaced: the row's index
    uint32_t row         # NONE32: free


cdef struct Totals:      # of an image; of a delta: of base and delta together
    uint64_t columns_read[2]   # bit i: some policy reads Column i
    uint32_t node_count
    uint32_t type_count
    uint32_t policy_rows       # those that are gone included
    uint32_t policy_count      # without them
    uint32_t entity_count      # nodes that are entities, for people
    uint32_t stack_max         # deepest value stack of a program
    # Text: names under `context` that are not columns and that some policy reads, NUL-separated, sorted; "*" as well
    # when some policy reads `context` whole (then "http" and "input" stand there too).
    Span extras_read


cdef struct Header:      # at offset 0
    char magic[8]              # "REMITGEN"
    uint32_t version
    uint32_t flags             # ImageFlag
    uint64_t size              # of the whole image
    Totals totals
    uint32_t uid_slots
    uint32_t type_slots
    uint64_t off_nodes         # Node[node_count], sorted by type bytes, then id bytes
    uint64_t off_uid_slots     # Slot[uid_slots]: nodes, from hash & (uid_slots - 1)
    uint64_t off_types         # Type[type_count], sorted by name bytes
    uint64_t off_type_slots    # Slot[type_slots]: types, likewise; hash is XXH3-64 of the type's text, seed 0
    uint64_t off_policies      # Policy[policy_rows], sorted by id bytes
    uint64_t off_notes         # Note[note_count]
    uint64_t note_count
    uint64_t off_code          # uint32_t[code_words]
    uint64_t code_words
    uint64_t off_constants     # Cell[constant_count]
    uint64_t constant_count
    Entries any_policies       # policies whose scope is filed under nothing
    List parents               # nodes with NODE_PARENT
    Span input_actions         # InputShape[], sorted by node index of the action


cdef struct Node:        # one uid that the image names, as entity, parent, or constant: two lines
    uint32_t uid         # `at` of a Uid (value.pxd) with index and type_index set; in `room` when it fits there
    uint32_t flags       # NodeFlag
    List parents         # nodes: the entity's own parents
    List closure         # with NODE_PARENT nodes: all its ancestors; else none
    # Policies, of a delta those that it adds: the one list that NODE_LIST flags name. When they name several, `at` of
    # Entries[n], one for each in their order.
    Entries lists
    uint32_t attrs       # `at` of a Cell, KIND_RECORD (empty when not present)
    uint32_t tags        # likewise
    uint8_t room[NODE_ROOM]   # the uid and as many of the row's lists as fit, so that one miss brings them


cdef struct Type:        # one entity type that the image names
    Span name
    Entries principal_is   # as a Node's
    Entries resource_is


cdef struct Policy:      # one line
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
    uint32_t stack           # value stack depth of the program
    # Nodes; when filed by its action the policy stands in action_in of every member, so one request may meet it more
    # than once.
    List actions
    uint32_t code            # first word in the code section; links share their template's
    uint32_t code_words      # 0: no conditions, satisfied when the scope matches
    Span id                  # text
    uint32_t note            # row of its Note, which equal ones share
    uint32_t rank            # of a delta: how many policies of the base have a smaller id; else 0


cdef struct Note:        # what is read of a policy once it has determined a decision; texts
    Span template            # id of the template a link was made from, else empty
    Span reason              # @reason, else empty
    Span obligation          # @obligation, else empty
    Span annotations         # all annotations as a JSON object, keys sorted


cdef struct InputShape:  # the declared type of context.input for one action, as JSON Schema subset for the decoder
    uint32_t action      # node index
    uint32_t shape       # index of a constant: record cell; see program.pxd "shapes"


# A delta is laid over the base it names: `at` beyond the base's size, node, type and policy indexes beyond its rows,
# code and notes beyond its own stand in the delta, in this order. Programs of the delta name constants of the delta.
# Rows that are appended come first, then those that stand in place of a row of the base.
cdef struct DeltaHeader:
    char magic[8]              # "REMITDLT"
    uint32_t version
    uint32_t flags             # ImageFlag, as the base has it
    uint64_t size              # of the whole delta
    uint64_t base_size
    uint8_t base_digest[32]    # SHA-256 of the base's image
    Totals totals
    uint32_t node_rows
    uint32_t type_rows
    uint32_t policy_rows
    uint32_t note_count
    uint32_t uid_slots         # Slot[]: appended nodes
    uint32_t type_slots        # Slot[]: appended types
    uint32_t node_slots        # Slot[]: replaced nodes by index, from index_hash
    uint32_t type_row_slots    # Slot[]: replaced types, likewise
    uint32_t policy_slots      # Slot[]: policies of the base that are gone, likewise
    uint32_t code_words
    uint32_t constant_count
    uint32_t lists             # NODE_UNDER flags: by which of these its nodes have policies
    uint64_t off_nodes
    uint64_t off_types         # of a replaced one only the lists count, as what they add
    uint64_t off_policies
    uint64_t off_notes
    uint64_t off_uid_slots
    uint64_t off_type_slots
    uint64_t off_node_slots
    uint64_t off_type_row_slots
    uint64_t off_policy_slots
    uint64_t off_code
    uint64_t off_constants
    Entries any_policies       # those that it adds
