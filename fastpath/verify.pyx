"""X.509-SVID verification: one verifier for every door (SPIFFE X509-SVID sections 2 to 5, RFC 5280 section 6).

Each trust domain has a store of its own, so a root vouches for the IDs of its own domain only. Revocation lists and
policy processing stay off: the first is not served yet, the second is a known way to burn a verifier's time.
"""
from fastpath.c.openssl cimport (
    ASN1_OBJECT, ASN1_STRING, ASN1_STRING_get0_data, ASN1_STRING_length, ASN1_TIME, ASN1_TIME_to_tm, BIGNUM, BN_free,
    BN_is_odd, BN_num_bits, ERR_clear_error, EVP_PKEY, EVP_PKEY_EC, EVP_PKEY_ED25519, EVP_PKEY_RSA,
    EVP_PKEY_get_base_id, EVP_PKEY_get_bits, EVP_PKEY_get_bn_param, EVP_PKEY_get_group_name, EVP_PKEY_get_int_param,
    EXFLAG_BCONS, EXFLAG_CA, EXFLAG_INVALID, EXFLAG_KUSAGE, EXFLAG_XKUSAGE, GENERAL_NAME, GENERAL_NAMES,
    GENERAL_NAMES_free, GEN_URI, KU_CRL_SIGN, KU_DIGITAL_SIGNATURE, KU_KEY_CERT_SIGN, NID_ED25519,
    NID_X9_62_id_ecPublicKey, NID_key_usage, NID_rsaEncryption, NID_rsassaPss, NID_sha256, NID_sha384, NID_sha512,
    NID_subject_alt_name, OBJ_cmp, OSSL_PKEY_PARAM_EC_DECODED_FROM_EXPLICIT_PARAMS, OSSL_PKEY_PARAM_RSA_E, X509,
    X509_EXTENSION_get_critical, X509_EXTENSION_get_object, X509_NAME_entry_count, X509_STACK, X509_STORE,
    X509_STORE_CTX, X509_STORE_CTX_free, X509_STORE_CTX_get0_chain, X509_STORE_CTX_get0_param,
    X509_STORE_CTX_get_current_cert, X509_STORE_CTX_get_error, X509_STORE_CTX_init, X509_STORE_CTX_new,
    X509_STORE_CTX_set_verify_cb, X509_STORE_add_cert, X509_STORE_free, X509_STORE_new, X509_VERIFY_PARAM,
    X509_VERIFY_PARAM_get_time, X509_VERIFY_PARAM_set_auth_level, X509_VERIFY_PARAM_set_depth,
    X509_VERIFY_PARAM_set_flags, X509_VERIFY_PARAM_set_time, X509_V_ERR_CA_KEY_TOO_SMALL, X509_V_ERR_CA_MD_TOO_WEAK,
    X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_EE_KEY_TOO_SMALL,
    X509_V_ERR_EXCLUDED_VIOLATION, X509_V_ERR_OUT_OF_MEM, X509_V_ERR_PERMITTED_VIOLATION, X509_V_ERR_SUBTREE_MINMAX,
    X509_V_ERR_UNSUPPORTED_CONSTRAINT_SYNTAX, X509_V_ERR_UNSUPPORTED_CONSTRAINT_TYPE, X509_V_FLAG_PARTIAL_CHAIN,
    X509_free, X509_get0_notAfter, X509_get0_pubkey, X509_get0_serialNumber, X509_get_ext, X509_get_ext_by_NID,
    X509_get_ext_count, X509_get_ext_d2i, X509_get_extended_key_usage, X509_get_extension_flags, X509_get_key_usage,
    X509_get_signature_info, X509_get_subject_name, X509_get_version, X509_verify_cert, XKU_ANYEKU, XKU_SSL_CLIENT,
    XKU_SSL_SERVER, d2i_X509, sk_GENERAL_NAME_num, sk_GENERAL_NAME_value, sk_X509_free, sk_X509_new_null, sk_X509_num,
    sk_X509_push, sk_X509_value,
)
from fastpath.held cimport Slot
from fastpath.spiffe_id cimport SPIFFE_SCHEME_LEN, spiffe_id_check
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from libc.time cimport time, time_t, tm

from fastpath.peer import VerifiedPeer

cdef extern from "time.h" nogil:
    time_t timegm(tm *broken_down)


cdef enum:
    RSA_BITS_MIN = 2048
    RSA_BITS_MAX = 8192        # above, a verification costs milliseconds
    RSA_E_BITS_MIN = 17        # e >= 65537 (FIPS 186-5 section 5.4)
    RSA_E_BITS_MAX = 32
    AUTH_LEVEL = 2             # OpenSSL's own floor of 112 bits, below our allow-lists
    GROUP_NAME_MAX = 32


cdef const char **_TEXTS = [
    "", "identity.too_large", "identity.malformed", "identity.uri_san", "identity.spiffe_id", "identity.ca_leaf",
    "identity.basic_constraints", "identity.key_usage", "identity.eku", "identity.subject", "identity.key",
    "identity.signature", "identity.trust_domain_unknown", "identity.expired", "identity.not_yet_valid",
    "identity.chain", "identity.signing_cert", "identity.name_constraints", "identity.internal",
]


cdef const char *refusal_text(int refusal) noexcept nogil:
    return _TEXTS[refusal] if 0 <= refusal < REFUSALS else _TEXTS[<int> REFUSED_INTERNAL]


# ---------------------------------------------------------------- one certificate

cdef int _seconds(const ASN1_TIME *at, int64_t *out) noexcept nogil:
    """Unix time of `at`; 1 when it is no time."""
    cdef tm parts
    if at == NULL or not ASN1_TIME_to_tm(at, &parts):
        return 1
    out[0] = timegm(&parts)
    return 0


cdef inline const ASN1_OBJECT *_extension_id(X509 *x, int at) noexcept nogil:
    return X509_EXTENSION_get_object(X509_get_ext(x, at))


cdef int _check_form(X509 *x) noexcept nogil:
    """Version 3, no extension twice (RFC 5280 section 4.2), and few enough that looking at them costs nothing."""
    cdef int count = X509_get_ext_count(x)
    cdef int i, j
    if X509_get_version(x) != 2 or count > EXTENSIONS_MAX:
        return REFUSED_MALFORMED
    for i in range(count):
        for j in range(i):
            if OBJ_cmp(_extension_id(x, i), _extension_id(x, j)) == 0:
                return REFUSED_MALFORMED
    if X509_get_extension_flags(x) & EXFLAG_INVALID:
        return REFUSED_MALFORMED
    return VERIFIED


cdef int _check_key(X509 *x) noexcept nogil:
    """RSA of 2048 to 8192 bits with an odd e from 65537 to 32 bits, P-256, P-384 or Ed25519."""
    cdef EVP_PKEY *key = X509_get0_pubkey(x)
    cdef int type_
    if key == NULL:
        return REFUSED_KEY
    type_ = EVP_PKEY_get_base_id(key)
    if type_ == EVP_PKEY_RSA:
        return _check_rsa(key)
    if type_ == EVP_PKEY_EC:
        return _check_curve(key)
    return VERIFIED if type_ == EVP_PKEY_ED25519 else REFUSED_KEY


cdef int _check_rsa(const EVP_PKEY *key) noexcept nogil:
    cdef BIGNUM *e = NULL
    cdef int bits = EVP_PKEY_get_bits(key)
    cdef int ok
    if not RSA_BITS_MIN <= bits <= RSA_BITS_MAX or not EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_RSA_E, &e):
        return REFUSED_KEY
    ok = BN_is_odd(e) and RSA_E_BITS_MIN <= BN_num_bits(e) <= RSA_E_BITS_MAX
    BN_free(e)
    return VERIFIED if ok else REFUSED_KEY


cdef int _check_curve(const EVP_PKEY *key) noexcept nogil:
    cdef char name[GROUP_NAME_MAX]
    cdef size_t n = 0
    cdef int is_explicit = 0
    # Parameters spelled out can name a curve's points with a generator of the attacker's choice (CVE-2020-0601).
    if not EVP_PKEY_get_int_param(key, OSSL_PKEY_PARAM_EC_DECODED_FROM_EXPLICIT_PARAMS, &is_explicit) or is_explicit:
        return REFUSED_KEY
    if not EVP_PKEY_get_group_name(key, name, GROUP_NAME_MAX, &n):
        return REFUSED_KEY
    if (n == 10 and memcmp(name, "prime256v1", 10) == 0) or (n == 9 and memcmp(name, "secp384r1", 9) == 0):
        return VERIFIED
    return REFUSED_KEY


cdef int _check_signature(X509 *x) noexcept nogil:
    """SHA-256, 384 or 512 with RSA, RSA-PSS or ECDSA; or Ed25519. The issuer's key decides whether it verifies."""
    cdef int digest = 0
    cdef int kind = 0
    if not X509_get_signature_info(x, &digest, &kind, NULL, NULL):
        return REFUSED_SIGNATURE
    if kind == NID_ED25519:
        return VERIFIED
    if digest != NID_sha256 and digest != NID_sha384 and digest != NID_sha512:
        return REFUSED_SIGNATURE
    if kind == NID_rsaEncryption or kind == NID_rsassaPss or kind == NID_X9_62_id_ecPublicKey:
        return VERIFIED
    return REFUSED_SIGNATURE


# ---------------------------------------------------------------- the leaf

cdef int _one_uri(X509 *x, Verified *out) noexcept nogil:
    """Copy the one URI SAN into `out`; REFUSED_URI_SAN unless there is exactly one (X509-SVID section 2)."""
    cdef GENERAL_NAMES *names = <GENERAL_NAMES *> X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL)
    cdef const GENERAL_NAME *name
    cdef const ASN1_STRING *uri = NULL
    cdef int uris = 0
    cdef int at, n
    cdef int refusal = REFUSED_URI_SAN
    if names == NULL:
        return refusal
    n = sk_GENERAL_NAME_num(names)
    if n <= SANS_MAX:
        for at in range(n):
            name = sk_GENERAL_NAME_value(names, at)
            if name.type == GEN_URI:
                uris += 1
                uri = name.d.uniformResourceIdentifier
    if uris == 1:
        n = ASN1_STRING_length(uri)
        if n <= SPIFFE_ID_MAX:
            memcpy(out.spiffe_id, ASN1_STRING_get0_data(uri), n)
            out.spiffe_id_len = n
            refusal = VERIFIED
        else:
            refusal = REFUSED_SPIFFE_ID
    GENERAL_NAMES_free(names)
    return refusal


cdef int _check_id(X509 *leaf, Verified *out) noexcept nogil:
    cdef int refusal = _one_uri(leaf, out)
    if refusal:
        return refusal
    if spiffe_id_check(out.spiffe_id, out.spiffe_id_len, &out.trust_domain_len):
        out.spiffe_id_len = 0
        return REFUSED_SPIFFE_ID
    # A trust domain's own ID (no path) names its authority, never a workload (X509-SVID section 2).
    if out.spiffe_id_len == SPIFFE_SCHEME_LEN + out.trust_domain_len:
        return REFUSED_SPIFFE_ID
    return VERIFIED


cdef bint _critical(X509 *x, int nid) noexcept nogil:
    cdef int at = X509_get_ext_by_NID(x, nid, -1)
    return at >= 0 and X509_EXTENSION_get_critical(X509_get_ext(x, at)) != 0


cdef int _check_usage(X509 *leaf, bint strict, bint server_role) noexcept nogil:
    """What the leaf may be used for: X509-SVID sections 4.1 to 4.4, RFC 5280 sections 4.1.2.6 and 4.2.1."""
    cdef unsigned int flags = X509_get_extension_flags(leaf)
    cdef unsigned int usage = X509_get_key_usage(leaf)
    cdef unsigned int both = XKU_SSL_CLIENT | XKU_SSL_SERVER
    cdef unsigned int wanted = both if strict else (XKU_SSL_CLIENT if server_role else XKU_SSL_SERVER)
    if flags & EXFLAG_CA:
        return REFUSED_CA_LEAF
    if strict and not flags & EXFLAG_BCONS:
        return REFUSED_BASIC_CONSTRAINTS
    if not flags & EXFLAG_KUSAGE or usage & (KU_KEY_CERT_SIGN | KU_CRL_SIGN) or not usage & KU_DIGITAL_SIGNATURE:
        return REFUSED_KEY_USAGE
    if strict and not _critical(leaf, NID_key_usage):
        return REFUSED_KEY_USAGE
    if flags & EXFLAG_XKUSAGE and X509_get_extended_key_usage(leaf) & wanted != wanted:
        return REFUSED_EKU
    if X509_NAME_entry_count(X509_get_subject_name(leaf)) == 0 and not _critical(leaf, NID_subject_alt_name):
        return REFUSED_SUBJECT
    return VERIFIED


cdef int _check_leaf(X509 *leaf, bint strict, bint server_role, Verified *out) noexcept nogil:
    cdef int refusal = _check_form(leaf)
    if not refusal:
        refusal = _check_id(leaf, out)
    if not refusal:
        refusal = _check_usage(leaf, strict, server_role)
    if not refusal:
        refusal = _check_key(leaf)
    if not refusal:
        refusal = _check_signature(leaf)
    return refusal


cdef void _serial(X509 *leaf, Verified *out) noexcept nogil:
    cdef const char *digits = "0123456789abcdef"
    cdef const ASN1_STRING *serial = <const ASN1_STRING *> X509_get0_serialNumber(leaf)
    cdef const unsigned char *p = ASN1_STRING_get0_data(serial)
    cdef int n = min(ASN1_STRING_length(serial), <int> SERIAL_BYTES_MAX)
    cdef int i
    for i in range(n):
        out.serial[2 * i] = digits[p[i] >> 4]
        out.serial[2 * i + 1] = digits[p[i] & 15]
    out.serial_len = 2 * n


# ---------------------------------------------------------------- the chain

cdef const Domain *_find(const Trust *trust, const char *name, uint32_t n) noexcept nogil:
    """The domain of that name, by binary search, or NULL."""
    cdef uint32_t low = 0
    cdef uint32_t high = trust.count
    cdef uint32_t middle
    cdef int order
    cdef const Domain *domain
    while low < high:
        middle = (low + high) // 2
        domain = &trust.domains[middle]
        order = memcmp(name, domain.name, min(n, domain.name_len))
        if order == 0:
            order = (n > domain.name_len) - (n < domain.name_len)
        if order == 0:
            return domain
        if order < 0:
            high = middle
        else:
            low = middle + 1
    return NULL


cdef int _at_last_second(int ok, X509_STORE_CTX *ctx) noexcept nogil:
    """Accept a certificate in the second of its notAfter: RFC 5280 section 4.1.2.5 includes it, OpenSSL does not."""
    cdef int64_t end = 0
    if ok or X509_STORE_CTX_get_error(ctx) != X509_V_ERR_CERT_HAS_EXPIRED:
        return ok
    if _seconds(X509_get0_notAfter(X509_STORE_CTX_get_current_cert(ctx)), &end):
        return 0
    return end == X509_VERIFY_PARAM_get_time(X509_STORE_CTX_get0_param(ctx))


cdef int _refusal_of(int error) noexcept nogil:
    """Our code for OpenSSL's."""
    if error == X509_V_ERR_CERT_HAS_EXPIRED:
        return REFUSED_EXPIRED
    if error == X509_V_ERR_CERT_NOT_YET_VALID:
        return REFUSED_NOT_YET_VALID
    if error == X509_V_ERR_EE_KEY_TOO_SMALL or error == X509_V_ERR_CA_KEY_TOO_SMALL:
        return REFUSED_KEY
    if error == X509_V_ERR_CA_MD_TOO_WEAK:
        return REFUSED_SIGNATURE
    if (error == X509_V_ERR_PERMITTED_VIOLATION or error == X509_V_ERR_EXCLUDED_VIOLATION
            or error == X509_V_ERR_SUBTREE_MINMAX or error == X509_V_ERR_UNSUPPORTED_CONSTRAINT_TYPE
            or error == X509_V_ERR_UNSUPPORTED_CONSTRAINT_SYNTAX):
        return REFUSED_NAME_CONSTRAINTS
    return REFUSED_INTERNAL if error == X509_V_ERR_OUT_OF_MEM else REFUSED_CHAIN


cdef int _check_signer(X509 *x, bint server_role, const Verified *leaf) noexcept nogil:
    """A signing certificate as X509-SVID sections 2, 4.1 and 4.3 want it; `leaf` gives the trust domain."""
    cdef unsigned int flags = X509_get_extension_flags(x)
    cdef unsigned int role = XKU_SSL_CLIENT if server_role else XKU_SSL_SERVER
    cdef int refusal = _check_form(x)
    if refusal:
        return refusal
    if not flags & EXFLAG_CA or not flags & EXFLAG_KUSAGE or not X509_get_key_usage(x) & KU_KEY_CERT_SIGN:
        return REFUSED_SIGNING_CERT
    if flags & EXFLAG_XKUSAGE and not X509_get_extended_key_usage(x) & (role | XKU_ANYEKU):
        return REFUSED_EKU
    refusal = _check_key(x)
    return refusal if refusal else _check_signer_id(x, leaf)


cdef inline bint _begins(const ASN1_STRING *text, const char *prefix, int n) noexcept nogil:
    return ASN1_STRING_length(text) >= n and memcmp(ASN1_STRING_get0_data(text), prefix, n) == 0


cdef int _check_signer_id(X509 *x, const Verified *leaf) noexcept nogil:
    """A SPIFFE ID in a signing certificate is that of the trust domain: no path, and not another domain's."""
    cdef GENERAL_NAMES *names = <GENERAL_NAMES *> X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL)
    cdef const GENERAL_NAME *name
    cdef const ASN1_STRING *uri
    cdef int n = sk_GENERAL_NAME_num(names) if names != NULL else 0
    cdef int own = SPIFFE_SCHEME_LEN + leaf.trust_domain_len
    cdef int refusal = VERIFIED if n <= SANS_MAX else REFUSED_SIGNING_CERT
    cdef int at
    for at in range(min(n, <int> SANS_MAX)):
        name = sk_GENERAL_NAME_value(names, at)
        if name.type != GEN_URI:
            continue
        uri = name.d.uniformResourceIdentifier
        # URIs of other schemes are common in corporate roots and say nothing about SPIFFE.
        if _begins(uri, "spiffe://", SPIFFE_SCHEME_LEN):
            if ASN1_STRING_length(uri) != own or not _begins(uri, leaf.spiffe_id, own):
                refusal = REFUSED_SIGNING_CERT
    GENERAL_NAMES_free(names)
    return refusal


cdef int _check_built(X509_STACK *chain, bint server_role, Verified *out) noexcept nogil:
    """Every certificate of the path that OpenSSL found, and the earliest notAfter of them."""
    cdef int n = sk_X509_num(chain)
    cdef int at
    cdef int refusal = VERIFIED
    cdef int64_t end = 0
    cdef X509 *x
    # A leaf that stands in a bundle is not thereby its own authority.
    if n < 2:
        return REFUSED_CHAIN
    for at in range(n):
        x = sk_X509_value(chain, at)
        if _seconds(X509_get0_notAfter(x), &end):
            return REFUSED_MALFORMED
        if at == 0 or end < out.not_after_s:
            out.not_after_s = end
        if at > 0:
            refusal = _check_signer(x, server_role, out)
        # Nobody checks the signature of a trust anchor; those below it count.
        if not refusal and 0 < at < n - 1:
            refusal = _check_signature(x)
        if refusal:
            return refusal
    return VERIFIED


cdef int _build(const Domain *domain, X509 *leaf, X509_STACK *untrusted, int64_t now_s, bint server_role,
                Verified *out) noexcept nogil:
    cdef X509_STORE_CTX *ctx = X509_STORE_CTX_new()
    cdef X509_VERIFY_PARAM *param
    cdef int refusal = REFUSED_INTERNAL
    if ctx == NULL or not X509_STORE_CTX_init(ctx, domain.store, leaf, untrusted):
        X509_STORE_CTX_free(ctx)
        return refusal
    param = X509_STORE_CTX_get0_param(ctx)
    # Every certificate of a bundle is an anchor, self-signed or not (SPIFFE Trust Domain and Bundle section 4.2).
    X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_PARTIAL_CHAIN)
    X509_VERIFY_PARAM_set_time(param, now_s)
    X509_VERIFY_PARAM_set_depth(param, CHAIN_CERTS_MAX - 1)
    X509_VERIFY_PARAM_set_auth_level(param, AUTH_LEVEL)
    X509_STORE_CTX_set_verify_cb(ctx, _at_last_second)
    if X509_verify_cert(ctx) == 1:
        refusal = _check_built(X509_STORE_CTX_get0_chain(ctx), server_role, out)
    else:
        refusal = _refusal_of(X509_STORE_CTX_get_error(ctx))
    X509_STORE_CTX_free(ctx)
    return refusal


cdef int verify_chain(const Trust *trust, X509 *leaf, X509_STACK *untrusted, int64_t now_s, bint server_role,
                      Verified *out) noexcept nogil:
    cdef const Domain *domain
    cdef int refusal
    memset(out, 0, sizeof(Verified))
    refusal = _check_leaf(leaf, trust.strict, server_role, out)
    if not refusal:
        _serial(leaf, out)
        domain = _find(trust, out.spiffe_id + SPIFFE_SCHEME_LEN, out.trust_domain_len)
        refusal = _build(domain, leaf, untrusted, now_s, server_role, out) if domain != NULL else REFUSED_TRUST_DOMAIN
    # The queue is per thread and shared with whoever else uses libcrypto here.
    ERR_clear_error()
    return refusal


cdef X509 *_parse(const Der *der) noexcept nogil:
    """The certificate, or NULL; bytes after it make it none."""
    cdef const unsigned char *p = der.p
    cdef X509 *x = d2i_X509(NULL, &p, <long> der.n)
    if x != NULL and p != der.p + der.n:
        X509_free(x)
        return NULL
    return x


cdef int verify_der(const Trust *trust, const Der *certs, uint32_t count, int64_t now_s, bint server_role,
                    Verified *out) noexcept nogil:
    cdef X509 *parsed[CHAIN_CERTS_MAX]
    cdef X509_STACK *untrusted = NULL
    cdef size_t total = 0
    cdef uint32_t at
    cdef uint32_t ready = 0
    cdef int refusal = VERIFIED
    memset(out, 0, sizeof(Verified))
    if count == 0 or count > CHAIN_CERTS_MAX:
        return REFUSED_TOO_LARGE if count else REFUSED_MALFORMED
    for at in range(count):
        if certs[at].n > CHAIN_BYTES_MAX - total:
            return REFUSED_TOO_LARGE
        total += certs[at].n
    untrusted = sk_X509_new_null()
    if untrusted == NULL:
        refusal = REFUSED_INTERNAL
    while not refusal and ready < count:
        parsed[ready] = _parse(&certs[ready])
        if parsed[ready] == NULL:
            refusal = REFUSED_MALFORMED
        else:
            ready += 1
            if ready > 1 and not sk_X509_push(untrusted, parsed[ready - 1]):
                refusal = REFUSED_INTERNAL
    if not refusal:
        refusal = verify_chain(trust, parsed[0], untrusted, now_s, server_role, out)
    for at in range(ready):
        X509_free(parsed[at])
    sk_X509_free(untrusted)
    ERR_clear_error()
    return refusal


# ---------------------------------------------------------------- the Python face

class VerifyError(Exception):
    """A chain or bundle is refused. `reason` is a stable code; `claimed` the SPIFFE ID it carried: proof of nothing."""

    def __init__(self, str reason, str claimed=""):
        super().__init__(reason)
        self.reason = reason
        self.claimed = claimed


cdef class TrustSet:

    def __cinit__(self):
        self.trust.domains = NULL
        self.trust.count = 0

    def __dealloc__(self):
        cdef uint32_t at
        for at in range(self.trust.count):
            X509_STORE_free(self.trust.domains[at].store)
        free(self.trust.domains)


cdef int _fill(TrustSet made, dict bundles, uint64_t generation, bint strict) except -1:
    """Build the stores of `made`; on an error its deallocation frees those that are there."""
    cdef bytes name
    cdef Domain *domain
    made._names = sorted(key.encode() for key, roots in bundles.items() if roots)
    made.trust.generation = generation
    made.trust.strict = strict
    made.trust.domains = <Domain *> calloc(len(made._names) or 1, sizeof(Domain))
    if made.trust.domains == NULL:
        raise MemoryError
    for name in made._names:
        domain = &made.trust.domains[made.trust.count]
        domain.name, domain.name_len = name, len(name)
        domain.store = X509_STORE_new()
        if domain.store == NULL:
            raise MemoryError
        made.trust.count += 1
        for root in bundles[name.decode()]:
            _add_root(domain.store, root)
    return 0


cdef int _add_root(X509_STORE *store, bytes root) except -1:
    cdef Der der
    cdef X509 *x
    cdef int refusal, added
    der.p, der.n = root, len(root)
    if der.n > CHAIN_BYTES_MAX:
        raise VerifyError("identity.bundle")
    x = _parse(&der)
    refusal = REFUSED_MALFORMED if x == NULL else _check_form(x)
    added = not refusal and X509_STORE_add_cert(store, x)
    X509_free(x)
    ERR_clear_error()
    if refusal:
        raise VerifyError("identity.bundle")
    if not added:
        raise MemoryError
    return 0


cdef class Verifier:

    def __init__(self, strict=True):
        self._strict = strict
        self.in_force = Slot()
        self.put_bundles({}, 0)

    @property
    def generation(self) -> int:
        return self._set.trust.generation

    @property
    def trust_domains(self) -> tuple[str, ...]:
        return tuple(name.decode() for name in self._set._names)

    def put_bundles(self, bundles, generation):
        cdef TrustSet made = TrustSet.__new__(TrustSet)
        owned = {str(name): [bytes(root) for root in roots] for name, roots in bundles.items()}
        _fill(made, owned, generation, self._strict)
        self._set = made
        self.in_force.put(made, &made.trust)

    def verify(self, bytes leaf_der, intermediates_der, *, now_s=None, server_role=True):
        cdef TrustSet held = self._set
        cdef list ders = [leaf_der, *intermediates_der]
        cdef Der certs[CHAIN_CERTS_MAX]
        cdef Verified out
        cdef uint32_t count = len(ders)
        cdef int64_t at_s = time(NULL) if now_s is None else now_s
        cdef bint role = server_role
        cdef uint32_t at
        cdef bytes der
        cdef int refusal
        if count > CHAIN_CERTS_MAX:
            raise VerifyError("identity.too_large")
        for at in range(count):
            der = ders[at]
            certs[at].p, certs[at].n = der, len(der)
        with nogil:
            refusal = verify_der(&held.trust, certs, count, at_s, role, &out)
        claimed = out.spiffe_id[:out.spiffe_id_len].decode("ascii")
        if refusal:
            raise VerifyError(refusal_text(refusal).decode(), claimed)
        return VerifiedPeer(
            1, claimed, "x509-svid:" + out.serial[:out.serial_len].decode(), not_after_s=out.not_after_s,
            bundle_generation=held.trust.generation,
        )
