"""OpenSSL 3 (libssl): what the TLS of the native doors touches."""
from fastpath.c.openssl cimport EVP_PKEY, X509, X509_STACK, X509_STORE_CTX


cdef extern from "openssl/bio.h" nogil:
    ctypedef struct BIO:
        pass
    BIO *BIO_new_mem_buf(const void *p, int n)
    int BIO_free(BIO *bio)


cdef extern from "openssl/pem.h" nogil:
    X509 *PEM_read_bio_X509(BIO *bio, X509 **made, void *password, void *arg)
    EVP_PKEY *PEM_read_bio_PrivateKey(BIO *bio, EVP_PKEY **made, void *password, void *arg)
    void EVP_PKEY_free(EVP_PKEY *key)


cdef extern from "openssl/x509_vfy.h" nogil:
    X509 *X509_STORE_CTX_get0_cert(const X509_STORE_CTX *ctx)
    X509_STACK *X509_STORE_CTX_get0_untrusted(const X509_STORE_CTX *ctx)
    void *X509_STORE_CTX_get_ex_data(const X509_STORE_CTX *ctx, int at)
    void X509_STORE_CTX_set_error(X509_STORE_CTX *ctx, int error)
    int X509_V_OK, X509_V_ERR_APPLICATION_VERIFICATION


cdef extern from "openssl/ssl.h" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef int (*SSL_verify_cb)(int ok, X509_STORE_CTX *ctx) noexcept nogil
    ctypedef int (*cert_verify_cb)(X509_STORE_CTX *ctx, void *arg) noexcept nogil
    ctypedef int (*alpn_select_cb)(
        SSL *ssl, const unsigned char **out, unsigned char *out_n, const unsigned char *offered, unsigned int n,
        void *arg) noexcept nogil
    ctypedef void (*message_cb)(
        int sent, int version, int kind, const void *p, size_t n, SSL *ssl, void *arg) noexcept nogil
    int SSL_VERIFY_PEER, SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    int SSL_SESS_CACHE_OFF, TLS1_2_VERSION
    int SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN
    int SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_ALERT_FATAL
    int OPENSSL_NPN_NEGOTIATED
    long SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_MODE_RELEASE_BUFFERS
    long SSL_MODE_AUTO_RETRY
    int SSL3_RT_HEADER, SSL3_RT_INNER_CONTENT_TYPE, SSL3_RT_APPLICATION_DATA, SSL_RECEIVED_SHUTDOWN
    unsigned long SSL_OP_NO_TICKET, SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_COMPRESSION, SSL_OP_CIPHER_SERVER_PREFERENCE
    const SSL_METHOD *TLS_server_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
    void SSL_CTX_free(SSL_CTX *ctx)
    int SSL_CTX_set_min_proto_version(SSL_CTX *ctx, int version)
    unsigned long SSL_CTX_set_options(SSL_CTX *ctx, unsigned long options)
    long SSL_CTX_set_mode(SSL_CTX *ctx, long mode)
    long SSL_CTX_clear_mode(SSL_CTX *ctx, long mode)
    long SSL_CTX_set_session_cache_mode(SSL_CTX *ctx, long mode)
    int SSL_CTX_set_num_tickets(SSL_CTX *ctx, size_t n)
    int SSL_CTX_set_cipher_list(SSL_CTX *ctx, const char *text)
    long SSL_CTX_set_max_cert_list(SSL_CTX *ctx, long n)
    void SSL_CTX_set_verify(SSL_CTX *ctx, int mode, SSL_verify_cb callback)
    void SSL_CTX_set_cert_verify_callback(SSL_CTX *ctx, cert_verify_cb callback, void *arg)
    void SSL_CTX_set_alpn_select_cb(SSL_CTX *ctx, alpn_select_cb callback, void *arg)
    int SSL_CTX_use_certificate(SSL_CTX *ctx, X509 *x)
    int SSL_CTX_use_PrivateKey(SSL_CTX *ctx, EVP_PKEY *key)
    int SSL_CTX_check_private_key(const SSL_CTX *ctx)
    int SSL_CTX_add1_chain_cert(SSL_CTX *ctx, X509 *x)
    SSL *SSL_new(SSL_CTX *ctx)
    void SSL_free(SSL *ssl)
    int SSL_set_fd(SSL *ssl, int fd)
    void SSL_set_accept_state(SSL *ssl)
    int SSL_set_ex_data(SSL *ssl, int at, void *data)
    void *SSL_get_ex_data(const SSL *ssl, int at)
    int SSL_get_ex_data_X509_STORE_CTX_idx()
    int SSL_do_handshake(SSL *ssl)
    int SSL_read(SSL *ssl, void *buf, int n)
    int SSL_write(SSL *ssl, const void *buf, int n)
    int SSL_has_pending(const SSL *ssl)
    int SSL_shutdown(SSL *ssl)
    void SSL_set_shutdown(SSL *ssl, int mode)
    void SSL_set_msg_callback(SSL *ssl, message_cb callback)
    long SSL_set_msg_callback_arg(SSL *ssl, void *arg)
    int SSL_get_error(const SSL *ssl, int result)
    void SSL_get0_alpn_selected(const SSL *ssl, const unsigned char **p, unsigned int *n)
    int SSL_select_next_proto(
        unsigned char **out, unsigned char *out_n, const unsigned char *server, unsigned int server_n,
        const unsigned char *client, unsigned int client_n)
    X509 *SSL_get0_peer_certificate(const SSL *ssl)
    X509_STACK *SSL_get_peer_cert_chain(const SSL *ssl)
