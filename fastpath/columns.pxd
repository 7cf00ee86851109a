"""The live-state columns of a call: one id per leaf of the context that the sidecar alone sets.

The numbers are part of the generation format and of nothing else; `COLUMNS` in columns.pyx gives each column's path,
kind and absent value (what a policy sees when the state does not exist), in this order.
"""
cpdef enum Column:
    COL_DEST = 0
    COL_TASK_PRESENT
    COL_TASK_ID
    COL_TASK_STATE
    COL_TASK_PURPOSE
    COL_TASK_COVERS_TOOL
    COL_TASK_COVERS_ACTION
    COL_TASK_COVERS_DEST
    COL_TASK_COVERS_DATA
    COL_TASK_MAX_LEVEL
    COL_TASK_TTL_S
    COL_TASK_CALLS_LEFT
    COL_TASK_COST_LEFT
    COL_TASK_DEPTH
    COL_TASK_MAX_DEPTH
    COL_TASK_ATTENUATED
    COL_TASK_OWNER
    COL_SESSION_ID
    COL_SESSION_AGE_S
    COL_SESSION_LEVEL_SEEN
    COL_SESSION_LABELS_SEEN
    COL_SESSION_UNTRUSTED_SEEN
    COL_SESSION_UNTRUSTED_CALLS_AGO
    COL_SESSION_PRIVATE_SEEN
    COL_SESSION_TWO_OF_THREE
    COL_SESSION_SUSPICIOUS
    COL_BEHAVIOR_CALLS_1M
    COL_BEHAVIOR_CALLS_1H
    COL_BEHAVIOR_RATE_X100
    COL_BEHAVIOR_DENIALS_5M
    COL_BEHAVIOR_DENIALS_ROW
    COL_BEHAVIOR_NEW_TOOL
    COL_BEHAVIOR_NEW_DEST
    COL_BEHAVIOR_NEW_PAIR
    COL_BEHAVIOR_TOOLS_1H
    COL_BEHAVIOR_DESTS_1H
    COL_BEHAVIOR_AGENTS_1H
    COL_BEHAVIOR_BYTES_OUT_1H
    COL_BEHAVIOR_COST_1H
    COL_BEHAVIOR_DRIFT
    COL_BEHAVIOR_PEERS_10M
    COL_BEHAVIOR_OVERLAP
    COL_DELEGATION_DEPTH
    COL_DELEGATION_ORIGIN
    COL_DELEGATION_CHAIN_OK
    COL_DELEGATION_ON_BEHALF
    COL_APPROVAL_STATE
    COL_APPROVAL_MATCHES
    COL_APPROVAL_SELF_APPROVED
    COL_APPROVAL_AGE_S
    COL_APPROVAL_BREAK_GLASS
    COL_RISK_AGENT
    COL_RISK_USER
    COL_RISK_SOURCE_AGE_S
    COL_CRED_KIND
    COL_CRED_AGE_S
    COL_CRED_TTL_S
    COL_CRED_BOUND
    COL_CALL_PROTOCOL
    COL_CALL_METHOD
    COL_CALL_DATA_LEVEL
    COL_CALL_DATA_LABELS
    COL_CALL_BYTES
    COL_CALL_HEADER_MISMATCH
    COL_CALL_BODY_COMPLETE
    COLUMN_COUNT


from fastpath.value cimport Cell
from fastpath.wire cimport Text
from libc.stdint cimport uint8_t, uint32_t


cdef enum:
    GROUP_MAX = 24           # columns of one group, and groups


cdef struct ColumnMember:
    Text key                 # last segment of the column's path
    uint8_t column           # Column


cdef struct ColumnGroup:     # one attribute of `context` that the sidecar alone sets
    Text name
    uint8_t whole            # 1: the attribute is itself the column members[0] (`dest`)
    uint32_t count
    ColumnMember members[GROUP_MAX]   # by key bytes


# Fill COLUMN_COUNT cells with the absent values. Borrows static memory only.
cdef void columns_absent(Cell *columns) noexcept nogil
# All groups, by name bytes; static memory.
cdef const ColumnGroup *column_groups(uint32_t *count) noexcept nogil
# The group named so, or NULL.
cdef const ColumnGroup *column_group(const char *name, uint32_t n) noexcept nogil
