"""Edits over the files of a policy set: the last one of a thing stands, and wins over the files."""

import json
from typing import Any

import pytest

from fastpath.table import Generation
from sidecar.errors import PolicyError, RuleTableError
from sidecar.policy.child import compile_texts
from sidecar.policy.edits import Edit, Overlay, encoded, merged, read_edits, since, without
from sidecar.policy.lexer import PolicyText
from sidecar.policy.source import SourceTexts
from tests.fix_policy import ANYTHING

TEMPLATE = '@id("share") permit (principal == ?principal, action, resource == ?resource);'


def policy(id_: str, body: str = ANYTHING) -> str:
    return f'@id("{id_}") {body};'


def put(id_: str, body: str = ANYTHING, **who: Any) -> Edit:
    return Edit("policy", id_, text=policy(id_, body), **who)


def link(id_: str, principal: str = "p") -> str:
    slots = {"?principal": {"type": "U", "id": principal}, "?resource": {"type": "D", "id": "d"}}
    return json.dumps({"id": id_, "template": "share", "slots": slots})


def entity(id_: str, *parents: str) -> dict[str, Any]:
    return {"uid": {"type": "U", "id": id_}, "attrs": {}, "parents": [{"type": "U", "id": one} for one in parents]}


def texts(*policies: str, links: list[str] | None = None, entities: list[dict] | None = None, **given: Any) -> Any:
    return SourceTexts(
        [PolicyText("a.cedar", "\n".join(policies))],
        links=PolicyText("links.jsonl", "\n".join(links)) if links else None,
        entities=PolicyText("entities.json", json.dumps(entities)) if entities else None,
        **given,
    )


def image(of: SourceTexts) -> bytes:
    return compile_texts(of, allow_empty=True).image


def ids(of: SourceTexts) -> list[str]:
    with Generation.from_bytes(image(of)) as generation:
        return generation.policy_ids


def test_of_several_edits_of_one_thing_the_last_stands() -> None:
    """Coalesced by id, in an order that does not depend on when they were made."""
    one, two, three = put("b"), put("a"), Edit("policy", "b")
    assert merged([one], [two, three]) == [two, three]
    assert merged([three], [one, two]) == [two, one]
    assert without([one, two], [one]) == [two]
    assert without([three], [one]) == [three]


def test_what_was_taken_back_since_is_a_removal() -> None:
    """An edit that was there and is there no more must not come back with a base that was compiled with it."""
    one, two, three = put("a"), put("b"), put("c")
    assert since([two, three], [one, two]) == [Edit("policy", "a"), three]
    assert since([one], [one]) == []


def test_an_edit_wins_over_the_files() -> None:
    """A put replaces the policy, template or link of its id; a removal hides it; all else stays."""
    files = texts(policy("a"), policy("b"), TEMPLATE, links=[link("l"), link("m")])
    edits = [put("a", "forbid (principal, action, resource)"), Edit("policy", "b"), Edit("link", "m"), put("c")]
    edited = SourceTexts(files.policies, links=files.links, edits=edits)
    written = texts(policy("a", "forbid (principal, action, resource)"), policy("c"), TEMPLATE, links=[link("l")])
    assert ids(edited) == ["a", "c", "l"]
    assert image(edited) == image(written)


def test_entities_of_edits_take_the_place_of_the_files() -> None:
    """A removed entity is gone as if no document held it: who names it as parent still does."""
    files = texts(policy("a"), entities=[entity("x", "y"), entity("y", "z"), entity("w")])
    edits = [Edit("entity", "y", "U"), Edit("entity", "w", "U", text=json.dumps(entity("w", "x")))]
    edited = SourceTexts(files.policies, entities=files.entities, edits=edits)
    assert image(edited) == image(texts(policy("a"), entities=[entity("x", "y"), entity("w", "x")]))


def test_a_set_without_entities_takes_those_of_edits() -> None:
    """The image is what the same entities in a file make."""
    edits = [Edit("entity", "w", "U", text=json.dumps(entity("w")))]
    assert image(texts(policy("a"), edits=edits)) == image(texts(policy("a"), entities=[entity("w")]))


def test_a_removal_of_what_the_files_do_not_hold_is_not_needed() -> None:
    """Known when the files have been seen; one that hides something is needed."""
    edits = [Edit("policy", "a"), Edit("policy", "gone"), Edit("entity", "gone", "U"), Edit("entity", "x", "U")]
    overlay = Overlay(edits)
    files = texts(policy("a"), policy("b"), entities=[entity("x")], edits=edits)
    compile_texts(files, allow_empty=True, overlay=overlay)
    assert overlay.unneeded() == [edits[1], edits[2]]


def test_what_an_edit_breaks_is_named() -> None:
    """A link of the files whose template an edit removed; an edit's own text by its place."""
    with pytest.raises(PolicyError, match=r"links.jsonl:1: link `l` names the template `share`, which does not exist"):
        compile_texts(texts(TEMPLATE, links=[link("l")], edits=[Edit("policy", "share")]), allow_empty=True)
    with pytest.raises(PolicyError, match=r"policy `x` \(edits:1:1\) cannot be parsed"):
        compile_texts(texts(policy("a"), edits=[Edit("policy", "x", text='@id("x") permit (1);')]), allow_empty=True)
    with pytest.raises(PolicyError, match="link `l` cannot be read"):
        Overlay([Edit("link", "l", text="{}")])


def test_a_file_of_edits_is_what_its_digest_says(tmp_path: Any) -> None:
    """Equal edits have equal files; one that was changed is refused with what to do."""
    edits = [put("a", by="ada", at_unix_s=7), Edit("entity", 'x"', "U")]
    named, raw = encoded(edits)
    path = tmp_path / named.file
    path.write_bytes(raw)
    assert (read_edits(str(tmp_path), named), named.count, encoded(edits)[0]) == (edits, 2, named)
    path.write_bytes(raw.replace(b"ada", b"bob"))
    with pytest.raises(RuleTableError, match="is not what its digest says; put it back, or forget all edits"):
        read_edits(str(tmp_path), named)
    path.unlink()
    with pytest.raises(RuleTableError, match="cannot be read: no such file"):
        read_edits(str(tmp_path), named)
