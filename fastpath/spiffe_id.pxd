"""SPIFFE IDs: whether some bytes are one (SPIFFE-ID sections 2.1 to 2.4). Nothing is ever normalised."""
from libc.stdint cimport uint32_t


cdef enum:
    SPIFFE_SCHEME_LEN = 9        # "spiffe://"
    SPIFFE_ID_BYTES_MAX = 2048
    TRUST_DOMAIN_BYTES_MAX = 255


cpdef enum SpiffeIdError:
    SPIFFE_ID_OK = 0
    SPIFFE_ID_EMPTY = 1
    SPIFFE_ID_TOO_LONG = 2       # more than 2048 bytes
    SPIFFE_ID_SCHEME = 3         # does not begin with `spiffe://`
    SPIFFE_ID_TRUST_DOMAIN = 4   # empty, longer than 255 bytes, or a byte outside [a-z0-9._-] (also userinfo, port, %)
    SPIFFE_ID_PATH = 5           # an empty, `.` or `..` segment, a trailing slash, or a byte outside [A-Za-z0-9._-]


# Whether n bytes are a SPIFFE ID: a SpiffeIdError. `trust_domain_len` gets the bytes of the name behind the scheme when
# they are, else 0; it may be NULL. An ID without a path is valid (of a trust domain), though never that of a workload.
cdef int spiffe_id_check(const char *p, uint32_t n, uint32_t *trust_domain_len) noexcept nogil
