"""Policy sources: files and folders, read whole, with errors that name the file."""

import os

import pytest

from sidecar.errors import PolicyError
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.source import PolicySource, SourceFiles


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "b.cedar").write_text("b")
    (tmp_path / "policies" / "a.cedar").write_text("a")
    (tmp_path / "policies" / "note.txt").write_text("no")
    (tmp_path / "x.cedarschema").write_text("schema")
    (tmp_path / "entities.json").write_text("[]")
    (tmp_path / "links.jsonl").write_text("")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_names(folder):
    """Equal folders give equal texts, whatever order the file system lists them in."""
    texts = PolicySource(SourceFiles.in_folder(folder)).read()
    assert [os.path.basename(text.name) for text in texts.policies] == ["a.cedar", "b.cedar"]
    assert (texts.schema, texts.entities.text, texts.links.text) == ("schema", "[]", "")
    assert set(texts.digests()) == {
        str(folder / "policies" / "a.cedar"),
        str(folder / "policies" / "b.cedar"),
        str(folder / "entities.json"),
        str(folder / "links.jsonl"),
        "schema",
    }


def test_policies_may_lie_in_the_folder_itself(tmp_path):
    """A first policy needs no layout."""
    (tmp_path / "a.cedar").write_text("a")
    texts = PolicySource(SourceFiles.in_folder(tmp_path)).read()
    assert [text.text for text in texts.policies] == ["a"]
    assert (texts.schema, texts.entities, texts.links) == (None, None, None)


def test_several_schemas_are_ambiguous(folder):
    """Which one was meant is for people to say."""
    (folder / "y.cedarschema").write_text("")
    with pytest.raises(PolicyError, match=r"holds several schemas: `x\.cedarschema`, `y\.cedarschema`"):
        SourceFiles.in_folder(folder)


def test_what_cannot_be_read_is_named(tmp_path):
    """Missing, not UTF-8 or too large: the file and the cause."""
    (tmp_path / "bad.cedar").write_bytes(b"a\nb\n\xff")
    (tmp_path / "big.cedar").write_bytes(b"x" * 11)
    cases = {
        "gone.cedar": "gone.cedar` cannot be read: no such file or directory",
        "bad.cedar": "bad.cedar` is not UTF-8 (line 3, byte 4)",
        "big.cedar": "big.cedar` is larger than 10 bytes",
    }
    for name, problem in cases.items():
        source = PolicySource(SourceFiles([str(tmp_path / name)], limits=PolicyLimits(text_bytes_max=10)))
        with pytest.raises(PolicyError) as caught:
            source.read()
        assert problem in str(caught.value)


def test_an_empty_folder_is_refused_unless_that_is_asked_for(tmp_path):
    """PO-14: no policy denies everything, which must be meant."""
    with pytest.raises(PolicyError, match=r"no `\*\.cedar` file in .*; name one, or set `allow_empty`"):
        PolicySource(SourceFiles([str(tmp_path)])).read()
    assert PolicySource(SourceFiles([str(tmp_path)], allow_empty=True)).read().policies == []


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """A source names files; what stands in them counts when they are read."""
    source = PolicySource(SourceFiles([str(tmp_path / "later.cedar")]))
    assert str(source) == str(tmp_path / "later.cedar")
    (tmp_path / "later.cedar").write_text("now")
    assert source.read().policies[0].text == "now"
