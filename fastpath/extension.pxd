"""Cedar's extension types: texts to values and their methods (Cedar reference: ip, decimal, datetime, duration)."""
from fastpath.value cimport Ip
from libc.stdint cimport int64_t, uint32_t


# Each parser returns 0 with `out` set, or 1 when Cedar refuses the text.
cdef int ip_parse(const char *p, uint32_t n, Ip *out) noexcept nogil
cdef int decimal_parse(const char *p, uint32_t n, int64_t *out) noexcept nogil       # times 10,000
cdef int datetime_parse(const char *p, uint32_t n, int64_t *out) noexcept nogil      # ms since 1970-01-01T00:00:00Z
cdef int duration_parse(const char *p, uint32_t n, int64_t *out) noexcept nogil      # ms
cdef bint ip_is_loopback(const Ip *ip) noexcept nogil
cdef bint ip_is_multicast(const Ip *ip) noexcept nogil
cdef bint ip_in_range(const Ip *ip, const Ip *range_) noexcept nogil
# Start of the instant's day; 0, or 1 when that is before the first instant.
cdef int datetime_date(int64_t at, int64_t *out) noexcept nogil
cdef int64_t datetime_time(int64_t at) noexcept nogil                                # ms since the start of its day
# i64 arithmetic: 0 with `out` set, or 1 on overflow.
cdef int long_add(int64_t a, int64_t b, int64_t *out) noexcept nogil
cdef int long_sub(int64_t a, int64_t b, int64_t *out) noexcept nogil
cdef int long_mul(int64_t a, int64_t b, int64_t *out) noexcept nogil
