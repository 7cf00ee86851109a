"""Peers verified by the SPIFFE X.509-SVID rules, per trust domain, on OpenSSL 3."""
from fastpath.c.openssl cimport X509, X509_STACK, X509_STORE
from fastpath.held cimport Slot
from libc.stdint cimport int64_t, uint32_t, uint64_t


cpdef enum Refusal:            # why a chain is refused; `refusal_text` gives the reason code
    VERIFIED = 0
    REFUSED_TOO_LARGE = 1          # more than CHAIN_CERTS_MAX certificates or CHAIN_BYTES_MAX bytes; nothing was parsed
    REFUSED_MALFORMED = 2          # not a DER certificate of version 3, trailing bytes, an extension twice
    REFUSED_URI_SAN = 3            # not exactly one URI SAN
    REFUSED_SPIFFE_ID = 4          # the URI SAN is no SPIFFE ID with a path
    REFUSED_CA_LEAF = 5            # the leaf is a CA
    REFUSED_BASIC_CONSTRAINTS = 6  # strict: the leaf has no BasicConstraints
    REFUSED_KEY_USAGE = 7          # keyCertSign or cRLSign set, digitalSignature unset; strict: absent or not critical
    REFUSED_EKU = 8                # extended key usage without this role; strict: without clientAuth and serverAuth
    REFUSED_SUBJECT = 9            # empty subject and a SAN that is not critical
    REFUSED_KEY = 10               # key type or size outside the allow-list
    REFUSED_SIGNATURE = 11         # signature algorithm outside the allow-list
    REFUSED_TRUST_DOMAIN = 12      # no bundle, or an empty one, for the leaf's trust domain
    REFUSED_EXPIRED = 13
    REFUSED_NOT_YET_VALID = 14
    REFUSED_CHAIN = 15             # no path to a root of the leaf's own trust domain
    REFUSED_SIGNING_CERT = 16      # an issuer is no proper signing certificate, or of another trust domain
    REFUSED_NAME_CONSTRAINTS = 17
    REFUSED_INTERNAL = 18          # out of memory
    REFUSALS = 19


cdef enum:
    CHAIN_CERTS_MAX = 4        # certificates that a peer may present: its leaf and three intermediates
    CHAIN_BYTES_MAX = 32768    # of DER, all certificates together
    EXTENSIONS_MAX = 64        # per certificate
    SANS_MAX = 128             # per certificate
    SPIFFE_ID_MAX = 2048       # bytes, SPIFFE-ID section 2.3
    SERIAL_BYTES_MAX = 20      # RFC 5280 section 4.1.2.2


cdef struct Domain:            # a trust domain and its roots
    const char *name           # not terminated
    uint32_t name_len
    X509_STORE *store          # owned; holds the bundle of this trust domain and nothing else


cdef struct Trust:             # all bundles in force; immutable
    uint64_t generation
    uint32_t count
    bint strict
    Domain *domains            # owned; sorted by name bytes


cdef struct Der:               # borrowed bytes of one certificate
    const unsigned char *p
    size_t n


cdef struct Verified:          # what is known of a peer; spiffe_id is a claim until the result is VERIFIED
    char spiffe_id[SPIFFE_ID_MAX]
    uint32_t spiffe_id_len
    uint32_t trust_domain_len  # bytes of the name after "spiffe://"
    char serial[2 * SERIAL_BYTES_MAX]  # hex, lower case
    uint32_t serial_len
    int64_t not_after_s        # earliest notAfter of the chain that was built, Unix time


cdef class TrustSet:
    """Owns one Trust. A reader holds the object for as long as it uses the memory."""
    cdef Trust trust
    cdef list _names           # keeps the memory of the domain names


cdef class Verifier:
    cdef TrustSet _set         # replaced whole, never changed
    cdef Slot in_force         # of the same, for threads without the GIL; never empty
    cdef bint _strict


# Verify `leaf` at `now_s`. `untrusted` holds what else the peer sent and may be NULL. `server_role` 1: the peer is a
# TLS client of ours; 0: a TLS server. Returns a Refusal; fills `out` as far as it came.
cdef int verify_chain(const Trust *trust, X509 *leaf, X509_STACK *untrusted, int64_t now_s, bint server_role,
                      Verified *out) noexcept nogil
# The same from DER, the leaf first; caps count and size before it parses.
cdef int verify_der(const Trust *trust, const Der *certs, uint32_t count, int64_t now_s, bint server_role,
                    Verified *out) noexcept nogil
# Reason code of a Refusal; "" for VERIFIED.
cdef const char *refusal_text(int refusal) noexcept nogil
