"""Who calls the authority services, and with which roles."""

from typing import Any

import msgspec

from fastpath.peer import VerifiedPeer
from sidecar.authority.draft import Caller
from sidecar.authority.errors import DeniedError
from sidecar.config_authority import AuthorityConfig


class Callers:
    """The people and workloads of the configuration. Whoever is not there has no role, but is known by name."""

    def __init__(self, section: AuthorityConfig) -> None:
        self._section = section
        self._uids = {uid: person.id for person in section.people for uid in person.uids}
        self._spiffe_ids = {one: person.id for person in section.people for one in person.spiffe_ids}
        named = [*((p.id, p.roles) for p in section.people), *((w.spiffe_id, w.roles) for w in section.workloads)]
        self.roles: dict[str, tuple[str, ...]] = {name: tuple(roles) for name, roles in named}

    def of_uid(self, uid: int) -> Caller:
        """The person behind a user of this machine. DeniedError when it is nobody's."""
        person = self._uids.get(uid)
        if person is None:
            raise DeniedError(f"user {uid} is nobody in `authority.people`; add the uid to a person there")
        return Caller("person", person)

    def of_peer(self, peer: VerifiedPeer) -> Caller:
        """The caller of a mutual TLS connection. DeniedError when the peer does not verify."""
        if peer.refusal:
            raise DeniedError(peer.refusal)
        caller = self.of_spiffe_id(peer.spiffe_id)
        return msgspec.structs.replace(caller, serial=peer.credential.partition(":")[2])

    def of_spiffe_id(self, spiffe_id: str) -> Caller:
        """The person that an SVID belongs to, else the workload."""
        person = self._spiffe_ids.get(spiffe_id)
        return Caller("person", person, spiffe_id) if person else Caller("workload", spiffe_id, spiffe_id)

    def entities(self) -> list[dict[str, Any]]:
        """Cedar entities (JSON): people and workloads in their roles."""
        people = {person.id for person in self._section.people}
        return [
            {
                "uid": {"type": "Person" if name in people else "Workload", "id": name},
                "attrs": {},
                "parents": [{"type": "Role", "id": role} for role in roles],
            }
            for name, roles in self.roles.items()
        ]
