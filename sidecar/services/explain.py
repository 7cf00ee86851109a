"""Explain on the control socket: how a decision on an agent's question comes about (proto/remit/authz/v1/authz.proto).

The answer is the data plane's own, recorded as a dry run; the trace comes from the policy texts that the generation
in force was built from, which were parsed and bounded when it was published.
"""

import threading
from typing import Any

import grpc

from fastpath.mapping import explain_check
from fastpath.peer import VerifiedPeer
from sidecar._proto.remit.authz.v1 import authz_pb2, authz_pb2_grpc
from sidecar.errors import SidecarError
from sidecar.policy.explain import Explainer, PolicyExplanation
from sidecar.policy.question import Question
from sidecar.runtime import Runtime

CREDENTIAL = "control"  # in the record: who asked had entered the control socket
PEER_AGENT = 1  # fastpath.decide.PeerKind
OK = 0
_ESCAPE = "\\u{{{:x}}}"

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Explanation(authz_pb2_grpc.ExplanationServicer):
    """Explains one question at a time, so that explaining leaves the processor to the calls."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._explainer: Explainer | None = None

    def Explain(self, request: authz_pb2.ExplainRequest, context: grpc.ServicerContext) -> authz_pb2.ExplainResponse:
        raw = request.check.SerializeToString()
        peer = VerifiedPeer(PEER_AGENT, request.principal, CREDENTIAL)
        code, body = self._runtime.pdp.explain(raw, peer)
        if code != OK:
            context.abort(_CODES[code], body.decode("ascii", "replace"))
        response = authz_pb2.ExplainResponse(response=authz_pb2.CheckResponse.FromString(body))
        try:
            with self._lock:
                self._trace(raw, request.principal, response)
        except SidecarError as error:
            context.abort(_CODES[error.code], str(error))
        return response

    def _trace(self, raw: bytes, principal: str, response: authz_pb2.ExplainResponse) -> None:
        rules = self._runtime.rules
        explainer = self._explainer
        generation, mapping = rules.in_force()
        if explainer is None or explainer.evaluator.generation is not generation:
            explainer = self._explainer = Explainer(rules.texts(self._runtime.config), generation)
        mapped = explain_check(mapping, raw, principal, generation)
        if mapped["refusal"]:
            return  # refused before any policy was looked at: the reason says all
        found = explainer.explain(question_of(mapped))
        response.policies.extend(map(_policy, found.policies))
        response.missing_inputs.extend(found.missing)


def question_of(mapped: dict[str, Any]) -> Question:
    """The question that `fastpath.mapping.explain_check` found, with the live-state columns in their places."""
    context = dict(mapped["context"])
    for path, value in mapped["columns"].items():
        *groups, leaf = path.split(".")
        at = context
        for group in groups:
            at = at.setdefault(group, {})
        at[leaf] = value
    return Question(
        principal=_uid(mapped["principal"]),
        action=_uid(mapped["action"]),
        resource=_uid(mapped["resource"]),
        resource_parent=_uid(mapped["resource_parent"]) if mapped["resource_parent"] else "",
        context=context,
        unsent=mapped["unsent"],
    )


def _uid(uid: dict[str, str]) -> str:
    """Cedar text of an entity uid (Cedar grammar, STR: escapes are those of Rust)."""
    plain = uid["id"].replace("\\", "\\\\").replace('"', '\\"')
    escaped = "".join(c if c.isprintable() else _ESCAPE.format(ord(c)) for c in plain)
    return f'{uid["type"]}::"{escaped}"'


def _policy(one: PolicyExplanation) -> authz_pb2.PolicyTrace:
    result = "error" if one.satisfied is None else "satisfied" if one.satisfied else "unsatisfied"
    return authz_pb2.PolicyTrace(
        policy_id=one.id,
        effect=one.effect,
        scope_matched=True,
        result=result,
        error=one.cause,
        clauses=[
            authz_pb2.ClauseTrace(text=part.text, result=part.value)
            for clause in one.clauses
            for part in clause.conjuncts
        ],
    )
