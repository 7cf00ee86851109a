"""Memory of one loop, for nghttp2 (nghttp2_mem) and for streams."""
from fastpath.c.nghttp2 cimport nghttp2_mem
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cdef extern from "malloc.h" nogil:
    size_t malloc_usable_size(void *p)

cdef extern from * nogil:
    """
    /* What is kept hides from the sanitizer who uses it after its end. */
    #if defined(__SANITIZE_ADDRESS__)
    #define REMIT_KEEPS 0
    #elif defined(__has_feature)
    #if __has_feature(address_sanitizer)
    #define REMIT_KEEPS 0
    #endif
    #endif
    #ifndef REMIT_KEEPS
    #define REMIT_KEEPS 1
    #endif
    """
    bint REMIT_KEEPS

cdef enum:
    RESERVE_BYTES = 1 << 18  # several times what one slice of frames can make a session allocate
    RESERVED = CLASSES + 1   # size class of a block of the reserve


cdef int reserve_open(Reserve *reserve) noexcept nogil:
    reserve.base = <uint8_t *> malloc(RESERVE_BYTES)
    # Touched now: a page that is missing later is memory that is missing.
    if reserve.base != NULL:
        memset(reserve.base, 0, RESERVE_BYTES)
    return reserve.base == NULL


cdef void reserve_close(Reserve *reserve) noexcept nogil:
    reserve_trim(reserve)
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


# ---------------------------------------------------------------- blocks


cdef inline Block *_head(void *p) noexcept nogil:
    return <Block *> p - 1


cdef void *block_take(Reserve *reserve, size_t n) noexcept nogil:
    cdef size_t size_class = (n + STEP - 1) // STEP
    cdef Block *block
    if n > CLASSES * STEP or n == 0:
        block = <Block *> malloc(sizeof(Block) + n) if n < <size_t> -1 - sizeof(Block) else NULL
        size_class = 0
    elif reserve.idle[size_class] != NULL:
        block = reserve.idle[size_class]
        reserve.idle[size_class] = block.next
        reserve.idle_bytes -= size_class * STEP
        return block + 1
    else:
        block = <Block *> malloc(sizeof(Block) + size_class * STEP)
    if block == NULL:
        return NULL
    block.size_class = size_class
    return block + 1


cdef void block_give(Reserve *reserve, void *p) noexcept nogil:
    cdef Block *block
    if p == NULL:
        return
    block = _head(p)
    if block.size_class == RESERVED:
        reserve.live -= 1
        if reserve.live == 0:
            reserve.used = 0
    elif block.size_class == 0 or not REMIT_KEEPS or reserve.idle_bytes >= IDLE_BYTES_MAX:
        free(block)
    else:
        block.next = reserve.idle[block.size_class]
        reserve.idle[block.size_class] = block
        reserve.idle_bytes += block.size_class * STEP


cdef void *block_grow(Reserve *reserve, void *p, size_t held, size_t n) noexcept nogil:
    cdef void *moved = block_take(reserve, n)
    if moved != NULL and p != NULL:
        memcpy(moved, p, held)
        block_give(reserve, p)
    return moved


cdef void reserve_trim(Reserve *reserve) noexcept nogil:
    cdef Block *block
    cdef int i
    for i in range(CLASSES + 1):
        while reserve.idle[i] != NULL:
            block = reserve.idle[i]
            reserve.idle[i] = block.next
            free(block)
    reserve.idle_bytes = 0


# ---------------------------------------------------------------- for nghttp2


cdef void *_spare(Reserve *reserve, size_t n) noexcept nogil:
    """A block of the reserve; its size stands where a kept block has its next."""
    cdef Block *block = <Block *> (reserve.base + reserve.used)
    reserve.short_of = 1
    if reserve.base == NULL or n > RESERVE_BYTES or 3 * sizeof(Block) + n > RESERVE_BYTES - reserve.used:
        return NULL
    block.size_class = RESERVED
    block.next = <Block *> n
    reserve.used += sizeof(Block) * (1 + (n + sizeof(Block) - 1) // sizeof(Block))
    reserve.live += 1
    return block + 1


cdef size_t _size(void *p) noexcept nogil:
    """How many bytes stand at p at least."""
    cdef Block *block = _head(p)
    if block.size_class == RESERVED:
        return <size_t> block.next
    return malloc_usable_size(block) - sizeof(Block)


cdef void *_malloc(size_t n, void *user) noexcept nogil:
    cdef void *p = block_take(<Reserve *> user, n)
    return p if p != NULL or n == 0 else _spare(<Reserve *> user, n)


cdef void _free(void *p, void *user) noexcept nogil:
    block_give(<Reserve *> user, p)


cdef void *_calloc(size_t count, size_t size, void *user) noexcept nogil:
    cdef void *p
    # nghttp2 multiplies small counts and sizes of structs; a product that overflows is not served.
    if count and size > (<size_t> -1) // count:
        return NULL
    p = _malloc(count * size, user)
    if p != NULL:
        memset(p, 0, count * size)
    return p


cdef void *_realloc(void *p, size_t n, void *user) noexcept nogil:
    cdef size_t held
    cdef void *moved
    if p == NULL:
        return _malloc(n, user)
    held = _size(p)
    if n <= held and n:
        return p
    moved = _malloc(n, user)
    if moved != NULL:
        memcpy(moved, p, min(held, n))
        block_give(<Reserve *> user, p)
    return moved
