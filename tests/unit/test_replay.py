"""Repeated requests: one answer per question, and only of the call that asked it."""

from fastpath.replay import ReplayFound, play

NEW, ANSWERED, PENDING = ReplayFound.REPLAY_NEW, ReplayFound.REPLAY_ANSWERED, ReplayFound.REPLAY_PENDING
REUSED = ReplayFound.REPLAY_REUSED


def test_an_answer_is_remembered_for_its_content_and_forgotten_after_a_minute() -> None:
    """The same question gets the same answer for 60 s; the same id with another question is refused."""
    assert play(
        [
            ("begin", "a", "x", 1, 0, b""),
            ("begin", "a", "x", 1, 1, b""),
            ("answer", "a", "x", 1, 1, b"yes"),
            ("begin", "a", "x", 1, 59, b""),
            ("begin", "a", "y", 1, 59, b""),
            ("begin", "b", "y", 1, 59, b""),
            ("begin", "a", "x", 1, 60, b""),
        ]
    ) == [(NEW, b""), (PENDING, b""), None, (ANSWERED, b"yes"), (REUSED, b""), (NEW, b""), (NEW, b"")]


def test_an_answer_by_an_older_generation_is_not_remembered_for_the_newer_one() -> None:
    """I1: a call that began before a publish must not leave its answer to those that ask after it."""
    assert play(
        [
            ("begin", "a", "x", 1, 0, b""),
            ("begin", "a", "x", 2, 0, b""),
            ("answer", "a", "x", 1, 0, b"by the first"),
            ("begin", "a", "x", 2, 0, b""),
            ("forget", "a", "x", 1, 0, b""),
            ("begin", "a", "x", 2, 0, b""),
            ("answer", "a", "x", 2, 0, b"by the second"),
            ("begin", "a", "x", 2, 0, b""),
        ]
    ) == [(NEW, b""), (NEW, b""), None, (PENDING, b""), None, (PENDING, b""), None, (ANSWERED, b"by the second")]
