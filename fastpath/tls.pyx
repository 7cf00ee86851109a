"""TLS of the native doors on OpenSSL 3: TLS 1.3, or 1.2 with ECDHE and AEAD; no tickets, no resumption, no early data.

A caller must present a chain, and only fastpath.verify judges it: OpenSSL's own verification is replaced, since it
would know one set of roots for all trust domains.
"""
from fastpath.accounts cimport account_toll
from fastpath.c.openssl cimport (
    ERR_clear_error, EVP_PKEY, X509, X509_STACK, X509_STORE_CTX, X509_free, sk_X509_free, sk_X509_new_null, sk_X509_num,
    sk_X509_push, sk_X509_value,
)
from fastpath.c.openssl_ssl cimport (
    BIO, BIO_free, BIO_new_mem_buf, EVP_PKEY_free, OPENSSL_NPN_NEGOTIATED, PEM_read_bio_PrivateKey,
    PEM_read_bio_X509, SSL, SSL3_RT_APPLICATION_DATA, SSL3_RT_HEADER, SSL3_RT_INNER_CONTENT_TYPE, SSL_CTX,
    SSL_CTX_add1_chain_cert, SSL_CTX_check_private_key, SSL_CTX_clear_mode, SSL_CTX_free, SSL_CTX_new,
    SSL_CTX_set_alpn_select_cb, SSL_CTX_set_cert_verify_callback, SSL_CTX_set_cipher_list,
    SSL_CTX_set_max_cert_list, SSL_CTX_set_min_proto_version, SSL_CTX_set_mode, SSL_CTX_set_num_tickets,
    SSL_CTX_set_options, SSL_CTX_set_session_cache_mode, SSL_CTX_set_verify, SSL_CTX_use_PrivateKey,
    SSL_CTX_use_certificate, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER,
    SSL_MODE_AUTO_RETRY, SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_MODE_RELEASE_BUFFERS, SSL_OP_CIPHER_SERVER_PREFERENCE,
    SSL_OP_NO_COMPRESSION, SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_TICKET, SSL_RECEIVED_SHUTDOWN, SSL_SESS_CACHE_OFF,
    SSL_TLSEXT_ERR_ALERT_FATAL, SSL_TLSEXT_ERR_OK, SSL_VERIFY_FAIL_IF_NO_PEER_CERT, SSL_VERIFY_PEER,
    SSL_do_handshake, SSL_free, SSL_get0_alpn_selected, SSL_get0_peer_certificate, SSL_get_error, SSL_get_ex_data,
    SSL_get_ex_data_X509_STORE_CTX_idx, SSL_get_peer_cert_chain, SSL_has_pending, SSL_new, SSL_read,
    SSL_select_next_proto, SSL_set_accept_state, SSL_set_ex_data, SSL_set_fd, SSL_set_msg_callback,
    SSL_set_msg_callback_arg, SSL_set_shutdown, SSL_shutdown, SSL_write, TLS1_2_VERSION, TLS_server_method,
    X509_STORE_CTX_get0_cert, X509_STORE_CTX_get0_untrusted, X509_STORE_CTX_get_ex_data, X509_STORE_CTX_set_error,
    X509_V_ERR_APPLICATION_VERIFICATION, X509_V_OK,
)
from fastpath.decide cimport PEER_AGENT, PEER_NONE
from fastpath.http2 cimport Conn
from fastpath.verify cimport (
    CHAIN_BYTES_MAX, CHAIN_CERTS_MAX, REFUSED_INTERNAL, REFUSED_TOO_LARGE, Trust, Verified, refusal_text,
    verify_chain,
)
from fastpath.wire cimport text_of
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from libc.time cimport time

cdef enum:
    AGAIN = -1
    OVER = -2
    PREFIX = 10              # bytes of "x509-svid:"
    RECORD_SHORT = 9 + 16    # least bytes of a record with an HTTP/2 frame: the frame's header, the cipher's tag
    SHORT_TOKENS = 1
    OTHER_TOKENS = 16        # of a record that is no data: it changes keys, and no request gives so much back

cdef const unsigned char *H2 = <const unsigned char *> b"\x02h2"


cdef struct Judge:           # what the verify callback needs of the handshake under way
    Conn *conn
    const Trust *trust


# ---------------------------------------------------------------- callbacks

cdef int _alpn(SSL *ssl, const unsigned char **out, unsigned char *out_n, const unsigned char *offered, unsigned int n,
               void *arg) noexcept nogil:
    if SSL_select_next_proto(<unsigned char **> out, out_n, H2, 3, offered, n) == OPENSSL_NPN_NEGOTIATED:
        return SSL_TLSEXT_ERR_OK
    return SSL_TLSEXT_ERR_ALERT_FATAL


cdef int _judge(X509_STORE_CTX *ctx, void *arg) noexcept nogil:
    """Replaces X509_verify_cert: the chain of the peer, by the bundle of its own trust domain."""
    cdef SSL *ssl = <SSL *> X509_STORE_CTX_get_ex_data(ctx, SSL_get_ex_data_X509_STORE_CTX_idx())
    cdef Judge *judge = <Judge *> SSL_get_ex_data(ssl, 0)
    cdef X509_STACK *above = _above(X509_STORE_CTX_get0_untrusted(ctx))
    judge.conn.refusal = REFUSED_INTERNAL
    if above != NULL:
        judge.conn.refusal = _verify(judge.conn, judge.trust, X509_STORE_CTX_get0_cert(ctx), above)
    sk_X509_free(above)
    X509_STORE_CTX_set_error(ctx, X509_V_ERR_APPLICATION_VERIFICATION if judge.conn.refusal else X509_V_OK)
    return judge.conn.refusal == 0


cdef X509_STACK *_above(X509_STACK *presented) noexcept nogil:
    """What was presented without the leaf, which comes first: among the issuers it could be taken for its own."""
    cdef X509_STACK *above = sk_X509_new_null()
    cdef int i
    if above == NULL:
        return NULL
    for i in range(1, sk_X509_num(presented)):
        if not sk_X509_push(above, sk_X509_value(presented, i)):
            sk_X509_free(above)
            return NULL
    return above


cdef int _verify(Conn *conn, const Trust *trust, X509 *leaf, X509_STACK *untrusted) noexcept nogil:
    """A Refusal; conn.verified holds what was found. `untrusted`: what the peer sent beside the leaf, or NULL."""
    if leaf == NULL:
        return REFUSED_INTERNAL
    if untrusted != NULL and sk_X509_num(untrusted) >= CHAIN_CERTS_MAX:
        return REFUSED_TOO_LARGE
    if conn.verified == NULL:
        conn.verified = malloc(sizeof(Verified))
    if conn.verified == NULL:
        return REFUSED_INTERNAL
    conn.door.stats.verified += 1
    return verify_chain(trust, leaf, untrusted, <long> time(NULL), True, <Verified *> conn.verified)


cdef void _on_message(int sent, int version, int kind, const void *p, size_t n, SSL *ssl, void *arg) noexcept nogil:
    """Count what a peer sends after the handshake by its records: those with no frame of HTTP/2 run out.

    OpenSSL works through all records that carry no data, key updates and empty ones, within one read, so the read is
    ended from here.
    """
    cdef Conn *conn = <Conn *> arg
    cdef const unsigned char *of = <const unsigned char *> p
    cdef bint other
    if sent or (kind != SSL3_RT_HEADER and kind != SSL3_RT_INNER_CONTENT_TYPE):
        return
    # TLS 1.3 tells the type inside of the record.
    other = of[0] != SSL3_RT_APPLICATION_DATA
    if kind == SSL3_RT_HEADER:
        conn.records += 1
        conn.door.stats.records_in += 1
        if not other and (of[3] or of[4] >= RECORD_SHORT):
            return
    elif not other:
        return
    if not account_toll(conn, OTHER_TOKENS if other else SHORT_TOKENS):
        SSL_set_shutdown(ssl, SSL_RECEIVED_SHUTDOWN)


# ---------------------------------------------------------------- a connection

cdef int tls_begin(Conn *conn, SSL_CTX *ctx) noexcept nogil:
    cdef SSL *ssl = SSL_new(ctx)
    conn.tls = ssl
    if ssl == NULL or not SSL_set_fd(ssl, conn.fd):
        return 1
    SSL_set_accept_state(ssl)
    return 0


cdef int tls_handshake(Conn *conn, const Trust *trust) noexcept nogil:
    cdef SSL *ssl = <SSL *> conn.tls
    cdef const unsigned char *chosen = NULL
    cdef unsigned int n = 0
    cdef int done, error
    cdef Judge judge
    judge.conn, judge.trust = conn, trust
    SSL_set_ex_data(ssl, 0, &judge)
    ERR_clear_error()
    done = SSL_do_handshake(ssl)
    SSL_set_ex_data(ssl, 0, NULL)
    if done == 1:
        # A client without ALPN never came to _alpn, and speaks something else.
        SSL_get0_alpn_selected(ssl, &chosen, &n)
        conn.secured = n == 2
        if conn.secured:
            _take(conn, trust)
            SSL_set_msg_callback_arg(ssl, conn)
            SSL_set_msg_callback(ssl, _on_message)
        return 1 if conn.secured else -1
    error = SSL_get_error(ssl, done)
    conn.writing = error == SSL_ERROR_WANT_WRITE
    return 0 if error == SSL_ERROR_WANT_READ or error == SSL_ERROR_WANT_WRITE else -1


cdef void _take(Conn *conn, const Trust *trust) noexcept nogil:
    """The verified peer, or the refused one, in force for this connection."""
    cdef Verified *found = <Verified *> conn.verified
    conn.peer.bundle_generation = trust.generation
    if conn.refusal or found == NULL:
        conn.peer.kind = PEER_NONE
        conn.peer.refusal = text_of(refusal_text(conn.refusal if conn.refusal else <int> REFUSED_INTERNAL))
        conn.peer.spiffe_id = conn.peer.credential = text_of(b"")
        conn.peer.not_after_s = 0
        return
    conn.peer.kind = PEER_AGENT
    conn.peer.refusal = text_of(b"")
    conn.peer.spiffe_id.p, conn.peer.spiffe_id.n = found.spiffe_id, found.spiffe_id_len
    memcpy(conn.credential, b"x509-svid:", PREFIX)
    memcpy(conn.credential + PREFIX, found.serial, found.serial_len)
    conn.peer.credential.p, conn.peer.credential.n = conn.credential, PREFIX + found.serial_len
    conn.peer.not_after_s = found.not_after_s


cdef void tls_identify(Conn *conn, const Trust *trust) noexcept nogil:
    cdef SSL *ssl = <SSL *> conn.tls
    conn.refusal = _verify(conn, trust, SSL_get0_peer_certificate(ssl), SSL_get_peer_cert_chain(ssl))
    _take(conn, trust)


cdef inline ssize_t _result(Conn *conn, int n) noexcept nogil:
    cdef int error = SSL_get_error(<SSL *> conn.tls, n)
    return AGAIN if error == SSL_ERROR_WANT_READ or error == SSL_ERROR_WANT_WRITE else OVER


cdef ssize_t tls_read(Conn *conn, void *buf, size_t n) noexcept nogil:
    cdef int got
    ERR_clear_error()
    got = SSL_read(<SSL *> conn.tls, buf, <int> min(n, <size_t> 1 << 30))
    return got if got > 0 else _result(conn, got)


cdef ssize_t tls_write(Conn *conn, const void *buf, size_t n) noexcept nogil:
    cdef int got
    ERR_clear_error()
    got = SSL_write(<SSL *> conn.tls, buf, <int> min(n, <size_t> 1 << 30))
    return got if got > 0 else _result(conn, got)


cdef bint tls_pending(Conn *conn) noexcept nogil:
    return SSL_has_pending(<SSL *> conn.tls) != 0


cdef void tls_end(Conn *conn, bint in_order) noexcept nogil:
    if conn.tls != NULL:
        if in_order and conn.secured:
            SSL_shutdown(<SSL *> conn.tls)
        SSL_free(<SSL *> conn.tls)
        ERR_clear_error()
    conn.tls = NULL
    free(conn.verified)
    conn.verified = NULL


# ---------------------------------------------------------------- our identity

cdef class TlsIdentity:

    def __cinit__(self, bytes chain_pem not None, bytes key_pem not None):
        self.ctx = SSL_CTX_new(TLS_server_method())
        if self.ctx == NULL:
            raise MemoryError
        _settings(self.ctx)
        if _chain(self.ctx, chain_pem) or _key(self.ctx, key_pem):
            ERR_clear_error()
            raise ValueError("the SVID's chain or key is no PEM, or they do not belong together")

    def __dealloc__(self):
        SSL_CTX_free(self.ctx)


cdef void _settings(SSL_CTX *ctx) noexcept:
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION)
    SSL_CTX_set_cipher_list(ctx, b"ECDHE+AESGCM:ECDHE+CHACHA20")
    SSL_CTX_set_options(
        ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE)
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF)
    SSL_CTX_set_num_tickets(ctx, 0)
    SSL_CTX_set_mode(
        ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS)
    # A read returns after each record that carries no data.
    SSL_CTX_clear_mode(ctx, SSL_MODE_AUTO_RETRY)
    SSL_CTX_set_max_cert_list(ctx, CHAIN_BYTES_MAX)
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL)
    SSL_CTX_set_cert_verify_callback(ctx, _judge, NULL)
    SSL_CTX_set_alpn_select_cb(ctx, _alpn, NULL)


cdef bint _chain(SSL_CTX *ctx, bytes pem) except -1:
    """Whether the chain is refused; the leaf comes first."""
    cdef BIO *bio = BIO_new_mem_buf(<const char *> pem, <int> len(pem))
    cdef X509 *x
    cdef int count = 0
    cdef int good = 1
    if bio == NULL:
        raise MemoryError
    while good:
        x = PEM_read_bio_X509(bio, NULL, NULL, NULL)
        if x == NULL:
            break
        good = SSL_CTX_use_certificate(ctx, x) if count == 0 else SSL_CTX_add1_chain_cert(ctx, x)
        X509_free(x)
        count += 1
    # The end of the text is an error to OpenSSL.
    ERR_clear_error()
    BIO_free(bio)
    return not good or count == 0


cdef bint _key(SSL_CTX *ctx, bytes pem) except -1:
    """Whether the key is refused."""
    cdef BIO *bio = BIO_new_mem_buf(<const char *> pem, <int> len(pem))
    cdef EVP_PKEY *key
    cdef int good
    if bio == NULL:
        raise MemoryError
    key = PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL)
    BIO_free(bio)
    good = key != NULL and SSL_CTX_use_PrivateKey(ctx, key) and SSL_CTX_check_private_key(ctx)
    EVP_PKEY_free(key)
    return not good
