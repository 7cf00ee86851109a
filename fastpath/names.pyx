"""See names.pxd."""
from cpython cimport array
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

import array

from fastpath.c.xxhash cimport XXH3_64bits

cdef extern from "stdlib.h" nogil:
    void qsort_r(void *base, size_t count, size_t size, int (*compare)(const void *, const void *, void *), void *state)

cdef uint32_t FIRST = 1024
cdef uint32_t NONE = 0xFFFFFFFF
cdef uint32_t COUNT_MAX = 1 << 31
cdef array.array NUMBERS = array.array("I")


cdef struct Texts:               # what the sort compares by
    const char *text
    const uint64_t *ends


cdef int by_text(const void *a, const void *b, void *state) noexcept nogil:
    cdef Texts *texts = <Texts *> state
    cdef uint32_t x = (<const uint32_t *> a)[0]
    cdef uint32_t y = (<const uint32_t *> b)[0]
    cdef uint64_t x_at = texts.ends[x - 1] if x else 0
    cdef uint64_t y_at = texts.ends[y - 1] if y else 0
    cdef uint64_t x_size = texts.ends[x] - x_at
    cdef uint64_t y_size = texts.ends[y] - y_at
    cdef int found = memcmp(texts.text + x_at, texts.text + y_at, x_size if x_size < y_size else y_size)
    if found == 0:
        return (x_size > y_size) - (x_size < y_size)
    return found


cdef class Names:

    def __cinit__(self):
        self.text_room = 64 * FIRST
        self.room = FIRST
        self.slots_mask = 2 * FIRST - 1
        self.text = <char *> malloc(self.text_room)
        self.ends = <uint64_t *> malloc(self.room * sizeof(uint64_t))
        self.slots = <uint32_t *> malloc((self.slots_mask + 1) * sizeof(uint32_t))
        if self.text is NULL or self.ends is NULL or self.slots is NULL:
            raise MemoryError
        memset(self.slots, 0xFF, (self.slots_mask + 1) * sizeof(uint32_t))

    def __dealloc__(self):
        free(self.text)
        free(self.ends)
        free(self.slots)

    def __len__(self):
        return self.count

    def __getitem__(self, uint32_t number):
        cdef uint64_t size = 0
        if number >= self.count:
            raise IndexError(number)
        cdef const char *raw = self.at(number, &size)
        return PyBytes_FromStringAndSize(raw, size)

    def add(self, bytes raw not None):
        return self.put(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))

    def add_all(self, raws):
        cdef bytes raw
        cdef list given = list(raws)
        cdef array.array found = array.clone(NUMBERS, len(given), False)
        cdef Py_ssize_t i
        for i in range(len(given)):
            raw = given[i]
            if raw is None:
                raise TypeError("bytes are expected")
            found.data.as_uints[i] = self.put(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
        return found

    def find(self, bytes raw not None):
        cdef uint32_t slot = self._slot(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
        return -1 if self.slots[slot] == NONE else self.slots[slot]

    def order(self):
        cdef array.array found = array.clone(NUMBERS, self.count, False)
        cdef uint32_t *numbers = <uint32_t *> found.data.as_uints
        cdef Texts texts
        cdef uint32_t i
        texts.text, texts.ends = self.text, self.ends
        with nogil:
            for i in range(self.count):
                numbers[i] = i
            # glibc's merge sort: on what arrives nearly sorted it is nearly linear.
            # It wants an array, and there is none of no names.
            if self.count:
                qsort_r(numbers, self.count, sizeof(uint32_t), by_text, &texts)
        return found

    cdef const char *at(self, uint32_t number, uint64_t *size) noexcept nogil:
        """The string of a number below `count`; it stays where it is until the next one is put."""
        cdef uint64_t begin = self.ends[number - 1] if number else 0
        size[0] = self.ends[number] - begin
        return self.text + begin

    cdef uint32_t put(self, const char *raw, uint64_t size) except? 0xFFFFFFFF:
        """The number of a string, which is added when it is new. Raises MemoryError."""
        cdef uint32_t slot = self._slot(raw, size)
        if self.slots[slot] != NONE:
            return self.slots[slot]
        if self.count == COUNT_MAX:
            raise MemoryError
        if self.count == self.room:
            self._grow_ends()
        if self.text_used + size > self.text_room:
            self._grow_text(size)
        memcpy(self.text + self.text_used, raw, size)
        self.text_used += size
        self.ends[self.count] = self.text_used
        self.slots[slot] = self.count
        self.count += 1
        if 2 * <uint64_t> self.count > self.slots_mask:
            self._grow_slots()
        return self.count - 1

    cdef uint32_t _slot(self, const char *raw, uint64_t size) noexcept nogil:
        """Where a string stands among the slots, or where it belongs."""
        cdef uint32_t slot = <uint32_t> XXH3_64bits(raw, size) & self.slots_mask
        cdef uint64_t own_size = 0
        cdef const char *own
        while self.slots[slot] != NONE:
            own = self.at(self.slots[slot], &own_size)
            if own_size == size and memcmp(own, raw, size) == 0:
                break
            slot = (slot + 1) & self.slots_mask
        return slot

    cdef int _grow_ends(self) except -1:
        cdef void *grown = realloc(self.ends, 2 * <uint64_t> self.room * sizeof(uint64_t))
        if grown is NULL:
            raise MemoryError
        self.ends = <uint64_t *> grown
        self.room *= 2
        return 0

    cdef int _grow_text(self, uint64_t size) except -1:
        # Half as much again: twice would leave up to half of the largest block unused.
        cdef uint64_t wanted = self.text_room + self.text_room // 2 + size
        cdef void *grown = realloc(self.text, wanted)
        if grown is NULL:
            raise MemoryError
        self.text = <char *> grown
        self.text_room = wanted
        return 0

    cdef int _grow_slots(self) except -1:
        cdef uint32_t mask = 2 * self.slots_mask + 1
        cdef uint64_t size = 0
        cdef const char *raw
        cdef uint32_t i, slot
        cdef uint32_t *grown = <uint32_t *> malloc((<uint64_t> mask + 1) * sizeof(uint32_t))
        if grown is NULL:
            raise MemoryError
        memset(grown, 0xFF, (<uint64_t> mask + 1) * sizeof(uint32_t))
        for i in range(self.count):
            raw = self.at(i, &size)
            slot = <uint32_t> XXH3_64bits(raw, size) & mask
            while grown[slot] != NONE:
                slot = (slot + 1) & mask
            grown[slot] = i
        free(self.slots)
        self.slots = grown
        self.slots_mask = mask
        return 0


def inverse(array.array order not None):
    cdef array.array found = array.clone(NUMBERS, len(order), False)
    cdef Py_ssize_t i
    cdef uint32_t number
    for i in range(len(order)):
        number = order.data.as_uints[i]
        if number >= len(order):
            raise IndexError(number)
        found.data.as_uints[number] = <uint32_t> i
    return found
