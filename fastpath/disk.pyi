"""Files of the journal, as the kernel sees them."""

def has_alone(fd: int) -> bool:
    """Whether no other descriptor of the file is open anywhere."""
