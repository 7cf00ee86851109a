"""Edits of a published set: one change costs the change, stands over the files, and is refused like a publish is."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import struct
import threading
from collections.abc import Callable

import msgspec
import pytest

from sidecar.errors import PolicyError, RuleTableError
from sidecar.policy.folder import Folder
from sidecar.policy.lexer import PolicyText
from sidecar.policy.links import EntityUid, Link
from sidecar.policy.manifest import MANIFEST
from sidecar.policy.publish import Change, GenerationStore, PolicySource, Published, SourceFiles, Work
from tests.fix_children import children
from tests.fix_policy import ANYTHING

LIMIT_S = 30

SCHEMA = """
entity Group in [Group];
entity User in [Group] { level: Long };
entity Doc;
action view appliesTo { principal: [User], resource: [Doc], context: {} };
"""
FILES = f"""
@id("base") permit (principal, action, resource) when {{ principal.level > 1 }};
@id("share") permit (principal == ?principal, action, resource == ?resource);
@id("unused") {ANYTHING.replace("principal,", "principal in ?principal,")};
"""


def entity(type_: str, id_: str, *parents: str, **attrs: object) -> dict[str, object]:
    above = [{"type": "Group", "id": one} for one in parents]
    return {"uid": {"type": type_, "id": id_}, "attrs": attrs, "parents": above}


def link(id_: str, template: str = "share", **slots: tuple[str, str]) -> Link:
    filled = slots or {"principal": ("User", "u"), "resource": ("Doc", "d")}
    return Link(id_, template, {f"?{name}": EntityUid(*uid) for name, uid in filled.items()})


def policy(text: str) -> Change:
    return Change(policies=[PolicyText("new.cedar", text)])


def put(*entities: dict[str, object]) -> Change:
    return Change(entities=[PolicyText("new.json", json.dumps(list(entities)))])


class World:
    """A published set of files, and a store that stays open."""

    def __init__(self, root: pathlib.Path, **settings: int) -> None:
        self.files = root / "files"
        self.files.mkdir()
        (self.files / "a.cedar").write_text(FILES)
        (self.files / "a.cedarschema").write_text(SCHEMA)
        (self.files / "links.jsonl").write_text(
            '{"id":"l1","template":"share","slots":{"?principal":{"type":"User","id":"u"},'
            '"?resource":{"type":"Doc","id":"d"}}}'
        )
        (self.files / "entities.json").write_text(
            json.dumps(
                [entity("User", "u", "inner", level=1), entity("Group", "inner", "outer"), entity("Group", "outer")]
            )
        )
        names = [str(self.files / name) for name in ("a.cedarschema", "entities.json", "links.jsonl")]
        self.source = PolicySource(SourceFiles([str(self.files / "a.cedar")], *names, **settings))
        self.path = root / "store"
        self.store = GenerationStore(self.path, stays=True)
        self.store.publish(self.source)

    def edit(self, change: Change, work: Work | None = None) -> Published:
        return self.store.edit(change, self.source, work or Work())

    def ids(self) -> list[str]:
        with self.store.open_current() as generation:
            return generation.policy_ids

    def refused(self, change: Change) -> str:
        before, ids = self.store.current(), self.ids()
        with pytest.raises(PolicyError) as caught:
            self.edit(change)
        assert (self.store.current(), self.ids()) == (before, ids)
        return str(caught.value)


@pytest.fixture
def world(tmp_path: pathlib.Path):
    made = World(tmp_path)
    with made.store:
        yield made


def test_an_edit_is_a_delta_over_the_same_base(world: World) -> None:
    """The base's file is neither written nor replaced; numbers grow; the edit says who made it and when."""
    before = world.store.current()
    done = world.edit(policy(f'@id("new") {ANYTHING};'))
    manifest = done.manifest
    assert (manifest.generation, manifest.file, manifest.digest) == (2, before.file, before.digest)
    assert (manifest.delta.file, manifest.report.policies, done.compiled) == ("delta-0000000002.mdb", 3, "")
    assert world.ids() == ["base", "l1", "new"]
    (standing,) = world.store.edits()
    assert (standing.id, bool(standing.by), standing.at_unix_s >= before.published_unix_s) == ("new", True, True)
    assert [stored.generation for stored in manifest.previous] == [1]


def test_the_same_edit_again_changes_nothing(world: World) -> None:
    """Equal content keeps its number."""
    first = world.edit(policy(f'@id("new") {ANYTHING};')).manifest
    assert world.edit(policy(f'@id("new") {ANYTHING};')).manifest == first


def test_what_is_put_and_removed_again_leaves_no_delta(world: World) -> None:
    world.edit(policy(f'@id("new") {ANYTHING};'))
    manifest = world.edit(Change(removed=["new"])).manifest
    assert (manifest.generation, manifest.delta, manifest.pending) == (3, None, None)
    assert world.ids() == ["base", "l1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (policy("permit (principal, action, resource);"), r"policy at new.cedar:1:1 has no `@id`"),
        (policy('@id("x") permit (1);'), r"policy `x` \(new.cedar:1:1\) cannot be parsed"),
        (policy(f'@id("x") {ANYTHING} when {{ principal.nope }};'), r"policy `x` \(new.cedar:1:1\) attribute"),
        (policy(f'@id("x") {ANYTHING} when {{ {"(" * 100}true{")" * 100} }};'), "nested deeper than 64 levels"),
        (policy(f'@id("share") {ANYTHING};'), r"template `share` has a link \(`l1`\); remove with remit policy unlink"),
        (Change(removed=["share"]), r"template `share` has a link \(`l1`\)"),
        (Change(removed=["nope"]), "there is no policy, template or link `nope` to remove"),
        (Change(unlinked=["base"]), "`base` is a policy, not a link; remove it with remit policy remove"),
        (Change(unlinked=["nope"]), "there is no link `nope` to remove"),
        (Change(links=[link("x", "nope")]), "link `x` names the template `nope`, which does not exist"),
        (Change(links=[link("x", "base")]), "link `x` names the template `base`, which is a policy"),
        (Change(links=[link("x", principal=("User", "u"))]), "link `x` does not fill the slot `\\?resource`"),
        (Change(links=[link("x", principal=("No", "u"), resource=("Doc", "d"))]), "type `No` in `\\?principal`"),
        (Change(links=[link("x"), link("x")]), "link `x` stands twice in one change"),
        (put(entity("User", "v")), '`User::"v"`\\): entity does not conform to the schema'),
        (put(entity("User", "v", level=1.5)), "level"),
        (put(entity("Group", "outer", "inner")), "form a cycle"),
        (Change(entities=[PolicyText("new.json", '{"uid": 1, "uid": 2}')]), "the key `uid` stands twice"),
        (Change(entities=[PolicyText("new.json", "[")]), "new.json: is not JSON"),
        (Change(entities_removed=[EntityUid("User", "v")]), 'there is no entity `User::"v"` to remove'),
        (Change(entities_removed=[EntityUid("Action", "view")]), "comes from the schema; take it out there"),
    ],
)
def test_a_refused_edit_says_what_and_why_and_changes_nothing(world: World, change: Change, said: str) -> None:
    """PO-03, PO-06, PO-08, PO-14: an edit is checked as a publish is."""
    assert re.search(said, message := world.refused(change)), message


def test_a_store_without_a_generation_has_nothing_to_edit(tmp_path: pathlib.Path) -> None:
    source = PolicySource(SourceFiles([str(tmp_path)]))
    with pytest.raises(RuleTableError, match="holds no generation; publish policies first"):
        GenerationStore(tmp_path / "store").edit(policy(f'@id("x") {ANYTHING};'), source, Work())


def test_the_last_policy_stays_unless_an_empty_set_is_allowed(world: World) -> None:
    """PO-14: an edit that leaves no policy would deny every call."""
    world.edit(Change(removed=["base"]))
    assert "there would be no policy" in world.refused(Change(unlinked=["l1"]))


def test_a_template_is_replaced_together_with_its_links(world: World) -> None:
    """Its links are rows of the base, so the set is compiled; one without links costs the change."""
    done = world.edit(policy('@id("share") forbid (principal == ?principal, action, resource == ?resource);'))
    assert done.compiled == "the links of template `share` are compiled with it"
    assert (done.manifest.delta, world.ids()) == (None, ["base", "l1"])
    assert world.edit(policy('@id("unused") forbid (principal in ?principal, action, resource);')).compiled == ""
    world.edit(Change(links=[link("l2", "unused", principal=("Group", "outer"))]))
    assert world.ids() == ["base", "l1", "l2"]


def test_links_of_a_template_can_go_one_by_one_and_then_the_template(world: World) -> None:
    world.edit(Change(unlinked=["l1"]))
    world.edit(Change(removed=["share"]))
    assert "which does not exist" in world.refused(Change(links=[link("l1")]))


def test_more_edits_than_a_delta_holds_compile_the_set(tmp_path: pathlib.Path) -> None:
    """The files must then be those of the generation in force: an edit publishes no change of a file by the way."""
    world = World(tmp_path, delta_edits=2)
    with GenerationStore(world.path) as store:
        for number in range(2):
            assert store.edit(policy(f'@id("n{number}") {ANYTHING};'), world.source, Work()).compiled == ""
        (world.files / "a.cedar").write_text(FILES + "// changed")
        with pytest.raises(
            PolicyError, match=r"at most 2 edits, but the policy files are no longer those of generation 3"
        ):
            store.edit(policy(f'@id("n2") {ANYTHING};'), world.source, Work())
        (world.files / "a.cedar").write_text(FILES)
        done = store.edit(policy(f'@id("n2") {ANYTHING};'), world.source, Work())
        assert (done.compiled, done.manifest.delta, done.standing) == ("a delta holds at most 2 edits", None, 3)
        assert world.ids() == ["base", "l1", "n0", "n1", "n2"]
    world.store.close()


# ---------------------------------------------------------------- publishes and compactions


def test_a_publish_of_files_keeps_the_edits_and_says_so(world: World) -> None:
    """An edit wins over a file that has its id by now; a removal of what the files no longer hold is forgotten."""
    world.edit(policy(f'@id("new") {ANYTHING};'))
    world.edit(Change(removed=["base"]))
    world.edit(Change(unlinked=["l1"]))
    template = FILES.split("\n", 2)[2]
    (world.files / "a.cedar").write_text(f'@id("new") forbid (principal, action, resource);\n{template}')
    done = world.store.publish_files(world.source, Work())
    assert ([edit.id for edit in done.unneeded], done.standing) == (["base"], 2)
    assert [edit.id for edit in world.store.edits()] == ["l1", "new"]
    assert world.ids() == ["new"]
    done = world.store.publish_files(world.source, Work(), drop_edits=True)
    assert (done.standing, world.store.edits(), world.ids()) == (0, [], ["l1", "new"])


def test_files_that_did_not_change_are_not_compiled_again(world: World) -> None:
    """A reload of a large set whose files are the same costs reading them."""
    told: list[str] = []
    manifest = world.edit(policy(f'@id("new") {ANYTHING};')).manifest
    assert world.store.publish_files(world.source, Work(progress=told.append)).manifest == manifest
    assert told == []


def made_older(world: World) -> None:
    """Leave the store as the release before did: an image of the version before, in a manifest that fits."""
    manifest = world.store.current()
    path = world.path / manifest.file
    raw = path.read_bytes()
    at = raw.index(b"REMITGEN")
    version = struct.unpack_from("<I", raw, at + 8)[0]
    assert version == manifest.image_version
    raw = raw[: at + 8] + struct.pack("<I", version - 1) + raw[at + 12 :]
    path.unlink()
    path.write_bytes(raw)
    image, file = (f"sha256:{hashlib.sha256(part).hexdigest()}" for part in (raw[at : at + manifest.size], raw))
    older = msgspec.structs.replace(
        manifest, digest=image, file_digest=file, image_version=version - 1, settings="sha256:older"
    )
    (world.path / MANIFEST).write_bytes(msgspec.json.encode(older.sealed()))


def test_a_store_of_an_older_release_is_compiled_anew_under_its_edits(world: World) -> None:
    """Its image is refused by name, by readers and by edits alike, and the next publish, as every start makes one,
    keeps what stands over the files.
    """
    world.edit(policy(f'@id("new") {ANYTHING};'))
    world.edit(Change(removed=["base"]))
    made_older(world)
    before = world.store.current()
    with GenerationStore(world.path) as store:
        with pytest.raises(RuleTableError, match="written by another version of the compiler; publish it again"):
            store.open_current()
        with pytest.raises((PolicyError, RuleTableError), match="written by another version of the compiler"):
            store.edit(policy(f'@id("more") {ANYTHING};'), world.source, Work())
        assert store.current() == before
        done = store.publish_files(world.source, Work())
        assert (done.manifest.generation, done.standing, done.manifest.delta) == (before.generation + 1, 2, None)
        with store.open_current() as generation:
            assert generation.policy_ids == ["l1", "new"]
        store.edit(policy(f'@id("more") {ANYTHING};'), world.source, Work())
        with store.open_current() as generation:
            assert generation.policy_ids == ["l1", "more", "new"]


def during(step: Callable[[], object]) -> Work:
    """How to compile while `step` happens, once."""
    done: list[object] = []

    def tell(_: str) -> None:
        if not done:
            done.append(True)
            step()

    return Work(progress=tell)


def test_edits_made_during_a_compaction_carry_over(world: World) -> None:
    """Others edit while the compiler works; what they did is a delta over the new base, and no edit is lost."""
    world.edit(policy(f'@id("a") {ANYTHING};'))
    world.edit(policy(f'@id("b") {ANYTHING};'))

    def meanwhile() -> None:
        with GenerationStore(world.path) as other:
            other.edit(Change(removed=["a"]), world.source, Work())
            other.edit(policy(f'@id("c") {ANYTHING};'), world.source, Work())
            other.edit(put(entity("User", "v", level=3)), world.source, Work())

    manifest = world.store.compact(world.source, during(meanwhile)).manifest
    assert world.ids() == ["b", "base", "c", "l1"]
    assert (manifest.delta is not None, manifest.report.policies, manifest.report.entities) == (True, 4, 5)
    assert [edit.id for edit in world.store.edits() if not edit.removed] == ["v", "b", "c"]
    manifest = world.store.compact(world.source, Work()).manifest
    assert (manifest.delta, manifest.pending, manifest.edits.count) == (None, None, 3)
    assert world.ids() == ["b", "base", "c", "l1"]
    assert world.store.compact(world.source, Work()).manifest == manifest
    assert not [name for name in os.listdir(world.path) if name.startswith(".")]


def while_another_writes(world: World, monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Let `then` happen as soon as somebody waits for another writer, who then ends."""
    writing = contextlib.ExitStack()
    writing.enter_context(Folder(world.path).locked())

    def waited(_: float) -> None:
        then()
        writing.close()

    monkeypatch.setattr("sidecar.policy.folder.time.sleep", waited)


def test_a_publish_waits_for_a_compaction_that_writes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A background compaction is the one writer at times of its own: a reload at that moment is no operator's error."""
    (world.files / "a.cedar").write_text(FILES + f'@id("z") {ANYTHING};')
    waits: list[str] = []
    while_another_writes(world, monkeypatch, lambda: waits.append("waits"))
    world.store.publish(world.source)
    assert (waits, world.ids()) == (["waits"], ["base", "l1", "z"])


def test_a_stop_ends_the_wait_for_another_writer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.files / "a.cedar").write_text(FILES + f'@id("z") {ANYTHING};')
    with Folder(world.path).locked():
        monkeypatch.setattr("sidecar.policy.folder.time.sleep", lambda _: world.store.stop())
        with pytest.raises(PolicyError, match="the process stops; nothing is published any more"):
            world.store.publish(world.source)
    assert world.ids() == ["base", "l1"]


def test_a_compaction_gives_way_to_a_publish(world: World) -> None:
    """What was published meanwhile stays in force."""
    world.edit(policy(f'@id("a") {ANYTHING};'))

    def meanwhile() -> None:
        (world.files / "a.cedar").write_text(FILES + f'@id("z") {ANYTHING};')
        GenerationStore(world.path).publish(world.source)

    with pytest.raises(PolicyError, match="something else was published meanwhile"):
        world.store.compact(world.source, during(meanwhile))
    assert world.ids() == ["a", "base", "l1", "z"]


def test_two_compactions_at_once_are_one(world: World) -> None:
    world.edit(policy(f'@id("a") {ANYTHING};'))
    said: list[str] = []

    def meanwhile() -> None:
        with pytest.raises(PolicyError) as caught:
            GenerationStore(world.path).compact(world.source, Work())
        said.append(str(caught.value))

    world.store.compact(world.source, during(meanwhile))
    assert said == [f"another process is publishing into `{world.path}`; try again"]


def test_a_publisher_that_stays_compacts_in_the_background(tmp_path: pathlib.Path) -> None:
    """When its delta is half full; edits go on meanwhile."""
    world = World(tmp_path, delta_edits=6)
    with world.store as store:
        for number in range(6):
            world.edit(policy(f'@id("n{number}") {ANYTHING};'))
        store.wait_for_compaction()
        assert store.compaction_problem == ""
        manifest = store.current()
        assert manifest.edits is not None
        assert manifest.edits.count + (manifest.pending.count if manifest.pending else 0) == 6
        assert world.ids() == ["base", "l1", *(f"n{number}" for number in range(6))]


def test_a_compaction_that_is_asked_for_waits_for_the_one_in_the_background(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks is told of other processes, never that the store is in its own way."""
    world = World(tmp_path, delta_edits=6)
    begun, asked = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        if threading.current_thread().name == "compaction":
            begun.set()
            assert asked.wait(LIMIT_S)

    with world.store as store:
        for number in range(4):
            store.edit(policy(f'@id("n{number}") {ANYTHING};'), world.source, Work(progress=hold))
        assert begun.wait(LIMIT_S)
        wait = store.wait_for_compaction
        monkeypatch.setattr(store, "wait_for_compaction", lambda: (asked.set(), wait()))
        manifest = store.compact(world.source, Work()).manifest
        assert (store.compaction_problem, manifest.delta, manifest.pending) == ("", None, None)
        assert world.ids() == ["base", "l1", *(f"n{number}" for number in range(4))]


def test_a_compiler_that_stays_is_started_again_when_it_died(world: World) -> None:
    """It is one process for many edits; a kill between two of them is not noticed, one in its work is a refusal."""
    others = set(children())  # of fixtures that other tests use as well

    def compilers() -> set[int]:
        return set(children()) - others

    world.edit(policy(f'@id("a") {ANYTHING};'))
    (first,) = compilers()
    world.edit(policy(f'@id("b") {ANYTHING};'))
    assert compilers() == {first}
    os.kill(first, signal.SIGKILL)
    # Dead, and not yet waited for.
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    world.edit(policy(f'@id("c") {ANYTHING};'))
    assert compilers() != {first}
    assert world.ids() == ["a", "b", "base", "c", "l1"]
    world.store.close()
    assert compilers() == set()
