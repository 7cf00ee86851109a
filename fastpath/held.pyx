"""Values in force, shared between Python and threads that never take the GIL (held.pxd)."""
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdlib cimport calloc, free

from fastpath.c.pthread cimport pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock

cdef extern from * nogil:
    """
    static inline void remit_hold(int64_t *p) { __atomic_fetch_add(p, 1, __ATOMIC_ACQUIRE); }
    static inline void remit_drop(int64_t *p) { __atomic_fetch_sub(p, 1, __ATOMIC_RELEASE); }
    static inline void remit_count(uint64_t *p) { __atomic_fetch_add(p, 1, __ATOMIC_RELEASE); }
    static inline int64_t remit_holders(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    """
    void remit_hold(int64_t *p)
    void remit_drop(int64_t *p)
    void remit_count(uint64_t *p)
    int64_t remit_holders(const int64_t *p)


cdef class Slot:

    def __cinit__(self):
        self.current = NULL
        self.replaced = NULL
        if pthread_mutex_init(&self.lock, NULL):
            raise MemoryError

    def __dealloc__(self):
        # Readers hold a reference to whoever owns this slot, so none is left now.
        cdef Held *at
        if self.current != NULL:
            self.current.next = self.replaced
            self.replaced = self.current
            self.current = NULL
        while self.replaced != NULL:
            at = self.replaced
            self.replaced = at.next
            _free(at)
        pthread_mutex_destroy(&self.lock)

    cdef int put(self, object owner, const void *data) except -1:
        """Put `data`, memory of `owner`, in force."""
        cdef Held *made = <Held *> calloc(1, sizeof(Held))
        cdef Held *before
        if made == NULL:
            raise MemoryError
        Py_INCREF(owner)  # given back by _free
        made.owner = <void *> <PyObject *> owner
        made.data = data
        pthread_mutex_lock(&self.lock)
        before = self.current
        self.current = made
        remit_count(&self.puts)
        pthread_mutex_unlock(&self.lock)
        if before != NULL:
            before.next = self.replaced
            self.replaced = before
        return self.sweep()

    cdef int sweep(self) except -1:
        """Let go of what was replaced and has no reader."""
        cdef Held *at = self.replaced
        cdef Held *gone = NULL
        cdef Held *after
        # Letting go can run Python and so come back here: the list is taken apart first.
        self.replaced = NULL
        while at != NULL:
            after = at.next
            # INVARIANT (replaced): nobody enters it any more, so a count of zero is final.
            if remit_holders(&at.readers):
                at.next = self.replaced
                self.replaced = at
            else:
                at.next = gone
                gone = at
            at = after
        while gone != NULL:
            after = gone.next
            _free(gone)
            gone = after
        return 0


cdef int _free(Held *held) except -1:
    cdef PyObject *owner = <PyObject *> held.owner
    free(held)
    Py_DECREF(<object> owner)  # taken by Slot.put
    return 0


cdef Held *slot_enter(Slot slot) noexcept nogil:
    cdef Held *held
    pthread_mutex_lock(&slot.lock)
    held = slot.current
    if held != NULL:
        remit_hold(&held.readers)
    pthread_mutex_unlock(&slot.lock)
    return held


cdef void slot_leave(Held *held) noexcept nogil:
    if held != NULL:
        remit_drop(&held.readers)
