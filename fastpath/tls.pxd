"""TLS of the native doors: our SVID towards callers, their chain to fastpath.verify, HTTP/2 by ALPN."""
from fastpath.c.openssl_ssl cimport SSL_CTX
from fastpath.http2 cimport Conn
from fastpath.verify cimport Trust


cdef class TlsIdentity:
    """Owns one SSL_CTX: an SVID with its key. Connections made with it keep it alive themselves."""
    cdef SSL_CTX *ctx


# Begin the handshake of conn.fd. 0, or 1 when memory is short.
cdef int tls_begin(Conn *conn, SSL_CTX *ctx) noexcept nogil
# Go on with it: 1 done, 0 wait for the socket (`writing` says for what), -1 over; conn.refusal tells a refused chain.
cdef int tls_handshake(Conn *conn, const Trust *trust) noexcept nogil
# Verify the peer's chain by `trust` and set conn.peer: the peer itself, or one that is refused and why.
cdef void tls_identify(Conn *conn, const Trust *trust) noexcept nogil
# As recv and send; -1: wait for the socket, -2: over.
cdef ssize_t tls_read(Conn *conn, void *buf, size_t n) noexcept nogil
cdef ssize_t tls_write(Conn *conn, const void *buf, size_t n) noexcept nogil
# Whether bytes were read from the socket that `tls_read` did not return yet.
cdef bint tls_pending(Conn *conn) noexcept nogil
cdef void tls_end(Conn *conn, bint in_order) noexcept nogil
