"""Files of the journal, as the kernel sees them."""

def overwrites_in_place(path: str) -> bool:
    """Whether writing over a block of this file needs no new one, so that a full disk cannot make it fail.

    True for ext4, XFS and tmpfs; file systems that copy on write, and those that we do not know, give False. OSError
    when the file is not there.
    """
