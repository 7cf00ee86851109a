"""Checks of the rows that base and delta have alike: nodes, types, policies, notes, their lists and their filing."""
from fastpath.bounds cimport View
from fastpath.image cimport Entries, Node, Note, Policy, Slot, Type
from fastpath.rows cimport Table
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t


cdef struct Fault:
    const char *section      # "header", "nodes", "policies", ..: static text
    const char *cause        # static text
    uint64_t row             # of the section


cdef struct Check:
    View view                # over the memory whose rows are checked
    Table table              # what the rows may name: the base, or the base and its delta
    Fault *fault
    uint32_t first_policy    # the rows that are checked: from here on ..
    uint32_t policy_rows     # .. so many
    uint32_t *filed          # per policy: lists that name it
    uint8_t *filed_by        # per policy: how it is filed, 0 before the first
    int32_t *depths          # scratch of code_check
    uint32_t *marks          # per node: whose ancestor it was seen to be last
    uint32_t first_code      # programs that start from here on, before ..
    uint32_t code_words      # .. so many words, are checked once
    uint8_t *done            # per word of code: 1 where a program with checked code starts
    uint32_t *done_words     # .. its length
    uint32_t *done_stack     # .. and the smallest stack it was checked with


# Room for the policies and the code that are to be checked, and its end; 0, or 1 with the fault filled.
cdef int check_begin(Check *check, uint64_t words_max) noexcept nogil
cdef void check_end(Check *check) noexcept nogil
# Fill the fault; `cause` NULL: what the view found. Always 1.
cdef int refuse(Check *check, const char *section, uint64_t row, const char *cause) noexcept nogil

# Each says whether the row is sound; why not is in the view.
cdef bint slots_fit(uint32_t slots, uint32_t count) noexcept nogil
# Whether exactly `count` slots are in use, by rows from `first` on; they are inside.
cdef bint slots_sound(Check *check, const Slot *slots, uint32_t n, uint32_t first, uint32_t count) noexcept nogil
# The NODE_UNDER flags of those that are in a node with such lists of policies.
cdef uint32_t lists_of(const Node *node) noexcept nogil
# Whether its list of what is filed under its ancestors is that; all nodes have been checked by node_fits.
cdef bint inherited_fits(Check *check, const Node *node) noexcept nogil
cdef bint node_fits(Check *check, const Node *node, uint32_t index, uint32_t flags_known) noexcept nogil
cdef bint type_fits(Check *check, const Type *type_, uint32_t index) noexcept nogil
cdef bint list_filed(Check *check, const Entries *list_) noexcept nogil
cdef bint policy_fits(Check *check, const Policy *policy) noexcept nogil
cdef bint note_fits(Check *check, const Note *note) noexcept nogil
# Whether the program of row `row` may run; scopes, constants and sections have been checked.
cdef bint program_fits(Check *check, const Policy *policy) noexcept nogil
# Whether policy `index` is in the index, under all of its actions when it is filed by a list of them.
cdef bint policy_filed(Check *check, uint32_t index) noexcept nogil
