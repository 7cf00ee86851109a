"""SPIFFE IDs by bytes: no regular expression, no normalisation, no percent-decoding."""
from libc.stdint cimport uint32_t
from libc.string cimport memcmp

from typing import NamedTuple

from fastpath.errors import IdentityError


cdef enum:
    PLAIN = 1                # what trust domains and paths share: lower case, digit, `.`, `-`, `_`
    PATH = 2                 # what paths hold: that, and upper case

cdef unsigned char BYTES[256]


cdef void build_bytes() noexcept nogil:
    cdef int c
    for c in range(256):
        if c'a' <= c <= c'z' or c'0' <= c <= c'9' or c == c'.' or c == c'-' or c == c'_':
            BYTES[c] = PLAIN | PATH
        elif c'A' <= c <= c'Z':
            BYTES[c] = PATH


build_bytes()


cdef inline bint plain(char c) noexcept nogil:
    return BYTES[<unsigned char> c] & PLAIN


cdef inline bint dots(const char *p, uint32_t n) noexcept nogil:
    return n <= 2 and p[0] == c'.' and p[n - 1] == c'.'


cdef bint path_valid(const char *p, uint32_t n) noexcept nogil:
    """Whether n bytes are segments, each led by a slash; n may be 0."""
    cdef uint32_t i = 0, start
    while i < n:
        if p[i] != c'/':
            return False
        i += 1
        start = i
        while i < n and BYTES[<unsigned char> p[i]] & PATH:
            i += 1
        if i == start or dots(p + start, i - start):
            return False
    return True


cdef int spiffe_id_check(const char *p, uint32_t n, uint32_t *trust_domain_len) noexcept nogil:
    cdef uint32_t i = SPIFFE_SCHEME_LEN
    if trust_domain_len is not NULL:
        trust_domain_len[0] = 0
    if n == 0:
        return SPIFFE_ID_EMPTY
    if n > SPIFFE_ID_BYTES_MAX:
        return SPIFFE_ID_TOO_LONG
    if n < SPIFFE_SCHEME_LEN or memcmp(p, b"spiffe://", SPIFFE_SCHEME_LEN) != 0:
        return SPIFFE_ID_SCHEME
    while i < n and plain(p[i]):
        i += 1
    if i == SPIFFE_SCHEME_LEN or i - SPIFFE_SCHEME_LEN > TRUST_DOMAIN_BYTES_MAX or (i < n and p[i] != c'/'):
        return SPIFFE_ID_TRUST_DOMAIN
    if not path_valid(p + i, n - i):
        return SPIFFE_ID_PATH
    if trust_domain_len is not NULL:
        trust_domain_len[0] = i - SPIFFE_SCHEME_LEN
    return SPIFFE_ID_OK


# ---------------------------------------------------------------- Python face

CAUSES = {
    SpiffeIdError.SPIFFE_ID_EMPTY: "it is empty",
    SpiffeIdError.SPIFFE_ID_TOO_LONG: "it is longer than 2048 bytes",
    SpiffeIdError.SPIFFE_ID_SCHEME: "it does not begin with `spiffe://`",
    SpiffeIdError.SPIFFE_ID_TRUST_DOMAIN: "its trust domain must be 1 to 255 bytes of a-z, 0-9, `.`, `-` and `_`",
    SpiffeIdError.SPIFFE_ID_PATH: "its path must be segments of A-Z, a-z, 0-9, `.`, `-` and `_`, without a last slash",
}
SHOWN_MAX = 120


class SpiffeId(NamedTuple):
    trust_domain: str
    path: str

    def __str__(self):
        return f"spiffe://{self.trust_domain}{self.path}"


def check(bytes data):
    return SpiffeIdError(spiffe_id_check(data, len(data), NULL))


def parse(str text):
    cdef bytes data = text.encode("utf-8", "surrogateescape")
    cdef uint32_t trust_domain_len = 0
    error = spiffe_id_check(data, len(data), &trust_domain_len)
    if error:
        shown = text[:SHOWN_MAX].encode("unicode_escape").decode()
        raise IdentityError(f"`{shown}` is not a SPIFFE ID: {CAUSES[error]}")
    end = SPIFFE_SCHEME_LEN + trust_domain_len
    return SpiffeId(text[SPIFFE_SCHEME_LEN:end], text[end:])
