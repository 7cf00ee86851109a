"""Decisions for Python: what tests, benches, `policy test` and Explain ask. All but the preparing is `decide`."""
from collections import namedtuple

from fastpath.authority cimport Live
from fastpath.bounds cimport View, view_cell
from fastpath.candidates cimport scope_matches
from fastpath.columns cimport COLUMN_COUNT, ColumnGroup, column_group, columns_absent
from fastpath.columns import COLUMNS as _COLUMNS
from fastpath.decide cimport (
    LISTED_MAX,
    PEER_AGENT,
    All,
    Authority,
    Decision,
    Peer,
    decide,
    request_context,
)
from fastpath.decide import Outcome
from fastpath.image cimport EFFECT_FORBID, IMAGE_COLUMNS, Policy
from fastpath.program cimport EVAL_OK, EvalContext, program_run
from fastpath.request cimport EXTRAS_MAX, Request
from fastpath.rows cimport Table, policy_order, span_text, table_policy
from fastpath.table cimport Generation
from fastpath.value cimport (
    KIND_BOOL,
    KIND_ENTITY,
    KIND_LONG,
    KIND_RECORD,
    KIND_SET,
    KIND_STRING,
    UID_UNKNOWN,
    Arena,
    Cell,
    Field,
    Uid,
    arena_take,
    cell_at,
    cell_copy,
    cell_point,
    text_compare,
    uid_make,
)
from fastpath.wire cimport Text
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastpath.errors import ProtocolError

cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(object sequence)

Evaluation = namedtuple(
    "Evaluation", "outcome reason reasons errors shadows obligation input_missing cacheable evaluation_id"
)
CAUSES = ("", "type", "attribute", "tag", "entity", "overflow", "extension", "arity", "unsent", "limit")
OUTCOMES = tuple(outcome.name.removeprefix("OUTCOME_") for outcome in Outcome)
_KINDS = {"entity": KIND_ENTITY, "bool": KIND_BOOL, "long": KIND_LONG, "string": KIND_STRING, "set": KIND_SET}
_COLUMN_KINDS = tuple(_KINDS[kind] for _, kind, _ in _COLUMNS)
ARENA_BYTES = 1 << 20


cdef str _str(Text text):
    return text.p[:text.n].decode() if text.n else ""


cdef str _policy_id(const Table *t, uint32_t index):
    return _str(span_text(t, &table_policy(t, index).id))


cdef class Prepared:
    """One canonical request, ready to be evaluated any number of times, by one thread at a time."""
    cdef Generation generation
    cdef Request request
    cdef Cell live[COLUMN_COUNT]     # columns given by the caller in place of an authority
    cdef bint lives                  # whether there are any
    cdef Arena arena
    cdef size_t mark                 # arena.used when the request is complete
    cdef All all
    cdef bint busy
    cdef list kept                   # bytes that the request borrows

    def __cinit__(self, Generation generation, size_t arena_bytes):
        generation._totals()     # refuses a closed one
        self.generation = generation
        self.kept = []
        self.arena.cap = arena_bytes
        self.arena.base = <uint8_t *> malloc(arena_bytes)
        if self.arena.base is NULL:
            raise MemoryError
        memset(&self.request, 0, sizeof(Request))
        columns_absent(self.request.columns)
        columns_absent(self.live)
        self.request.extras.kind = KIND_RECORD

    def __dealloc__(self):
        free(self.arena.base)
        free(self.all.satisfied)
        free(self.all.erring)
        free(self.all.causes)

    cdef int _list_all(self) except -1:
        """Room for every policy; taken when a caller first wants them, since a large table needs much of it."""
        cdef uint32_t policies = self.generation._totals().policy_rows + 1
        if self.all.cap:
            return 0
        self.all.satisfied = <uint32_t *> malloc(policies * sizeof(uint32_t))
        self.all.erring = <uint32_t *> malloc(policies * sizeof(uint32_t))
        self.all.causes = <uint8_t *> malloc(policies)
        if self.all.satisfied is NULL or self.all.erring is NULL or self.all.causes is NULL:
            raise MemoryError
        self.all.cap = policies
        return 0

    cdef Uid *_uid(self, object uid) except? NULL:
        cdef bytes type_ = uid[0].encode()
        cdef bytes id_ = uid[1].encode()
        cdef Uid *made = uid_make(&self.arena, type_, <uint32_t> len(type_), id_, <uint32_t> len(id_))
        if made is NULL:
            raise ProtocolError("request: does not fit into the arena")
        return made

    cdef Text _text(self, str text):
        cdef bytes data = text.encode()
        cdef Text made
        self.kept.append(data)
        made.p = data
        made.n = <uint32_t> len(data)
        return made

    cdef int _unsent(self, object names) except -1:
        if len(names) > EXTRAS_MAX:
            raise ProtocolError(f"request: more than {EXTRAS_MAX} unsent inputs")
        for name in names:
            self.request.unsent[self.request.unsent_count] = self._text(name)
            self.request.unsent_count += 1
        return 0

    cdef int _context(self, bytes blob) except -1:
        """Check the cells of `blob` and take them: columns where the image has them, extras else."""
        cdef View view
        cdef const Cell *record = <const Cell *> <const char *> blob
        self.kept.append(blob)
        memset(&view, 0, sizeof(View))
        view.base = <const uint8_t *> record
        view.size = len(blob)
        view.budget = len(blob)
        if view.size < sizeof(Cell) or record.kind != KIND_RECORD:
            raise ProtocolError("context: is not a record")
        if not view_cell(&view, record, 0):
            raise ProtocolError(f"context: {view.cause.decode()}")
        if self.generation.table.header.flags & IMAGE_COLUMNS:
            return self._split(record)
        cell_copy(&self.request.extras, record)
        return 0

    cdef int _split(self, const Cell *record) except -1:
        cdef const Field *fields = <const Field *> cell_at(record)
        cdef Field *extras = <Field *> arena_take(&self.arena, (<size_t> record.n + 1) * sizeof(Field))
        cdef const ColumnGroup *group
        cdef uint32_t i
        if extras is NULL:
            raise ProtocolError("context: does not fit into the arena")
        for i in range(record.n):
            group = column_group(<const char *> cell_at(&fields[i].key), fields[i].key.n)
            if group is NULL:
                cell_copy(&extras[self.request.extras.n].key, &fields[i].key)
                cell_copy(&extras[self.request.extras.n].value, &fields[i].value)
                self.request.extras.n += 1
            elif group.whole:
                self._column(group.members[0].column, &fields[i].value)
            else:
                self._group(group, &fields[i].value)
        cell_point(&self.request.extras, extras)
        return 0

    cdef int _group(self, const ColumnGroup *group, const Cell *record) except -1:
        cdef const Field *fields = <const Field *> cell_at(record)
        cdef uint32_t i, member
        if record.kind != KIND_RECORD:
            raise ProtocolError(f"context.{_str(group.name)}: is not a record")
        for i in range(record.n):
            for member in range(group.count):
                if text_compare(
                    group.members[member].key.p, group.members[member].key.n,
                    <const char *> cell_at(&fields[i].key), fields[i].key.n,
                ) == 0:
                    self._column(group.members[member].column, &fields[i].value)
                    break
            else:
                key = (<const char *> cell_at(&fields[i].key))[:fields[i].key.n].decode(errors="replace")
                raise ProtocolError(f"context.{_str(group.name)}: has no column `{key}`")
        return 0

    cdef int _column(self, uint32_t column, const Cell *value) except -1:
        if value.kind != <int> _COLUMN_KINDS[column]:
            raise ProtocolError(f"context.{_COLUMNS[column][0]}: is not a {_COLUMNS[column][1]}")
        cell_copy(self.request.columns + column, value)
        cell_copy(self.live + column, value)
        self.lives = True
        return 0


cdef void unresolve(Request *request) noexcept nogil:
    """Forget what the last decision looked up: one that is asked again is to cost what the first one did."""
    request.principal.index = request.principal.type_index = UID_UNKNOWN
    request.action.index = request.action.type_index = UID_UNKNOWN
    request.resource.index = request.resource.type_index = UID_UNKNOWN
    if request.resource_parent is not NULL:
        request.resource_parent.index = request.resource_parent.type_index = UID_UNKNOWN


cdef uint8_t decide_prepared(
    const Peer *peer, void *prepared, const Table *table, Authority *authority, Decision *out
) noexcept nogil:
    # INVARIANT (kept alive): the caller holds the object; only its C fields are read here.
    cdef Request *request = &(<Prepared> prepared).request
    cdef Arena *arena = &(<Prepared> prepared).arena
    arena.used = (<Prepared> prepared).mark
    arena.failed = 0
    authority.columns = (<Prepared> prepared).live if (<Prepared> prepared).lives else NULL
    unresolve(request)
    decide(peer, request, table, authority, arena, out, NULL)
    return out.outcome


cdef class Evaluator:
    """Evaluates canonical requests against one generation: what tests, benches, `policy test` and Explain call.

    The peer is taken as verified and the sidecar as ready unless said otherwise, and the live state comes with the
    context; everything else is `decide` itself. Usable by several threads, each with requests of its own.
    """
    cdef readonly Generation generation
    cdef Peer peer
    cdef Authority authority
    cdef int strict
    cdef Live live                   # keeps what `authority` points to
    cdef bytes _refusal              # text that `peer` borrows
    cdef bytes _not_ready            # text that `authority` borrows

    def __init__(self, Generation generation, *, strict=None):
        """`strict` overrides how the generation treats an error in a forbid whose scope matches."""
        self.generation = generation
        self.peer.kind = PEER_AGENT
        self.peer.not_after_s = INT64_MAX
        self.strict = generation.table.strict if strict is None else bool(strict)

    def put_peer(self, *, kind=PEER_AGENT, not_after_s=INT64_MAX, bundle_generation=0, str refusal=""):
        """Ask as this peer from now on; not while another thread evaluates."""
        self._refusal = refusal.encode()
        self.peer.kind = kind
        self.peer.not_after_s = not_after_s
        self.peer.bundle_generation = bundle_generation
        self.peer.refusal.p = self._refusal
        self.peer.refusal.n = <uint32_t> len(self._refusal)

    def put_authority(self, Live live):
        """Enforce live authority from now on, None for none; not while another thread evaluates."""
        self.live = live
        self.authority.live = live.state if live is not None else NULL

    def put_state(self, *, epoch=0, bundle_generation=0, str not_ready="", now_ns=0, now_unix_ns=0, boot=0):
        """Decide in this state from now on, 0 for a clock of its own; not while another thread evaluates."""
        self._not_ready = not_ready.encode()
        self.authority.epoch = epoch
        self.authority.bundle_generation = bundle_generation
        self.authority.now_ns = now_ns
        self.authority.now_unix_ns = now_unix_ns
        self.authority.boot = boot
        self.authority.not_ready.p = self._not_ready
        self.authority.not_ready.n = <uint32_t> len(self._not_ready)

    def prepare(
        self, principal, action, resource, bytes context_blob=b"", *, resource_parent=None, unsent=(), str refusal="",
        deadline_ns=0, arena_bytes=ARENA_BYTES,
    ):
        """A Prepared request. Uids are (type, id); `context_blob` is a record cell at offset 0 with its data behind it.

        With an image compiled for live-state columns, members of the context that are groups of columns fill the
        columns; columns not given have their absent values. `unsent` names inputs that the caller did not send,
        `refusal` is why a door found the request malformed, `deadline_ns` is monotonic, 0 for none. Raises
        ProtocolError when the context is no such value, RuleTableError when the generation is closed.
        """
        cdef Prepared made = Prepared(self.generation, arena_bytes)
        made.request.principal = made._uid(principal)
        made.request.action = made._uid(action)
        made.request.resource = made._uid(resource)
        if resource_parent is not None:
            made.request.resource_parent = made._uid(resource_parent)
        made._unsent(unsent)
        made.request.refusal = made._text(refusal)
        made.request.deadline_ns = deadline_ns
        if context_blob:
            made._context(context_blob)
        made.mark = made.arena.used
        return made

    def evaluate_prepared(self, Prepared prepared):
        """The Evaluation of a request that `prepare` of this generation made."""
        cdef Decision decision
        cdef Authority authority
        cdef Table table
        if prepared.generation is not self.generation:
            raise ValueError("the request was prepared for another generation")
        if prepared.busy:
            raise RuntimeError("the request is being evaluated by another thread")
        prepared._list_all()
        table = self.generation.enter()[0]
        table.strict = self.strict
        authority = self.authority
        self.authority.sequence += 1
        authority.columns = prepared.live if prepared.lives else NULL
        prepared.busy = True
        prepared.arena.used = prepared.mark
        prepared.arena.failed = 0
        unresolve(&prepared.request)
        with nogil:
            decide(&self.peer, &prepared.request, &table, &authority, &prepared.arena, &decision, &prepared.all)
        try:
            return _evaluation(&table, &decision, &prepared.all)
        finally:
            prepared.busy = False
            self.generation.leave()

    def outcomes(self, list prepared):
        """The Outcome of each request that `prepare` of this generation made, one byte each.

        The decisions are made as a listener makes them, one after the other without Python between them.
        """
        cdef Decision decision
        cdef Authority authority
        cdef Table table
        cdef Prepared one
        cdef Py_ssize_t i
        cdef Py_ssize_t n = len(prepared)
        cdef bytearray found = bytearray(n)
        cdef uint8_t *out = found
        cdef PyObject **items
        for item in prepared:
            one = item
            if one.generation is not self.generation:
                raise ValueError("the request was prepared for another generation")
            if one.busy:
                raise RuntimeError("the request is being evaluated by another thread")
        # A list of our own: nobody can take a request out of it while the GIL is released.
        cdef list kept = list(prepared)
        items = PySequence_Fast_ITEMS(kept)
        table = self.generation.enter()[0]
        table.strict = self.strict
        authority = self.authority
        self.authority.sequence += n
        for one in kept:
            one.busy = True
        with nogil:
            for i in range(n):
                out[i] = decide_prepared(&self.peer, <void *> items[i], &table, &authority, &decision)
        for one in kept:
            one.busy = False
        self.generation.leave()
        return bytes(found)

    def evaluate(
        self, principal, action, resource, bytes context_blob=b"", *, resource_parent=None, unsent=(), str refusal="",
        deadline_ns=0, arena_bytes=ARENA_BYTES,
    ):
        """prepare() and evaluate_prepared() in one."""
        return self.evaluate_prepared(
            self.prepare(
                principal, action, resource, context_blob, resource_parent=resource_parent, unsent=unsent,
                refusal=refusal, deadline_ns=deadline_ns, arena_bytes=arena_bytes,
            )
        )

    def trace(
        self, principal, action, resource, bytes context_blob=b"", *, resource_parent=None, unsent=(), every=False
    ):
        """What each policy says: (id, "permit" or "forbid", scope matched, satisfied or None when it erred, cause).

        Policies whose scope does not match are left out unless `every`; their conditions are not evaluated.
        """
        cdef Prepared prepared = self.prepare(
            principal, action, resource, context_blob, resource_parent=resource_parent, unsent=unsent
        )
        cdef const Table *table = self.generation.enter()
        cdef EvalContext context
        cdef const Policy *policy
        cdef uint32_t i
        cdef bint satisfied
        cdef bint matched
        cdef int error
        found = []
        try:
            request_context(table, &prepared.request, &context)
            for i in self.generation.in_order():
                policy = table_policy(table, i)
                matched = scope_matches(table, &context, policy)
                if not matched and not every:
                    continue
                satisfied = False
                error = program_run(table, policy, &context, &prepared.arena, &satisfied) if matched else EVAL_OK
                found.append((
                    _policy_id(table, i),
                    "forbid" if policy.effect == EFFECT_FORBID else "permit",
                    bool(matched),
                    None if error else bool(satisfied),
                    CAUSES[error],
                ))
        finally:
            self.generation.leave()
        return found


cdef object _evaluation(const Table *t, const Decision *decision, const All *all):
    cdef uint32_t i
    reasons = sorted([(policy_order(t, all.satisfied[i]), all.satisfied[i]) for i in range(all.satisfied_count)])
    errors = sorted([
        (policy_order(t, all.erring[i]), all.erring[i], all.causes[i]) for i in range(all.erring_count)
    ])
    shadows = [
        (_str(decision.shadows[i].id), CAUSES[decision.shadows[i].error])
        for i in range(min(decision.shadows_total, <uint32_t> LISTED_MAX))
    ]
    return Evaluation(
        OUTCOMES[decision.outcome],
        _str(decision.reason),
        [_policy_id(t, index) for _, index in reasons],
        [(_policy_id(t, index), CAUSES[cause]) for _, index, cause in errors],
        shadows,
        _str(decision.obligation),
        _str(decision.input_missing),
        bool(decision.cacheable),
        decision.evaluation_id[:32].decode(),
    )
