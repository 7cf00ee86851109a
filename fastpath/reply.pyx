"""Encoded answers: envoy.service.auth.v3.CheckResponse and remit.authz.v1.CheckResponse.

INVARIANT (deny first): a reply begins as an encoded DENY in the caller's memory. To Envoy the real answer is written
behind that DENY's status, which becomes the answer's own when all the rest stands there; in our own contract it is
written behind the DENY and then takes its place. So neither a full buffer nor a fault on the way can leave bytes that
mean ALLOW. To Envoy an empty CheckResponse means just that (status.code 0), whatever else the message holds.

What a caller may see (EX-19): the evaluation id, the reason code (of the fixed catalogue, or the author's @reason,
which is made for callers) and the obligation. Policy ids, generation and epoch go into dynamic metadata, which the
proxy keeps. Of an ERROR callers see no reason at all. Header names and values are our own constants, hex, and a
principal checked byte by byte (EX-18).
"""
from fastpath.decide cimport (
    LISTED_MAX, OUTCOME_ALLOW, OUTCOME_DENY, OUTCOME_ERROR, OUTCOME_STEP_UP, Decision, Listed
)
from fastpath.request cimport DOOR_EXT_AUTHZ_NETWORK, Request
from fastpath.value cimport Arena, uid_id, uid_make
from fastpath.wire cimport (
    TEXT_CONTROL, TEXT_HIGH, TEXT_TAB, Out, Text, field_bytes, out_bytes, out_close, out_close_long, out_few,
    out_open, out_open_long, out_raw, out_take, out_text, out_uint, put_bytes, put_head, put_varint, remit_copy,
    text_is, text_marks, text_of, utf8_prefix, utf8_valid
)
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memmove, memset, strlen

cdef enum:
    CODE_PERMISSION_DENIED = 7   # google.rpc.Code
    CODE_UNAVAILABLE = 14
    HTTP_OK = 200
    HTTP_BAD_REQUEST = 400
    HTTP_FORBIDDEN = 403
    HTTP_UNAVAILABLE = 503
    OVERWRITE_IF_EXISTS_OR_ADD = 2   # envoy.config.core.v3.HeaderValueOption.HeaderAppendAction
    CODE_BYTES_MAX = 128         # a reason or obligation in an answer
    DENIAL_ID_BYTES_MAX = 256
    REQUEST_ID_BYTES_MAX = 128
    AGENT_BYTES_MAX = 512
    IDS_BYTES_MAX = 1536         # policy ids listed in one answer
    EVALUATION_ID_BYTES = 32

cdef const char *RETRY_AFTER_MS = "1000"     # about what a reconnect or a restart takes

# Client-forgeable names that only the sidecar may set; removed on ALLOW unless set there. What a client may say itself
# (x-agent-task) is not among them.
cdef enum:
    OWN_HEADERS_COUNT = 10
    OWN_HEADER_BYTES_MAX = 32

cdef const char *OWN_HEADERS[OWN_HEADERS_COUNT]
OWN_HEADERS[:] = [
    "x-remit-agent", "x-remit-evaluation-id", "x-remit-outcome", "x-remit-reason", "x-remit-decision", "x-remit-task",
    "x-remit-subject", "x-remit-policy", "x-remit-approval", "x-remit-obligation",
]

cdef struct Answer:          # what is said, judged once
    const Decision *decision
    const Request *request   # or NULL
    const ReplyRules *rules  # or NULL
    int outcome              # Outcome to answer with
    Text id                  # of the evaluation; empty when it is none
    Text reason              # as `plain` passes it
    Text obligation


cdef enum:
    TEMPLATE_BYTES_MAX = 192
    COPIED_BYTES = 96        # of a template that is copied at once, its length at most
    STATUS_BYTES = 4         # of a google.rpc.Status in a CheckResponse; the code is the last

cdef struct Template:        # what does not differ between answers, encoded once by the writers below
    size_t n
    uint8_t p[TEMPLATE_BYTES_MAX]


cdef Template DENY           # a whole CheckResponse
cdef Template OVERWRITES     # the end of a HeaderValueOption
cdef Template IDENTIFIED     # the option that sets x-remit-evaluation-id
cdef Template REMOVED        # headers_to_remove for OWN_HEADERS
cdef Template[OUTCOME_ERROR + 1] SAID    # entries of the metadata before the reason, by outcome
cdef Template COUNTED        # and those behind the policies
# Where in them what differs stands.
cdef size_t REMOVED_END[OWN_HEADERS_COUNT]
cdef size_t IDENTIFIED_ID, SAID_ID
cdef size_t COUNTED_TOTAL, COUNTED_GENERATION, COUNTED_EPOCH, COUNTED_CACHEABLE

cdef uint8_t[2] DENY_CHECK = [0x18, OUTCOME_DENY]                          # outcome: OUTCOME_DENY


# ---------------------------------------------------------------- texts


cdef inline Text no_text() noexcept nogil:
    return text_of("")


cdef inline Text evaluation_id(const Decision *decision) noexcept nogil:
    """The id, or nothing when it is not the hex that it must be."""
    cdef Text t
    cdef int i
    cdef uint8_t c, foreign = 0
    for i in range(EVALUATION_ID_BYTES):
        c = decision.evaluation_id[i]
        foreign |= (<uint8_t> (c - c"0") > 9) & (<uint8_t> (c - c"a") > 5)
    if foreign:
        return no_text()
    t.p = &decision.evaluation_id[0]
    t.n = EVALUATION_ID_BYTES
    return t


cdef inline Text plain(Text t, uint32_t bytes_max) noexcept nogil:
    """`t` when it is UTF-8 of bounded length without ASCII control characters, else nothing."""
    cdef unsigned marks
    if t.n > bytes_max:
        return no_text()
    marks = text_marks(t.p, t.n)
    if marks & (TEXT_CONTROL | TEXT_TAB) or (marks & TEXT_HIGH and utf8_prefix(t.p, t.n) != t.n):
        return no_text()
    return t


cdef inline Text printable(Text t, uint32_t bytes_max) noexcept nogil:
    """`t` when it is printable ASCII of bounded length, as a header or a grpc-message must be, else nothing."""
    if t.n > bytes_max or text_marks(t.p, t.n) & (TEXT_CONTROL | TEXT_TAB | TEXT_HIGH):
        return no_text()
    return t


cdef int outcome_of(const Decision *decision, Text id_) noexcept nogil:
    """The outcome to answer with; ERROR for a value that decide never gives and for an ALLOW without an id."""
    cdef int outcome = decision.outcome
    if outcome == OUTCOME_ALLOW:
        return OUTCOME_ALLOW if id_.n else OUTCOME_ERROR
    return outcome if outcome == OUTCOME_DENY or outcome == OUTCOME_STEP_UP else OUTCOME_ERROR


cdef void look(Answer *a, const Decision *decision, const Request *request, const ReplyRules *rules) noexcept nogil:
    a.decision, a.request, a.rules = decision, request, rules
    a.id = evaluation_id(decision)
    a.outcome = outcome_of(decision, a.id)
    a.reason = plain(decision.reason, CODE_BYTES_MAX)
    a.obligation = plain(decision.obligation, CODE_BYTES_MAX)


cdef inline bint is_cacheable(const Answer *a) noexcept nogil:
    """Only what policy alone decided holds for the next call."""
    return a.decision.cacheable and (a.outcome == OUTCOME_ALLOW or a.outcome == OUTCOME_DENY)


cdef inline Text public_reason(const Answer *a) noexcept nogil:
    """The reason that callers see: none of an ERROR, whose cause is ours."""
    if a.outcome == OUTCOME_ERROR:
        return text_of("unavailable")
    return a.reason if a.reason.n else text_of("denied")


cdef inline bint is_protocol(const Answer *a, const char *name) noexcept nogil:
    return a.request is not NULL and text_is(a.request.protocol, name)


cdef inline void put(Out *out, const char *literal) noexcept nogil:
    out_raw(out, literal, strlen(literal))


cdef inline void put_text(Out *out, Text t) noexcept nogil:
    out_raw(out, t.p, t.n)


cdef inline uint8_t *put_template(Out *out, const Template *template) noexcept nogil:
    """Where it stands now, for the caller to fill in; NULL when it does not fit."""
    cdef uint8_t *at = out.p + out.n
    if out.failed or out.cap - out.n < COPIED_BYTES:
        at = out_take(out, template.n)
        if at is not NULL:
            memcpy(at, template.p, template.n)
        return at
    # What is too much is written over, or lies behind the answer: a copy of constant length needs no call.
    memcpy(at, template.p, COPIED_BYTES)
    out.n += template.n
    return at


# ---------------------------------------------------------------- JSON bodies


cdef void put_json(Out *out, Text t) noexcept nogil:
    """A JSON string (RFC 8259 section 7) of text that `plain` has passed."""
    cdef uint32_t i, start = 0
    put(out, '"')
    for i in range(t.n):
        if t.p[i] == c'"' or t.p[i] == c"\\":
            out_raw(out, t.p + start, i - start)
            put(out, "\\")
            start = i
    out_raw(out, t.p + start, t.n - start)
    put(out, '"')


cdef void put_member(Out *out, const char *name, Text value) noexcept nogil:
    """`,"name":"value"`."""
    put(out, ',"')
    put(out, name)
    put(out, '":')
    put_json(out, value)


cdef inline uint32_t skip_digits(Text t, uint32_t i) noexcept nogil:
    while i < t.n and t.p[i] >= c"0" and t.p[i] <= c"9":
        i += 1
    return i


cdef bint is_json_number(Text t) noexcept nogil:
    """RFC 8259 section 6."""
    cdef uint32_t i = 1 if t.p[0] == c"-" else 0, start
    start = i
    i = skip_digits(t, i)
    if i == start or (t.p[start] == c"0" and i > start + 1):
        return False
    if i < t.n and t.p[i] == c".":
        start = i + 1
        i = skip_digits(t, start)
        if i == start:
            return False
    if i < t.n and (t.p[i] | 0x20) == c"e":
        start = i + 1
        if start < t.n and (t.p[start] == c"+" or t.p[start] == c"-"):
            start += 1
        i = skip_digits(t, start)
        if i == start:
            return False
    return i == t.n


cdef bint is_json_escape(Text t, uint32_t i) noexcept nogil:
    """Whether what follows the backslash at i is an escape of RFC 8259 section 7."""
    cdef uint32_t k
    if i + 1 >= t.n or t.p[i + 1] == 0 or memchr(b'"\\/bfnrtu', t.p[i + 1], 9) is NULL:
        return False
    if t.p[i + 1] != c"u":
        return True
    for k in range(i + 2, i + 6):
        if k >= t.n or t.p[k] == 0 or memchr(b"0123456789abcdefABCDEF", t.p[k], 22) is NULL:
            return False
    return True


cdef bint is_json_string(Text t) noexcept nogil:
    cdef uint32_t i = 1
    while i + 1 < t.n and t.p[i] != c'"':
        if t.p[i] != c"\\":
            i += 1
        elif is_json_escape(t, i):
            i += 2
        else:
            return False
    return t.n >= 2 and i + 1 == t.n and t.p[i] == c'"'


cdef bint is_json_scalar(Text t) noexcept nogil:
    """Whether the text is one JSON string or number: safe to stand where a value stands."""
    if t.n == 0 or plain(t, DENIAL_ID_BYTES_MAX).n == 0:
        return False
    return is_json_string(t) if t.p[0] == c'"' else is_json_number(t)


cdef inline bint is_mismatch(const Answer *a) noexcept nogil:
    return a.decision.outcome == OUTCOME_DENY and text_is(a.decision.reason, "mcp.header_mismatch")


cdef const char *mcp_message(const Answer *a) noexcept nogil:
    if is_mismatch(a):
        return "header and body disagree"
    if a.outcome == OUTCOME_DENY:
        return "the call is denied"
    if a.outcome == OUTCOME_STEP_UP:
        return "the call needs an approval"
    return "authorization is unavailable"


cdef const char *mcp_code(const Answer *a) noexcept nogil:
    """JSON-RPC error codes: MCP's own for a mismatch, implementation-defined for a denial, internal error otherwise."""
    if is_mismatch(a):
        return "-32020"
    return "-32603" if a.outcome == OUTCOME_ERROR else "-32001"


cdef bint starts(Text t, const char *head) noexcept nogil:
    cdef size_t n = strlen(head)
    return t.n >= n and memcmp(t.p, head, n) == 0


cdef const char *next_step(const Answer *a) noexcept nogil:
    """What the caller can do about the answer, as a word that a program reads; empty: nothing."""
    if not a.decision.standing.enforced:
        return ""
    if a.outcome == OUTCOME_ERROR:
        return "retry"
    if a.outcome == OUTCOME_STEP_UP:
        return "request_approval"
    if text_is(a.decision.reason, "task.unnamed"):
        return "name_task"
    if starts(a.decision.reason, "task."):
        return "open_task"
    if starts(a.decision.reason, "owner.") or starts(a.decision.reason, "revoked."):
        return "ask_owner"
    return ""


cdef void put_facts(Out *out, const Answer *a) noexcept nogil:
    """`"evaluation_id":..` and what else a caller may know."""
    put(out, '"evaluation_id":')
    put_json(out, a.id)
    put_member(out, "reason", public_reason(a))
    if a.outcome == OUTCOME_STEP_UP and a.obligation.n:
        put_member(out, "obligation", a.obligation)
    if next_step(a)[0]:
        put_member(out, "next", text_of(next_step(a)))
    if text_is(text_of(next_step(a)), "retry"):
        put(out, ',"retry_after_ms":')
        put(out, RETRY_AFTER_MS)


cdef void put_mcp_body(Out *out, const Answer *a) noexcept nogil:
    put(out, '{"jsonrpc":"2.0","id":')
    if is_json_scalar(a.request.denial_id):
        put_text(out, a.request.denial_id)
    else:
        put(out, "null")
    put(out, ',"error":{"code":')
    put(out, mcp_code(a))
    put(out, ',"message":"')
    put(out, mcp_message(a))
    put(out, '","data":{')
    put_facts(out, a)
    put(out, "}}}")


cdef const char *error_word(const Answer *a) noexcept nogil:
    if a.outcome == OUTCOME_ERROR:
        return "unavailable"
    return "denied" if a.decision.outcome == OUTCOME_DENY else "step_up"


cdef void put_http_body(Out *out, const Answer *a) noexcept nogil:
    put(out, '{"error":"')
    put(out, error_word(a))
    put(out, '",')
    put_facts(out, a)
    put(out, "}")


cdef void put_grpc_body(Out *out, const Answer *a) noexcept nogil:
    """Becomes the grpc-message: short ASCII (envoy#11079)."""
    put(out, error_word(a))
    put(out, ": ")
    put_text(out, printable(public_reason(a), CODE_BYTES_MAX))
    put(out, " (evaluation ")
    put_text(out, a.id)
    put(out, ")")


# ---------------------------------------------------------------- HTTP part of a CheckResponse


cdef void put_header(Out *out, uint32_t field, Text name, Text value) noexcept nogil:
    """A HeaderValueOption that overwrites: older proxies read `append`, newer ones `append_action`."""
    cdef uint32_t header = field_bytes(name.n) + field_bytes(value.n)
    cdef uint32_t option = field_bytes(header) + <uint32_t> OVERWRITES.n
    cdef uint8_t *to = out_take(out, field_bytes(option))
    if to is NULL:
        return
    to = put_head(to, field, option)
    to = put_head(to, 1, header)
    to = put_bytes(to, 1, name.p, name.n)
    to = put_bytes(to, 2, value.p, value.n)
    remit_copy(to, OVERWRITES.p, OVERWRITES.n)


cdef int denied_status(const Answer *a) noexcept nogil:
    if a.outcome == OUTCOME_ERROR:
        return HTTP_UNAVAILABLE
    if is_mismatch(a):
        return HTTP_BAD_REQUEST
    # Only for clients that drop other bodies; some proxies take a denial with status 200 for an ALLOW.
    if is_protocol(a, "mcp") and a.rules is not NULL and a.rules.mcp_status == HTTP_OK:
        return HTTP_OK
    return HTTP_FORBIDDEN


cdef void put_denied(Out *out, uint32_t field, const Answer *a) noexcept nogil:
    """A DeniedHttpResponse: status, content type, body."""
    cdef size_t response = out_open(out, field), inner
    inner = out_open(out, 1)
    out_uint(out, 1, denied_status(a))
    out_close(out, inner)
    if not is_protocol(a, "grpc"):
        put_header(out, 2, text_of("content-type"), text_of("application/json"))
    inner = out_open(out, 3)
    if is_protocol(a, "mcp"):
        put_mcp_body(out, a)
    elif is_protocol(a, "grpc"):
        put_grpc_body(out, a)
    else:
        put_http_body(out, a)
    out_close(out, inner)
    out_close(out, response)


cdef Text agent_of(const Request *request) noexcept nogil:
    cdef Text t = no_text()
    if request is not NULL and request.principal is not NULL:
        t.p = uid_id(request.principal)
        t.n = request.principal.id_len
    return printable(t, AGENT_BYTES_MAX)


cdef inline void put_removed(Out *out, int first, int behind) noexcept nogil:
    """headers_to_remove for some of OWN_HEADERS."""
    cdef size_t start = REMOVED_END[first - 1] if first else 0
    out_raw(out, REMOVED.p + start, REMOVED_END[behind - 1] - start)


cdef inline void put_identified(Out *out, const Answer *a) noexcept nogil:
    cdef uint8_t *at = put_template(out, &IDENTIFIED)
    if at is not NULL:
        memcpy(at + IDENTIFIED_ID, a.id.p, EVALUATION_ID_BYTES)


cdef void put_allowed(Out *out, const Answer *a) noexcept nogil:
    """An OkHttpResponse. A name that is set is never also removed: removal runs after setting."""
    cdef size_t response = out_open_long(out, 3)
    cdef Text agent = agent_of(a.request)
    if a.rules is NULL or not a.rules.identity_header:
        put_removed(out, 0, OWN_HEADERS_COUNT)
    else:
        put_identified(out, a)
        if agent.n:
            put_header(out, 2, text_of("x-remit-agent"), agent)
        else:
            put_removed(out, 0, 1)
        put_removed(out, 2, OWN_HEADERS_COUNT)
    out_close_long(out, response)


# ---------------------------------------------------------------- dynamic metadata


cdef inline uint8_t *take_entry(Out *out, Text key, uint32_t value_bytes) noexcept nogil:
    """Begin an entry of a Struct; where its Value of so many bytes goes, or NULL."""
    cdef uint32_t entry = field_bytes(key.n) + field_bytes(value_bytes)
    cdef uint8_t *to = out_take(out, field_bytes(entry))
    if to is NULL:
        return NULL
    to = put_head(to, 1, entry)
    to = put_bytes(to, 1, key.p, key.n)
    return put_head(to, 2, value_bytes)


cdef inline void put_string_entry(Out *out, Text key, Text text) noexcept nogil:
    cdef uint8_t *to = take_entry(out, key, field_bytes(text.n))
    if to is not NULL:
        put_bytes(to, 3, text.p, text.n)


cdef inline void set_number(uint8_t *at, double number) noexcept nogil:
    memcpy(at, &number, sizeof(double))


cdef void put_number_entry(Out *out, Text key, double number) noexcept nogil:
    cdef uint8_t *to = take_entry(out, key, 1 + sizeof(double))
    if to is not NULL:
        set_number(to + put_varint(to, 2 << 3 | 1), number)


cdef void put_bool_entry(Out *out, Text key, bint flag) noexcept nogil:
    cdef uint8_t *to = take_entry(out, key, 2)
    if to is not NULL:
        put_varint(to + put_varint(to, 4 << 3), flag)


cdef struct Ids:             # of policies, as an answer lists them
    uint32_t n
    Text ids[LISTED_MAX]


cdef void listed_fit(Ids *fit, const Listed *listed, uint32_t total) noexcept nogil:
    """The first ids that fit an answer, without those that are not UTF-8; the total says what is left out."""
    cdef uint32_t i, used = 0
    fit.n = 0
    for i in range(total if total < LISTED_MAX else LISTED_MAX):
        if listed[i].id.n > <uint32_t> IDS_BYTES_MAX - used:
            return
        used += listed[i].id.n
        if utf8_valid(listed[i].id.p, listed[i].id.n):
            fit.ids[fit.n] = listed[i].id
            fit.n += 1


cdef void put_list_entry(Out *out, Text key, const Listed *listed, uint32_t total) noexcept nogil:
    cdef Ids fit
    cdef uint8_t *to
    cdef uint32_t i, list_bytes = 0
    listed_fit(&fit, listed, total)
    for i in range(fit.n):
        list_bytes += field_bytes(field_bytes(fit.ids[i].n))
    to = take_entry(out, key, field_bytes(list_bytes))
    if to is NULL:
        return
    to = put_head(to, 6, list_bytes)
    for i in range(fit.n):
        to = put_head(to, 1, field_bytes(fit.ids[i].n))
        to = put_bytes(to, 3, fit.ids[i].p, fit.ids[i].n)


cdef const char *outcome_word(int outcome) noexcept nogil:
    if outcome == OUTCOME_ALLOW:
        return "ALLOW"
    if outcome == OUTCOME_DENY:
        return "DENY"
    return "STEP_UP" if outcome == OUTCOME_STEP_UP else "ERROR"


cdef void put_said(Out *out, const Answer *a) noexcept nogil:
    """Which decision this is, and its outcome."""
    cdef uint8_t *at
    if a.id.n == 0:
        put_string_entry(out, text_of("decision_id"), a.id)
        put_string_entry(out, text_of("outcome"), text_of(outcome_word(a.outcome)))
        return
    at = put_template(out, &SAID[a.outcome])
    if at is not NULL:
        memcpy(at + SAID_ID, a.id.p, EVALUATION_ID_BYTES)


cdef void put_counted(Out *out, const Answer *a) noexcept nogil:
    cdef uint8_t *at = put_template(out, &COUNTED)
    if at is NULL:
        return
    set_number(at + COUNTED_TOTAL, a.decision.policies_total)
    set_number(at + COUNTED_GENERATION, <double> a.decision.generation)
    set_number(at + COUNTED_EPOCH, <double> a.decision.epoch)
    at[COUNTED_CACHEABLE] = is_cacheable(a)


cdef void put_metadata(Out *out, const Answer *a) noexcept nogil:
    """What the proxy's access log gets, on every answer: without any, Envoy logs no duration either."""
    cdef size_t start = out_open_long(out, 4)
    put_said(out, a)
    put_string_entry(out, text_of("reason"), a.reason)
    put_list_entry(out, text_of("policy_ids"), a.decision.policies, a.decision.policies_total)
    put_counted(out, a)
    if a.obligation.n:
        put_string_entry(out, text_of("obligation"), a.obligation)
    out_close_long(out, start)


# ---------------------------------------------------------------- whole answers


cdef void put_status(Out *out, int code) noexcept nogil:
    """google.rpc.Status; the code is written even when it is 0."""
    cdef size_t start = out_open(out, 1)
    out_uint(out, 1, code)
    out_close(out, start)


cdef int code_of(const Answer *a) noexcept nogil:
    if a.outcome == OUTCOME_ALLOW:
        return 0
    return CODE_UNAVAILABLE if a.outcome == OUTCOME_ERROR else CODE_PERMISSION_DENIED


cdef void put_behind_status(Out *out, const Answer *a) noexcept nogil:
    """All of a CheckResponse but its status."""
    if a.request is NULL or a.request.door != DOOR_EXT_AUTHZ_NETWORK:
        if a.outcome == OUTCOME_ALLOW:
            put_allowed(out, a)
        else:
            # error_response: proxies that do not know field 5 see a denial.
            put_denied(out, 5 if a.outcome == OUTCOME_ERROR else 2, a)
    put_metadata(out, a)


cdef void reply_ext_authz(
    Out *out, const Decision *decision, const Request *request, const ReplyRules *rules
) noexcept nogil:
    cdef size_t start = out.n
    cdef Out answer
    cdef Answer said
    out_few(out, DENY.p, STATUS_BYTES)
    if out.failed:
        return
    answer = out[0]
    look(&said, decision, request, rules)
    put_behind_status(&answer, &said)
    if not answer.failed:
        # INVARIANT (deny first): the status last.
        out.p[start + STATUS_BYTES - 1] = <uint8_t> code_of(&said)
        out.n = answer.n
    elif out.cap - start >= DENY.n:
        out_raw(out, DENY.p + STATUS_BYTES, DENY.n - STATUS_BYTES)


cdef void put_ids(Out *out, uint32_t field, const Listed *listed, uint32_t total) noexcept nogil:
    cdef Ids fit
    cdef uint32_t i
    listed_fit(&fit, listed, total)
    for i in range(fit.n):
        out_bytes(out, field, fit.ids[i].p, fit.ids[i].n)


cdef void put_check(Out *out, const Answer *a) noexcept nogil:
    cdef const Decision *decision = a.decision
    if a.request is not NULL:
        out_text(out, 1, plain(a.request.request_id, REQUEST_ID_BYTES_MAX))
    out_text(out, 2, a.id)
    out_uint(out, 3, a.outcome)
    out_text(out, 4, a.reason)
    put_ids(out, 5, decision.policies, decision.policies_total)
    out_uint(out, 6, decision.policies_total)
    out_text(out, 7, a.obligation)
    out_uint(out, 8, decision.generation)
    out_uint(out, 9, decision.epoch)
    out_uint(out, 10, is_cacheable(a))
    put_ids(out, 11, decision.errors, decision.errors_total)
    out_uint(out, 12, decision.errors_total)
    out_text(out, 13, text_of(next_step(a)))


cdef bint prefill(Out *out, const uint8_t *deny, size_t n, Out *behind) noexcept nogil:
    """Write the DENY, and open the memory behind it. False when not even the DENY fits."""
    out_raw(out, deny, n)
    behind.p = out.p + out.n
    behind.n = 0
    behind.cap = out.cap - out.n
    behind.failed = 0
    return not out.failed


cdef void take_place(Out *out, size_t start, const Out *answer) noexcept nogil:
    """Let the finished answer take the place of the DENY at `start`; an unfinished or empty one leaves it there."""
    if answer.failed or answer.n == 0:
        return
    memmove(out.p + start, answer.p, answer.n)
    out.n = start + answer.n


cdef void reply_check(Out *out, const Decision *decision, const Request *request) noexcept nogil:
    cdef size_t start = out.n
    cdef Out answer
    cdef Answer said
    if not prefill(out, DENY_CHECK, sizeof(DENY_CHECK), &answer):
        return
    look(&said, decision, request, NULL)
    put_check(&answer, &said)
    take_place(out, start, &answer)


# ---------------------------------------------------------------- templates


cdef Out fill(Template *template) noexcept nogil:
    cdef Out out
    out.p, out.n, out.cap, out.failed = template.p, 0, TEMPLATE_BYTES_MAX, 0
    return out


cdef size_t filled(const Out *out) noexcept nogil:
    """Bytes of a template; more than there are when it does not fit."""
    return TEMPLATE_BYTES_MAX + 1 if out.failed else out.n


cdef Text some_id() noexcept nogil:
    """What stands where the evaluation id goes."""
    return text_of("00000000000000000000000000000000")


cdef size_t build_overwrites() noexcept nogil:
    cdef Out out = fill(&OVERWRITES)
    cdef size_t inner = out_open(&out, 2)
    out_uint(&out, 1, 0)
    out_close(&out, inner)
    out_uint(&out, 3, OVERWRITE_IF_EXISTS_OR_ADD)
    return filled(&out)


cdef size_t build_identified() noexcept nogil:
    global IDENTIFIED_ID
    cdef Out out = fill(&IDENTIFIED)
    put_header(&out, 2, text_of("x-remit-evaluation-id"), some_id())
    IDENTIFIED_ID = out.n - OVERWRITES.n - EVALUATION_ID_BYTES
    return filled(&out)


cdef size_t build_removed() noexcept nogil:
    cdef Out out = fill(&REMOVED)
    cdef int i
    for i in range(OWN_HEADERS_COUNT):
        out_bytes(&out, 5, OWN_HEADERS[i], strlen(OWN_HEADERS[i]))
        REMOVED_END[i] = out.n
    return filled(&out)


cdef size_t build_said(int outcome) noexcept nogil:
    global SAID_ID
    cdef Out out = fill(&SAID[outcome])
    put_string_entry(&out, text_of("decision_id"), some_id())
    SAID_ID = out.n - EVALUATION_ID_BYTES
    put_string_entry(&out, text_of("outcome"), text_of(outcome_word(outcome)))
    return filled(&out)


cdef size_t build_counted() noexcept nogil:
    global COUNTED_TOTAL, COUNTED_GENERATION, COUNTED_EPOCH, COUNTED_CACHEABLE
    cdef Out out = fill(&COUNTED)
    put_number_entry(&out, text_of("policies_total"), 0)
    COUNTED_TOTAL = out.n - sizeof(double)
    put_number_entry(&out, text_of("generation"), 0)
    COUNTED_GENERATION = out.n - sizeof(double)
    put_number_entry(&out, text_of("epoch"), 0)
    COUNTED_EPOCH = out.n - sizeof(double)
    put_bool_entry(&out, text_of("cacheable"), False)
    COUNTED_CACHEABLE = out.n - 1
    return filled(&out)


cdef size_t build_deny() noexcept nogil:
    """The constant DENY: code 7, HTTP 403, a body that says no more than that."""
    cdef Out out = fill(&DENY)
    cdef size_t response, inner
    put_status(&out, CODE_PERMISSION_DENIED)
    response = out_open(&out, 2)
    inner = out_open(&out, 1)
    out_uint(&out, 1, HTTP_FORBIDDEN)
    out_close(&out, inner)
    put_header(&out, 2, text_of("content-type"), text_of("application/json"))
    inner = out_open(&out, 3)
    put(&out, '{"error":"denied"}')
    out_close(&out, inner)
    out_close(&out, response)
    return filled(&out)


cdef bint build() noexcept nogil:
    """Whether each template is whole, and none is longer than what is copied of it."""
    cdef int outcome
    OVERWRITES.n = build_overwrites()
    IDENTIFIED.n = build_identified()
    REMOVED.n = build_removed()
    for outcome in range(OUTCOME_ALLOW, OUTCOME_ERROR + 1):
        SAID[outcome].n = build_said(outcome)
    COUNTED.n = build_counted()
    DENY.n = build_deny()
    if max(OVERWRITES.n, REMOVED.n, DENY.n) > TEMPLATE_BYTES_MAX:
        return False
    return max(IDENTIFIED.n, COUNTED.n, SAID[<int> OUTCOME_STEP_UP].n) <= COPIED_BYTES


if not build():
    raise AssertionError("a template of an answer is longer than its room, or than what is copied of it")


# ---------------------------------------------------------------- Python face


cdef Text take_text(list keep, object text):
    """Borrow the UTF-8 of a str, or bytes as they are; `keep` holds the memory."""
    cdef bytes data = text if isinstance(text, bytes) else text.encode()
    cdef Text t
    keep.append(data)
    t.p = data
    t.n = len(data)
    return t


cdef uint32_t take_listed(list keep, list ids, Listed *listed):
    for i, name in enumerate(ids[:LISTED_MAX]):
        listed[i].id = take_text(keep, name)
    return len(ids)


cdef int take_decision(list keep, dict given, Decision *decision) except -1:
    cdef bytes found = given.get("evaluation_id", "0" * EVALUATION_ID_BYTES).encode()[:EVALUATION_ID_BYTES]
    memset(decision, 0, sizeof(Decision))
    memcpy(decision.evaluation_id, <const char *> found, len(found))
    decision.outcome = given.get("outcome", 0)
    decision.cacheable = given.get("cacheable", False)
    decision.reason = take_text(keep, given.get("reason", ""))
    decision.obligation = take_text(keep, given.get("obligation", ""))
    decision.policies_total = take_listed(keep, given.get("policies", []), decision.policies)
    decision.standing.enforced = bool(given.get("enforced"))
    decision.errors_total = take_listed(keep, given.get("errors", []), decision.errors)
    decision.generation = given.get("generation", 0)
    decision.epoch = given.get("epoch", 0)
    return 0


cdef int take_request(list keep, dict given, Request *request, Arena *arena) except -1:
    cdef Text principal = take_text(keep, given.get("principal", ""))
    memset(request, 0, sizeof(Request))
    request.door = given.get("door", 0)
    request.protocol = take_text(keep, given.get("protocol", "http"))
    request.denial_id = take_text(keep, given.get("denial_id", ""))
    request.request_id = take_text(keep, given.get("request_id", ""))
    if principal.n:
        request.principal = uid_make(arena, "Agent", 5, principal.p, principal.n)
        if request.principal is NULL:
            raise MemoryError
    return 0


cdef bytes encode(bint envoy, dict decision, dict request, size_t cap, const ReplyRules *rules):
    cdef Decision d
    cdef Request r
    cdef Arena arena
    cdef bytearray room = bytearray(cap), memory = bytearray(1 << 16)
    cdef Out out
    cdef list keep = []
    cdef const Request *asked = NULL
    arena.base, arena.used, arena.cap, arena.failed = <uint8_t *> <char *> memory, 0, len(memory), 0
    out.p, out.n, out.cap, out.failed = <uint8_t *> <char *> room, 0, cap, 0
    take_decision(keep, decision, &d)
    if request is not None:
        take_request(keep, request, &r, &arena)
        asked = &r
    with nogil:
        if envoy:
            reply_ext_authz(&out, &d, asked, rules)
        else:
            reply_check(&out, &d, asked)
    return None if out.failed else bytes(room[:out.n])


def ext_authz(dict decision, request, *, size_t cap=4096, int mcp_status=403, bint identity_header=True):
    cdef ReplyRules rules
    memset(&rules, 0, sizeof(rules))
    rules.mcp_status = mcp_status
    rules.identity_header = identity_header
    return encode(True, decision, request, cap, &rules)


def check(dict decision, request, *, size_t cap=4096):
    return encode(False, decision, request, cap, NULL)
