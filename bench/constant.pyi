"""What Envoy would pay if deciding cost nothing: the doors' own code around an answer that is always the same."""

def install(answer: bytes) -> None:
    """Every native door of this process answers `answer`. RuntimeError once fastpath.answers is imported."""
