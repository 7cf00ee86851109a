"""OpenSSL 3 (libcrypto): what the verifier and the digests touch."""
from libc.time cimport time_t, tm


cdef extern from "openssl/err.h" nogil:
    void ERR_clear_error()


cdef extern from "openssl/bio.h" nogil:
    ctypedef struct BIO:
        pass
    BIO *BIO_new_mem_buf(const void *buf, int n)
    int BIO_free(BIO *a)


cdef extern from "openssl/sha.h" nogil:
    unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md)


cdef extern from "openssl/asn1.h" nogil:
    ctypedef struct ASN1_STRING:
        pass
    ctypedef struct ASN1_INTEGER:
        pass
    ctypedef struct ASN1_OBJECT:
        pass
    ctypedef struct ASN1_TIME:
        pass
    const unsigned char *ASN1_STRING_get0_data(const ASN1_STRING *x)
    int ASN1_STRING_length(const ASN1_STRING *x)
    int ASN1_TIME_to_tm(const ASN1_TIME *s, tm *out)


cdef extern from "openssl/objects.h" nogil:
    int NID_subject_alt_name, NID_key_usage
    int NID_sha256, NID_sha384, NID_sha512, NID_ED25519
    int NID_rsaEncryption, NID_rsassaPss, NID_X9_62_id_ecPublicKey
    int OBJ_cmp(const ASN1_OBJECT *a, const ASN1_OBJECT *b)


cdef extern from "openssl/bn.h" nogil:
    ctypedef struct BIGNUM:
        pass
    int BN_num_bits(const BIGNUM *a)
    int BN_is_odd(const BIGNUM *a)
    void BN_free(BIGNUM *a)


cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_PKEY:
        pass
    int EVP_PKEY_RSA, EVP_PKEY_EC, EVP_PKEY_ED25519
    int EVP_DecodeBlock(unsigned char *t, const unsigned char *f, int n)
    int EVP_PKEY_get_base_id(const EVP_PKEY *pkey)
    int EVP_PKEY_get_bits(const EVP_PKEY *pkey)
    int EVP_PKEY_get_group_name(const EVP_PKEY *pkey, char *name, size_t size, size_t *length)
    int EVP_PKEY_get_bn_param(const EVP_PKEY *pkey, const char *key, BIGNUM **bn)
    int EVP_PKEY_get_int_param(const EVP_PKEY *pkey, const char *key, int *out)


cdef extern from "openssl/core_names.h" nogil:
    const char *OSSL_PKEY_PARAM_RSA_E
    const char *OSSL_PKEY_PARAM_EC_DECODED_FROM_EXPLICIT_PARAMS


cdef extern from "openssl/x509.h" nogil:
    ctypedef struct X509:
        pass
    ctypedef struct X509_NAME:
        pass
    ctypedef struct X509_EXTENSION:
        pass
    X509 *d2i_X509(X509 **a, const unsigned char **p, long length)
    void X509_free(X509 *a)
    long X509_get_version(const X509 *x)
    const ASN1_INTEGER *X509_get0_serialNumber(const X509 *x)
    X509_NAME *X509_get_subject_name(const X509 *a)
    int X509_NAME_entry_count(const X509_NAME *name)
    const ASN1_TIME *X509_get0_notAfter(const X509 *x)
    EVP_PKEY *X509_get0_pubkey(const X509 *x)
    int X509_get_signature_info(X509 *x, int *mdnid, int *pknid, int *secbits, unsigned int *flags)
    int X509_get_ext_count(const X509 *x)
    X509_EXTENSION *X509_get_ext(const X509 *x, int at)
    int X509_get_ext_by_NID(const X509 *x, int nid, int lastpos)
    void *X509_get_ext_d2i(const X509 *x, int nid, int *crit, int *idx)
    ASN1_OBJECT *X509_EXTENSION_get_object(X509_EXTENSION *ex)
    int X509_EXTENSION_get_critical(const X509_EXTENSION *ex)


cdef extern from "openssl/x509v3.h" nogil:
    ctypedef struct GENERAL_NAMES:
        pass
    ctypedef union GENERAL_NAME_d:
        ASN1_STRING *uniformResourceIdentifier
    ctypedef struct GENERAL_NAME:
        int type
        GENERAL_NAME_d d
    int GEN_URI
    unsigned int EXFLAG_BCONS, EXFLAG_KUSAGE, EXFLAG_XKUSAGE, EXFLAG_CA, EXFLAG_INVALID
    unsigned int KU_DIGITAL_SIGNATURE, KU_KEY_CERT_SIGN, KU_CRL_SIGN
    unsigned int XKU_SSL_SERVER, XKU_SSL_CLIENT, XKU_ANYEKU
    unsigned int X509_get_extension_flags(X509 *x)
    unsigned int X509_get_key_usage(X509 *x)
    unsigned int X509_get_extended_key_usage(X509 *x)
    int sk_GENERAL_NAME_num(const GENERAL_NAMES *names)
    GENERAL_NAME *sk_GENERAL_NAME_value(const GENERAL_NAMES *names, int at)
    void GENERAL_NAMES_free(GENERAL_NAMES *names)


cdef extern from "openssl/x509_vfy.h" nogil:
    """
    typedef STACK_OF(X509) remit_x509_stack;
    """
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_STORE_CTX:
        pass
    ctypedef struct X509_VERIFY_PARAM:
        pass
    ctypedef struct X509_STACK "remit_x509_stack":
        pass
    ctypedef int (*X509_STORE_CTX_verify_cb)(int ok, X509_STORE_CTX *ctx) noexcept nogil
    unsigned long X509_V_FLAG_PARTIAL_CHAIN
    int X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
    int X509_V_ERR_EE_KEY_TOO_SMALL, X509_V_ERR_CA_KEY_TOO_SMALL, X509_V_ERR_CA_MD_TOO_WEAK
    int X509_V_ERR_PERMITTED_VIOLATION, X509_V_ERR_EXCLUDED_VIOLATION, X509_V_ERR_SUBTREE_MINMAX
    int X509_V_ERR_UNSUPPORTED_CONSTRAINT_TYPE, X509_V_ERR_UNSUPPORTED_CONSTRAINT_SYNTAX
    int X509_V_ERR_OUT_OF_MEM
    X509_STORE *X509_STORE_new()
    void X509_STORE_free(X509_STORE *store)
    int X509_STORE_add_cert(X509_STORE *store, X509 *x)
    X509_STORE_CTX *X509_STORE_CTX_new()
    void X509_STORE_CTX_free(X509_STORE_CTX *ctx)
    int X509_STORE_CTX_init(X509_STORE_CTX *ctx, X509_STORE *store, X509 *leaf, X509_STACK *untrusted)
    X509_VERIFY_PARAM *X509_STORE_CTX_get0_param(X509_STORE_CTX *ctx)
    void X509_STORE_CTX_set_verify_cb(X509_STORE_CTX *ctx, X509_STORE_CTX_verify_cb verify)
    X509 *X509_STORE_CTX_get_current_cert(const X509_STORE_CTX *ctx)
    X509_STACK *X509_STORE_CTX_get0_chain(const X509_STORE_CTX *ctx)
    int X509_STORE_CTX_get_error(const X509_STORE_CTX *ctx)
    int X509_verify_cert(X509_STORE_CTX *ctx)
    int X509_VERIFY_PARAM_set_flags(X509_VERIFY_PARAM *param, unsigned long flags)
    void X509_VERIFY_PARAM_set_time(X509_VERIFY_PARAM *param, time_t t)
    time_t X509_VERIFY_PARAM_get_time(const X509_VERIFY_PARAM *param)
    void X509_VERIFY_PARAM_set_depth(X509_VERIFY_PARAM *param, int depth)
    void X509_VERIFY_PARAM_set_auth_level(X509_VERIFY_PARAM *param, int level)
    X509_STACK *sk_X509_new_null()
    int sk_X509_push(X509_STACK *stack, X509 *x)
    int sk_X509_num(const X509_STACK *stack)
    X509 *sk_X509_value(const X509_STACK *stack, int at)
    void sk_X509_free(X509_STACK *stack)


cdef extern from "openssl/pem.h" nogil:
    X509 *PEM_read_bio_X509(BIO *bio, X509 **out, void *password, void *data)
