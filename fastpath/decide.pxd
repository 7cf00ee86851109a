"""The decision: the one place that makes an ALLOW."""
from fastpath.live_state cimport LiveState, Standing
from fastpath.program cimport EvalContext, EvalError
from fastpath.request cimport Request
from fastpath.rows cimport Table
from fastpath.value cimport Arena, Cell
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cpdef enum Outcome:          # as in remit.authz.v1.Outcome
    OUTCOME_UNSPECIFIED = 0  # never answered
    OUTCOME_ALLOW = 1
    OUTCOME_DENY = 2         # caused by the input or the policy
    OUTCOME_STEP_UP = 3      # an approval would turn it into ALLOW
    OUTCOME_ERROR = 4        # caused by the sidecar's own state


cpdef enum PeerKind:
    PEER_NONE = 0
    PEER_AGENT = 1           # the caller is the principal
    PEER_ENVOY = 2           # an allow-listed PEP: may assert the principal


cdef struct Peer:            # the verified caller; made by fastpath.verify, or by a Unix socket's configuration
    uint8_t kind             # PeerKind
    Text spiffe_id
    Text credential          # "x509-svid:<serial hex>" or "unix:<uid>"; for the record
    int64_t not_after_s      # Unix time at which the credential ends; INT64_MAX for a Unix socket
    uint64_t bundle_generation   # of the bundle set it was verified against; 0 for a Unix socket
    Text refusal             # reason code when verification refused the peer, else empty


cdef struct Authority:       # live state; read by decide, put in by the control plane
    uint64_t epoch           # revocation epoch in force
    uint64_t bundle_generation   # of the trust bundles in force
    int64_t now_ns           # monotonic clock injected by tests; 0: read the clock
    int64_t now_unix_ns      # wall clock injected by tests; 0: read the clock
    uint64_t boot            # random per process start; first half of every evaluation id
    uint64_t sequence        # last evaluation number; the second half
    Text not_ready           # reason code while the sidecar must not decide ("not_ready.svid", ..), else empty
    LiveState *live          # tasks, revocations, owners, approvals; NULL: none are enforced
    const Cell *columns      # COLUMN_COUNT cells of live state for this call, or NULL: the absent values stay


cdef enum:
    LISTED_MAX = 16          # policies and errors listed in a reply and a record; totals are counted


cdef struct Listed:          # one policy that determined, erred or shadowed
    Text id
    uint8_t error            # EvalError


cdef struct Decision:
    uint8_t outcome          # Outcome
    uint8_t cacheable        # no dynamic column was read
    uint8_t late
    uint8_t crossable        # a DENY that an emergency approval could cross: only forbids stand in the way
    Text reason              # stable code: "ok", "policy.none", "task.scope", "path.not_canonical", ..
    Text obligation          # of the first determining policy that has one
    uint32_t policies_total
    uint32_t errors_total
    uint32_t shadows_total
    uint64_t generation
    uint64_t epoch
    char evaluation_id[32]   # hex of boot and sequence
    int64_t latency_ns
    uint64_t sequence
    Text input_missing       # name behind reason `input.missing.<name>`
    Standing standing        # where the call stood: task, chain, approval, revocation, and what it took
    # The first LISTED_MAX of each; what lies beyond the totals is not set. Determining are the satisfied forbids, else
    # the permits of an ALLOW; none when an erring forbid denied.
    Listed policies[LISTED_MAX]
    Listed errors[LISTED_MAX]
    Listed shadows[LISTED_MAX]


cdef struct All:             # where a caller wants every policy, not the first LISTED_MAX; indexes into the table
    uint32_t *satisfied
    uint32_t *erring
    uint32_t satisfied_count
    uint32_t erring_count
    uint32_t cap             # of each array
    uint8_t *causes          # EvalError of each in `erring`, or NULL


# Decide one call. `arena` holds the request and gives scratch; `all` may be NULL. Fills `out` and never fails itself:
# whatever goes wrong is OUTCOME_ERROR with its reason.
cdef void decide(
    const Peer *peer, Request *request, const Table *table, Authority *authority, Arena *arena, Decision *out, All *all
) noexcept nogil
# Why `peer` may not call now: its own refusal, "identity.expired", "identity.bundle_changed"; empty when it may. decide
# applies it first; doors ask it before they parse a byte. `now_unix_ns` 0: read the clock.
cdef Text peer_refusal(const Peer *peer, const Authority *authority, int64_t now_unix_ns) noexcept nogil


# What the evaluator reads of `request`, resolved against `table`: the start of every decision.
cdef void request_context(const Table *table, Request *request, EvalContext *context) noexcept nogil
