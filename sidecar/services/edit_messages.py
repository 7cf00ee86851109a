"""Edits as messages of the control service (proto/remit/control/v1/control.proto)."""

from collections.abc import Iterable

from sidecar._proto.remit.control.v1 import control_pb2
from sidecar.policy.edits import slots
from sidecar.policy.jobs import Change
from sidecar.policy.lexer import PolicyText
from sidecar.policy.links import EntityUid, Link


def change_of(request: control_pb2.EditRequest) -> Change:
    """What is asked, as a store takes it."""
    return Change(
        policies=_texts(request.policies),
        links=[_link(one) for one in request.links],
        entities=_texts(request.entities),
        removed=list(request.removed),
        unlinked=list(request.unlinked),
        entities_removed=[EntityUid(uid.type, uid.id) for uid in request.entities_removed],
    )


def request_of(change: Change) -> control_pb2.EditRequest:
    """The message that asks for `change`."""
    return control_pb2.EditRequest(
        policies=[control_pb2.NamedText(name=one.name, text=one.text) for one in change.policies],
        links=[_new_link(one) for one in change.links],
        entities=[control_pb2.NamedText(name=one.name, text=one.text) for one in change.entities],
        removed=change.removed,
        unlinked=change.unlinked,
        entities_removed=[control_pb2.EntityUid(type=uid.type, id=uid.id) for uid in change.entities_removed],
    )


def _texts(texts: Iterable[control_pb2.NamedText]) -> list[PolicyText]:
    return [PolicyText(one.name, one.text) for one in texts]


def _link(link: control_pb2.NewLink) -> Link:
    given = {name: getattr(link, name) for name in ("principal", "resource") if link.HasField(name)}
    return Link(link.id, link.template, slots(**{name: (uid.type, uid.id) for name, uid in given.items()}))


def _new_link(link: Link) -> control_pb2.NewLink:
    filled = {
        slot.removeprefix("?"): control_pb2.EntityUid(type=uid.type, id=uid.id) for slot, uid in link.slots.items()
    }
    return control_pb2.NewLink(id=link.id, template=link.template, **filled)
