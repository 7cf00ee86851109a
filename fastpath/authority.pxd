"""What the control plane says of authority: rows made of Python objects, put into the live state."""
from fastpath.bells cimport Bells
from fastpath.changes cimport Change
from fastpath.live_state cimport Approval, LiveState, Task
from fastpath.scope cimport ScopeRow


# Rows hold texts alone, in tuples: nothing for the collector of cycles, which would go through every open task.
cdef class TaskRow:
    cdef Task task
    cdef ScopeRow scope
    cdef tuple kept
    cdef int _account(self, dict data) except -1


cdef class ApprovalRow:
    cdef Approval approval
    cdef tuple kept
    cdef int _read_labels(self, list kept, object labels) except -1


cdef class Live:
    cdef LiveState *state
    cdef dict _tasks         # id: TaskRow
    cdef dict _approvals     # id: ApprovalRow
    cdef list _kept
    cdef str _namespace
    cdef Bells _bells        # that its changes ring, or None
    cdef int listen(self, Bells bells) except -1


cdef class Changes:          # read, and not in force yet; they own their rows until then
    cdef Live live
    cdef Change *rows
    cdef size_t n
    cdef bint taken          # put, or tried to
    cdef list kept           # texts that rows borrow until they are linked
    cdef list tasks          # (id, TaskRow, or None of one that is forgotten)
    cdef list approvals      # (place in rows, id, ApprovalRow, or None of one that is taken out)
    cdef int _read(self, Change *change, str name, data) except -1
    cdef int _read_task(self, Change *change, data) except -1
    cdef int _read_revocation(self, Change *change, data) except -1
    cdef int _read_owner(self, Change *change, data) except -1
    cdef int _read_approval(self, Change *change, data) except -1
    cdef int resolve(self, Live live, dict approvals) except -1
