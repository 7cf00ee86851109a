"""An allocator of nghttp2 (nghttp2_mem) that falls back on a reserve when the heap has nothing left."""
from fastpath.c.nghttp2 cimport nghttp2_mem
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

cdef extern from "malloc.h" nogil:
    size_t malloc_usable_size(void *p)

cdef enum:
    RESERVE_BYTES = 1 << 18  # several times what one slice of frames can make a session allocate
    ALIGN = 16


cdef int reserve_open(Reserve *reserve) noexcept nogil:
    reserve.base = <uint8_t *> malloc(RESERVE_BYTES)
    # Touched now: a page that is missing later is memory that is missing.
    if reserve.base != NULL:
        memset(reserve.base, 0, RESERVE_BYTES)
    return reserve.base == NULL


cdef void reserve_close(Reserve *reserve) noexcept nogil:
    free(reserve.base)
    reserve.base = NULL


cdef nghttp2_mem reserve_mem(Reserve *reserve) noexcept nogil:
    cdef nghttp2_mem mem
    mem.mem_user_data = reserve
    mem.malloc, mem.free, mem.calloc, mem.realloc = _malloc, _free, _calloc, _realloc
    return mem


cdef bint reserve_was_short(Reserve *reserve) noexcept nogil:
    cdef bint short_of = reserve.short_of
    reserve.short_of = 0
    return short_of


cdef bint _is_reserved(const Reserve *reserve, const void *p) noexcept nogil:
    return reserve.base != NULL and reserve.base <= <const uint8_t *> p < reserve.base + RESERVE_BYTES


cdef void *_take(Reserve *reserve, size_t n) noexcept nogil:
    """A block with its size before it."""
    cdef uint8_t *at = reserve.base + reserve.used
    reserve.short_of = 1
    if reserve.base == NULL or n > RESERVE_BYTES or 2 * ALIGN + n > RESERVE_BYTES - reserve.used:
        return NULL
    (<size_t *> at)[0] = n
    reserve.used += ALIGN + (n + ALIGN - 1) // ALIGN * ALIGN
    reserve.live += 1
    return at + ALIGN


cdef void *_malloc(size_t n, void *user) noexcept nogil:
    cdef void *p = malloc(n)
    return p if p != NULL or n == 0 else _take(<Reserve *> user, n)


cdef void _free(void *p, void *user) noexcept nogil:
    cdef Reserve *reserve = <Reserve *> user
    if not _is_reserved(reserve, p):
        free(p)
        return
    reserve.live -= 1
    if reserve.live == 0:
        reserve.used = 0


cdef void *_calloc(size_t count, size_t size, void *user) noexcept nogil:
    cdef void *p = calloc(count, size)
    # nghttp2 multiplies small counts and sizes of structs; a product that overflows is not served here.
    if p == NULL and count and size and count <= RESERVE_BYTES // size:
        p = _take(<Reserve *> user, count * size)
        if p != NULL:
            memset(p, 0, count * size)
    return p


cdef void *_realloc(void *p, size_t n, void *user) noexcept nogil:
    cdef Reserve *reserve = <Reserve *> user
    cdef size_t held
    cdef void *moved
    if p == NULL:
        return _malloc(n, user)
    if not _is_reserved(reserve, p):
        held = malloc_usable_size(p)
        moved = realloc(p, n)
        if moved != NULL or n == 0:
            return moved
        moved = _take(reserve, n)
    else:
        held = (<size_t *> (<uint8_t *> p - ALIGN))[0]
        moved = _malloc(n, user)
    if moved != NULL:
        memcpy(moved, p, min(held, n))
        _free(p, user)
    return moved
