"""What is read in chunks is read as a whole: the same image, the same refusals, wherever a chunk ends."""

import json
import random

import pytest

from sidecar.policy import cores, entities, link_table
from sidecar.policy import parse as parsing
from sidecar.policy.compile import compile_image
from sidecar.policy.edits import Edit, Overlay
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import PolicyLimits
from tests.fix_policy import ANYTHING, refusal

SCHEMA = """
entity G in [G]; entity A in [G] { n: Long, d?: decimal, friend?: A }; entity R;
action b; action a in [b] appliesTo { principal: A, resource: R, context: {} };
"""
TEMPLATES = (
    '@id("t") permit (principal == ?principal, action in [Action::"a", Action::"b"], resource == ?resource);\n'
    '@id("u") forbid (principal in ?principal, action, resource) when { principal.n > 3 };\n'
)


@pytest.fixture
def chunks(monkeypatch):
    """Sets how much is read at a time."""

    def set_to(count):
        monkeypatch.setattr(entities, "CHUNK_ENTITIES", count)
        monkeypatch.setattr(link_table, "CHUNK_LINKS", count)
        monkeypatch.setattr(parsing, "CHUNK_POLICIES", count)
        monkeypatch.setattr(cores, "BATCH", 2)

    return set_to


def policies():
    return [
        f'@id("p{number:02}") {ANYTHING} when {{ principal == A::"a{number % 7}" && principal.n == {number % 5} }};'
        for number in range(30)
    ]


def links():
    found = []
    for number in range(40):
        slots = {"?principal": {"type": "A", "id": f"a{number % 13}"}}
        if number % 3:
            slots["?resource"] = {"type": "R", "id": f"r{number % 5}"}
        found.append({"id": f"l{number:02}", "template": "t" if number % 3 else "u", "slots": slots})
    return found


def store():
    rows = [{"uid": {"type": "G", "id": f"g{n}"}, "attrs": {}, "parents": up("G", f"g{n // 2}") if n else []}
            for n in range(9)]  # fmt: skip
    for n in range(30):
        attrs = (
            {"n": n % 4} | ({"d": "1.5"} if n % 5 == 0 else {}) | ({"friend": uid("A", f"a{n + 1}")} if n % 6 else {})
        )
        rows.append({"uid": uid("A", f"a{n}"), "attrs": attrs, "parents": up("G", f"g{n % 9}", f"g{n % 4}")})
    return rows


def uid(type_, id_):
    return {"type": type_, "id": id_}


def up(type_, *ids):
    return [uid(type_, id_) for id_ in ids]


def lines(rows):
    return PolicyText("links.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def digest(rng=None, processes=1, schema=SCHEMA):
    texts, chosen, entities_ = policies(), links(), store()
    if rng is not None:
        for rows in (texts, chosen, entities_):
            rng.shuffle(rows)
    return compile_image(
        TEMPLATES + "\n".join(texts), links=lines(chosen), entities=json.dumps(entities_), schema=schema,
        processes=processes,
    ).digest  # fmt: skip


def test_the_image_is_the_same_for_any_chunks_processes_and_orders(chunks):
    """PO-02: where chunks end, who reads them and in what order files say things leaves no trace."""
    wanted = digest()
    rng = random.Random(5)
    for count, processes in ((1, 1), (1, 2), (3, 3), (7, 2), (16, 1)):
        chunks(count)
        assert digest(rng, processes) == wanted
        assert digest(None, processes) == wanted


def test_rows_given_by_a_program_make_the_same_image(chunks):
    """A list of links and entities is what their texts are."""
    chunks(7)
    made = compile_image(TEMPLATES + "\n".join(policies()), links=links(), entities=store(), schema=SCHEMA)
    assert made.digest == digest()


@pytest.mark.parametrize("count", [1, 2, 100])
@pytest.mark.parametrize(
    "document",
    ["[", "[E,\n]", "[E\n", "[E] E", "[E, E\n,, E]", "[E,\n E, {]}, E]", "[E, E x, E]", "[E E]", "", "{", "[E, [}]"],
)
def test_a_document_that_is_no_json_is_refused_wherever_chunks_end(chunks, count, document):
    """Line and column are those of the whole document, as one reader of all of it would say."""
    chunks(count)
    text = document
    for number in range(document.count("E")):
        text = text.replace("E", json.dumps({"uid": uid("X", str(number)), "attrs": {}, "parents": []}), 1)
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    said = refusal(f'@id("a") {ANYTHING};', entities=text)
    assert said.startswith("entities: is not JSON: ")
    assert said.endswith(f"(line {caught.value.lineno}, column {caught.value.colno})")


@pytest.mark.parametrize("count", [1, 2, 100])
def test_entities_are_numbered_through_all_chunks(chunks, count):
    """PO-06: an error names the number of the entity in its document."""
    chunks(count)
    rows = [{"uid": uid("X", str(number)), "attrs": {}, "parents": []} for number in range(5)]
    rows[3]["attrs"] = {"n": None}
    assert 'entities: entity 4 (`X::"3"`) attrs.n is null' in refusal(f'@id("a") {ANYTHING};', entities=rows)
    rows[3]["uid"] = 3
    assert "entities: entity 4 uid is not an entity uid" in refusal(f'@id("a") {ANYTHING};', entities=json.dumps(rows))


@pytest.mark.parametrize("count", [1, 2, 100])
def test_what_entities_of_several_chunks_do_together_is_refused(chunks, count):
    """PO-06: a cycle, a chain that is too long, and two contents of one entity."""
    chunks(count)
    ring = [{"uid": uid("G", str(n)), "attrs": {}, "parents": up("G", str((n + 1) % 5))} for n in range(5)]
    wanted = 'parents form a cycle: `G::"0"` in `G::"1"` in `G::"2"` in `G::"3"` in `G::"4"` in `G::"0"`'
    assert refusal(f'@id("a") {ANYTHING};', entities=ring) == f"entities: {wanted}"
    ring[-1]["parents"] = []
    limits = PolicyLimits(parents_max=4)
    assert refusal(f'@id("a") {ANYTHING};', entities=ring, limits=limits).endswith("a chain of more than 4 parents")
    twice = [*ring, ring[0] | {"attrs": {"n": 1}}]
    assert 'duplicate entity entry `G::"0"`' in refusal(f'@id("a") {ANYTHING};', entities=twice)
    assert compile_image(f'@id("a") {ANYTHING};', entities=[*ring, ring[0]]).report.entities == 5


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_id_that_is_taken_is_refused_with_both_places(chunks, count, processes):
    """An id belongs to one policy or link, in whichever chunk the other stands."""
    chunks(count)
    rows = links()
    again = lines([*rows, rows[2]])
    assert refusal(TEMPLATES, links=again, processes=processes) == (
        "links.jsonl:41: link id `l02` is taken by the link at links.jsonl:3"
    )
    own = lines([*rows[:5], rows[5] | {"id": "u"}])
    assert refusal(TEMPLATES, links=own) == "links.jsonl:6: link id `u` is taken by policy `u` (policies:2:1)"
    assert refusal(TEMPLATES, links=lines([*rows[:5], rows[5] | {"id": ""}])) == "links.jsonl:6: link has an empty id"
    assert refusal(TEMPLATES, links=lines(rows), limits=PolicyLimits(links_max=7)) == "links.jsonl:8: more than 7 links"


def test_blank_lines_count_as_lines(chunks):
    """A place is the line of the file, also in a later chunk."""
    chunks(2)
    text = PolicyText("l", "\n\n" + json.dumps(links()[0]) + "\n\n\n{\n")
    assert refusal(TEMPLATES, links=text).startswith("l:6: link cannot be read: ")


@pytest.mark.parametrize("processes", [1, 2])
def test_edits_hide_what_any_chunk_holds(chunks, processes):
    """A hidden link or entity is left out and known to have been there, whoever read it."""
    chunks(2)
    edits = [
        Edit("link", "l07"),
        Edit("link", "nowhere"),
        Edit("entity", "a3", "A"),
        Edit("entity", "a4", "A", json.dumps(store()[13] | {"attrs": {"n": 9}})),
    ]
    overlay = Overlay(edits)
    made = compile_image(
        TEMPLATES, links=lines(links()), entities=json.dumps(store()), schema=SCHEMA, overlay=overlay,
        processes=processes,
    )  # fmt: skip
    assert overlay.unneeded() == [edits[1]]
    assert made.report.links == 39
    assert made.report.entities == len(store()) - 1 + 2
