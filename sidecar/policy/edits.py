"""Edits: single policies, links and entities that stand over the files of a policy set.

The set in force is the files with the edits laid over them by id: an edit wins over what the files say of its id, and a
removal hides it. Of several edits of one id the last one stands.
"""

import hashlib
import json
import os
import pwd
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from sidecar.errors import PolicyError, RuleTableError
from sidecar.files import UnusableFile, read_text
from sidecar.policy.cells import Uid, uid_of_json
from sidecar.policy.hierarchy import title
from sidecar.policy.lexer import PolicyText
from sidecar.policy.links import EntityUid, Link, PlacedLink

T = TypeVar("T")
Key = tuple[str, str, str]
EDITS_BYTES_MAX = 1 << 30
"""Of one file of edits."""
PLACE = "edits"
"""Where an edit stands, in errors."""


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What became of one policy, template or link (they share their ids), or of one entity."""

    of: Literal["policy", "link", "entity"]
    id: str
    type: str = ""
    """Of an entity."""
    text: str = ""
    """Cedar text of a policy or template, JSON of a link or an entity; empty: it was removed."""
    by: str = ""
    """The account that made the edit."""
    at_unix_s: int = 0

    @property
    def key(self) -> Key:
        """Equal for edits of the same thing."""
        return ("entity", self.type, self.id) if self.of == "entity" else ("policy", "", self.id)

    @property
    def uid(self) -> Uid:
        return self.type, self.id

    @property
    def removed(self) -> bool:
        return not self.text

    @property
    def title(self) -> str:
        """The name of what was edited, for people."""
        return f"entity `{title(self.uid)}`" if self.of == "entity" else f"{self.of} `{self.id}`"

    @property
    def content(self) -> tuple[str, Key, str]:
        """What was done, whoever did it."""
        return self.of, self.key, self.text


def link_edit(link: Link) -> Edit:
    return Edit("link", link.id, text=msgspec.json.encode(link).decode())


def slots(**given: Uid | None) -> dict[str, EntityUid]:
    """The slots of a link: `principal` and `resource` by their uids."""
    return {f"?{name}": EntityUid(*uid) for name, uid in given.items() if uid is not None}


def merged(before: Iterable[Edit], after: Iterable[Edit]) -> list[Edit]:
    """One edit per thing, the last one, sorted so that equal edits make equal files."""
    return sorted({edit.key: edit for edit in (*before, *after)}.values(), key=lambda edit: edit.key)


def without(edits: Iterable[Edit], done: Iterable[Edit]) -> list[Edit]:
    """Those of `edits` that are not in `done` as they are."""
    known = {edit.key: edit for edit in done}
    return [edit for edit in edits if known.get(edit.key) != edit]


def since(now: Iterable[Edit], before: Sequence[Edit]) -> list[Edit]:
    """What makes of a set that holds the edits `before` one that holds those of `now`.

    One of `before` that is not there any more was taken back: it put what the base never had, and was removed again.
    """
    found = list(now)
    gone = (msgspec.structs.replace(edit, text="") for edit in not_of(before, found))
    return merged(without(found, before), gone)


def not_of(edits: Iterable[Edit], others: Iterable[Edit]) -> list[Edit]:
    """Those of `edits` that are of other things than `others`."""
    keys = {edit.key for edit in others}
    return [edit for edit in edits if edit.key not in keys]


def same_content(edits: Iterable[Edit], others: Iterable[Edit]) -> bool:
    """Whether both do the same, whoever did it."""
    return [edit.content for edit in edits] == [edit.content for edit in others]


def account(uid: int | None = None) -> str:
    """A user, by default who runs this process, as edits name them."""
    number = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


class Overlay:
    """Edits as the compiler lays them over what the files hold."""

    def __init__(self, edits: Sequence[Edit] = ()) -> None:
        """PolicyError when a link or an entity cannot be read."""
        self.policies = [PolicyText(PLACE, edit.text) for edit in edits if edit.of == "policy" and edit.text]
        self.own_links = [PlacedLink(_decoded(edit, Link), PLACE) for edit in edits if edit.of == "link" and edit.text]
        self.own_entities = [_decoded(edit, dict) for edit in edits if edit.of == "entity" and edit.text]
        self._edits = {edit.key: edit for edit in edits}
        self._met: set[Key] = set()

    @property
    def edits_entities(self) -> bool:
        """Whether there is an edit of an entity."""
        return any(edit.of == "entity" for edit in self._edits.values())

    def rules(self, named: Mapping[str, T], own: Mapping[str, T]) -> dict[str, T]:
        """The policies and templates of the files by id, with `own`, those of the edits, in place of the edited."""
        return {**{id_: one for id_, one in named.items() if not self.hides_rule(id_)}, **own}

    def links(self, placed: Iterable[PlacedLink]) -> list[PlacedLink]:
        """The links of the files and of the edits."""
        return [*(place for place in placed if not self.hides_rule(place.link.id)), *self.own_links]

    def entities(self, document: str | Sequence[dict[str, Any]]) -> str | Sequence[dict[str, Any]]:
        """The entities of the files and of the edits; a document that is none comes back for its reader to refuse."""
        if not any(edit.of == "entity" for edit in self._edits.values()):
            return document
        try:
            found = json.loads(document) if isinstance(document, str) else document
        except (ValueError, RecursionError):
            return document
        if not isinstance(found, list | tuple):
            return document
        return [*(one for one in found if not self.hides_entity(one)), *self.own_entities]

    def hides_rule(self, id_: str) -> bool:
        """Whether an edit decides about a policy, template or link that the files hold."""
        return self._hides(("policy", "", id_))

    def hides_entity(self, entity: Any) -> bool:
        """Whether an edit decides about an entity that the files hold, given as Cedar JSON."""
        try:
            uid = entity_uid(entity, "entity")
        except PolicyError:
            return False  # its reader says what is wrong
        return self._hides(("entity", *uid))

    def _hides(self, key: Key) -> bool:
        if key not in self._edits:
            return False
        self._met.add(key)
        return True

    def unneeded(self) -> list[Edit]:
        """The removals of what the files do not hold. Ask when all of the files has been seen."""
        return [edit for key, edit in self._edits.items() if edit.removed and key not in self._met]


def entity_uid(entity: Any, where: str) -> Uid:
    """The uid of an entity in Cedar JSON; PolicyError, naming `where` it stands, when it has none."""
    uid = entity.get("uid") if isinstance(entity, dict) else None
    if isinstance(uid, dict) and uid.keys() == {"__entity"}:
        uid = uid["__entity"]
    return uid_of_json(uid, f"{where} uid")


def _decoded(edit: Edit, type_: Any) -> Any:
    try:
        return msgspec.json.decode(edit.text, type=type_)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise PolicyError(f"{edit.title} cannot be read: {str(error)[:1].lower()}{str(error)[1:]}") from None


# ---------------------------------------------------------------- files of edits


class EditsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of edits, as a manifest names it. It is never written again; equal edits have equal files."""

    file: str
    digest: str
    """SHA-256 of the file: "sha256:<hex>"."""
    size: int
    """Bytes of the file."""
    count: int


def encoded(edits: Sequence[Edit]) -> tuple[EditsFile, bytes]:
    """What the manifest says of a file of these edits, and the file's bytes: one edit per line."""
    raw = b"[\n" + b",\n".join(msgspec.json.encode(edit) for edit in edits) + b"\n]\n"
    hexed = hashlib.sha256(raw).hexdigest()
    return EditsFile(f"edits-{hexed[:16]}.json", f"sha256:{hexed}", len(raw), len(edits)), raw


def read_edits(directory: str, named: EditsFile | None) -> list[Edit]:
    """The edits of a file; RuleTableError when it is not what its manifest says."""
    if named is None:
        return []
    path = os.path.join(directory, named.file)
    try:
        raw = read_text(path, EDITS_BYTES_MAX).encode()
        if f"sha256:{hashlib.sha256(raw).hexdigest()}" != named.digest:
            raise UnusableFile("is not what its digest says")
        return msgspec.json.decode(raw, type=list[Edit])
    except (UnusableFile, msgspec.DecodeError) as error:
        raise RuleTableError(
            f"`{path}` is damaged: it {str(error).lower()}; put it back, or forget all edits with"
            " remit policy edits --drop"
        ) from None
