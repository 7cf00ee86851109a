"""OpenSSL 3 (libssl): the client's side of what fastpath.c.openssl_ssl declares for the server."""
from fastpath.c.openssl_ssl cimport SSL, SSL_CTX, SSL_METHOD


cdef extern from "openssl/ssl.h" nogil:
    int SSL_FILETYPE_PEM, TLS1_3_VERSION
    const SSL_METHOD *TLS_client_method()
    int SSL_CTX_use_certificate_chain_file(SSL_CTX *ctx, const char *file)
    int SSL_CTX_use_PrivateKey_file(SSL_CTX *ctx, const char *file, int type)
    int SSL_CTX_load_verify_locations(SSL_CTX *ctx, const char *file, const char *folder)
    int SSL_CTX_set_alpn_protos(SSL_CTX *ctx, const unsigned char *protocols, unsigned int n)
    void SSL_set_connect_state(SSL *ssl)
    const char *SSL_get_cipher_name(const SSL *ssl)
