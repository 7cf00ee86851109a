"""Encoded answers. Every reply starts as an encoded DENY; an empty one cannot be made."""
from fastpath.decide cimport Decision
from fastpath.envoy cimport HttpCall
from fastpath.request cimport Request
from fastpath.wire cimport Out, Text


cdef struct ReplyRules:
    int mcp_status              # HTTP status of a denied MCP call: 403 (default) or 200
    int identity_header         # set x-remit-agent and x-remit-evaluation-id upstream on ALLOW; else they are removed


# Append an envoy.service.auth.v3.CheckResponse. `request` and `rules` may be NULL. 4,096 bytes of room hold any answer;
# with less it becomes a DENY, and out.failed is set when not even that fits.
cdef void reply_ext_authz(
    Out *out, const Decision *decision, const Request *request, const ReplyRules *rules
) noexcept nogil
# Append a remit.authz.v1.CheckResponse, by the same rules. `request` may be NULL.
cdef void reply_check(Out *out, const Decision *decision, const Request *request) noexcept nogil
