"""The serial number of a certificate that Envoy passes on (certificate.pxd)."""
from fastpath.c.openssl cimport (
    ASN1_STRING,
    BIO,
    X509,
    ASN1_STRING_get0_data,
    ASN1_STRING_length,
    BIO_free,
    BIO_new_mem_buf,
    ERR_clear_error,
    PEM_read_bio_X509,
    X509_free,
    X509_get0_serialNumber,
)
from fastpath.value cimport arena_take
from libc.stdint cimport uint32_t


cdef int hex_value(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    return c - c'A' + 10 if c'A' <= c <= c'F' else -1


cdef Text url_decoded(Text encoded, Arena *arena) noexcept nogil:
    """The text with its escapes undone (RFC 3986 section 2.1), a plus sign being one; empty when one is malformed."""
    cdef Text plain
    cdef char *room = <char *> arena_take(arena, encoded.n)
    cdef uint32_t i = 0
    cdef int high, low
    plain.p, plain.n = room, 0
    while room != NULL and i < encoded.n:
        room[plain.n] = encoded.p[i]
        if encoded.p[i] == c'%':
            high = hex_value(encoded.p[i + 1]) if i + 2 < encoded.n else -1
            low = hex_value(encoded.p[i + 2]) if i + 2 < encoded.n else -1
            if high < 0 or low < 0:
                plain.n = 0
                return plain
            room[plain.n] = <char> (16 * high + low)
            i += 2
        plain.n += 1
        i += 1
    return plain


cdef Text serial_text(X509 *leaf, Arena *arena) noexcept nogil:
    cdef const char *digits = "0123456789abcdef"
    cdef const ASN1_STRING *serial = <const ASN1_STRING *> X509_get0_serialNumber(leaf)
    cdef const unsigned char *p = ASN1_STRING_get0_data(serial)
    cdef int n = ASN1_STRING_length(serial)
    cdef char *room = <char *> arena_take(arena, 2 * <size_t> n)
    cdef Text text
    cdef int i
    text.p, text.n = room, 0
    if room == NULL:
        return text
    for i in range(n):
        room[2 * i], room[2 * i + 1] = digits[p[i] >> 4], digits[p[i] & 15]
    text.n = 2 * <uint32_t> n
    return text


cdef Text certificate_serial(Text encoded, Arena *arena) noexcept nogil:
    cdef Text found = url_decoded(encoded, arena)
    cdef BIO *pem = BIO_new_mem_buf(found.p, <int> found.n) if found.n else NULL
    # An empty password, so that OpenSSL asks nobody for one.
    cdef X509 *leaf = PEM_read_bio_X509(pem, NULL, NULL, <void *> b"") if pem != NULL else NULL
    found.n = 0
    if leaf != NULL:
        found = serial_text(leaf, arena)
    X509_free(leaf)
    BIO_free(pem)
    ERR_clear_error()
    return found
