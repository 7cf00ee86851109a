"""The demo: every scene goes as expected, and one that does not is shown and makes the command fail."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import pytest

from sidecar.demo import play
from sidecar.demo.scenes import SCENES, Scene

SCENES_MIN = 18  # what the demo promises


class EmptyStage:
    """A stage on which nothing runs."""

    def __init__(self, folder: Path, *, tasks: bool, overrides: Mapping[str, object]) -> None:
        self.folder = folder
        assert tasks
        assert overrides == {"listeners.listener": "native"}

    def __enter__(self) -> "EmptyStage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the next demo, which plays on an empty stage."""
    made = tmp_path / "stage"
    made.mkdir()
    monkeypatch.setattr(play, "Stage", EmptyStage)
    monkeypatch.setattr(play, "open_standing_tasks", lambda _: None)
    monkeypatch.setattr(play, "short_folder", lambda: made)
    return made


def _broken(_: object) -> str:
    raise RuntimeError("the scene broke")


GOOD = Scene("what goes well", "alice", "200", lambda _: "200")
WRONG = Scene("what goes wrong", "bob", "403 policy.none", lambda _: "200")
BROKEN = Scene("what breaks", "carol", "200", _broken)


@pytest.mark.envoy
def test_every_scene_goes_as_expected() -> None:
    """`remit demo` plays at least 18 scenes against a real Envoy, prints each, and ends with status 0."""
    assert len(SCENES) >= SCENES_MIN
    command = [sys.executable, "-m", "sidecar.cli", "demo"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(SCENES)} of {len(SCENES)} scenes as expected" in found.stdout
    shown = [line for line in found.stdout.splitlines() if line.startswith("ok  ")]
    assert shown == [f"ok   {scene.shows}" for scene in SCENES]
    assert not re.search(r"\bMISS\b", found.stdout)  # a word of its own: PERMISSION_DENIED is an answer


@pytest.mark.parametrize(
    ("scenes", "status", "words"),
    [
        ([GOOD], 0, "1 of 1 scenes as expected"),
        ([GOOD, WRONG], 1, "1 of 2 scenes as expected"),
        ([GOOD, BROKEN, GOOD], 1, "2 of 3 scenes as expected"),
    ],
)
def test_a_scene_that_goes_otherwise_makes_the_demo_fail(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scenes: list[Scene],
    status: int,
    words: str,
) -> None:
    """The demo can fail: a wrong answer and a scene that breaks are misses, and the logs are kept."""
    monkeypatch.setattr(play, "SCENES", scenes)
    assert play.main(stay=False) == status
    shown = capsys.readouterr().out
    assert words in shown
    assert ("MISS" in shown) is bool(status)
    assert folder.exists() is bool(status)


def test_a_miss_shows_expected_and_actual(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A newcomer reads what should have happened beside what did."""
    monkeypatch.setattr(play, "SCENES", [WRONG, BROKEN])
    play.main(stay=False)
    shown = capsys.readouterr().out
    assert "403 policy.none" in shown
    assert "RuntimeError: the scene broke" in shown
    assert "the scene broke" in (folder / "scenes.log").read_text()
