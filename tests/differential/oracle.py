"""The reference: cedarpy, with pre-parsed handles."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import cedarpy

from tests.differential.case import Json, Record

ERRING = re.compile(r"^error while evaluating policy `(.*?)`: ", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What a request got: `allow` or `deny`, the determining policies, the policies that erred."""

    decision: str
    reasons: frozenset[str]
    errors: frozenset[str]

    def __str__(self) -> str:
        return f"{self.decision} reasons {sorted(self.reasons)} errors {sorted(self.errors)}"


@dataclass(frozen=True)
class Refused:
    """The input is no valid policy set, entity store or request.

    `tidy` is false when a stray exception, not a typed refusal, said so.
    """

    why: str
    tidy: bool = True

    def __str__(self) -> str:
        return f"refused ({self.why})" if self.tidy else f"failed untidily ({self.why})"


class Oracle:
    """cedarpy with the policies and entities of one record parsed; `refused` when it would not take them."""

    def __init__(self, record: Record) -> None:
        self.refused: Refused | None = None
        self._text = record["policies"]
        self._links = record.get("links", [])
        self._present = [
            e["uid"].get("__entity", e["uid"]) for e in record["entities"] if isinstance(e.get("uid"), dict)
        ]
        try:
            self._policies = cedarpy.PolicySet.from_str(self._text)
            if self._links:
                self._policies = self._policies.with_linked_batch(
                    [
                        {"template_id": link["template"], "new_id": link["id"], "values": link["slots"]}
                        for link in self._links
                    ]
                )
            self._entities = cedarpy.Entities.from_json_str(json.dumps(record["entities"]), schema_of(record))
        except ValueError as error:
            self.refused = Refused(str(error))

    def ask(self, requests: list[Json]) -> list[Answer | Refused]:
        """One answer per request. `resourceParent` stands for an entity below it that the store lacks: the resource."""
        if self.refused:
            return [self.refused] * len(requests)
        if any("resourceParent" in request for request in requests):
            return [answer for request in requests for answer in self._ask(self._with_resource(request), [request])]
        return self._ask(self._entities, requests)

    def _with_resource(self, request: Json) -> cedarpy.Entities:
        uid, parent = request["resource"], request.get("resourceParent")
        if parent is None or uid in self._present:
            return self._entities
        return self._entities.with_added_json_str(json.dumps([{"uid": uid, "attrs": {}, "parents": [parent]}]))

    def _ask(self, entities: cedarpy.Entities, requests: list[Json]) -> list[Answer | Refused]:
        plain = [
            {k: r[k] for k in ("principal", "action", "resource")} | {"context": json.dumps(r["context"])}
            for r in requests
        ]
        return [_answer(result) for result in cedarpy.is_authorized_batch(plain, self._policies, entities)]

    def effects(self) -> dict[str, str]:
        """Effect by policy id, links included."""
        read = json.loads(cedarpy.policies_to_json_str(self._text))
        found = {name: body["effect"] for kind in ("staticPolicies", "templates") for name, body in read[kind].items()}
        return found | {link["id"]: found[link["template"]] for link in self._links}


def schema_of(record: Record) -> str | None:
    """The schema that directs how the record is read: that of a typed record whose policies pass strict validation."""
    if not record.get("typed") or not record["schema"]:
        return None
    passed = cedarpy.validate_policies(record["policies"], record["schema"]).validation_passed
    return record["schema"] if passed else None


def _answer(result: cedarpy.AuthzResult) -> Answer | Refused:
    if result.decision is cedarpy.Decision.NoDecision:
        return Refused("; ".join(result.diagnostics.errors))
    erring = []
    for text in result.diagnostics.errors:
        match = ERRING.match(text)
        if match is None:
            raise ValueError(f"cedarpy names no policy in its error: {text!r}")
        erring.append(match[1])
    return Answer(result.decision.value.lower(), frozenset(result.diagnostics.reasons), frozenset(erring))


def strict(answer: Answer, effects: dict[str, str]) -> Answer:
    """What strict mode must say where cedarpy says `answer`: an erring forbid denies."""
    if not any(effects[name] == "forbid" for name in answer.errors):
        return answer
    reasons = answer.reasons if answer.decision == "deny" else frozenset()
    return Answer("deny", reasons, answer.errors)
