"""The slow lane of a native door: calls that need Python."""

from typing_extensions import disjoint_base

@disjoint_base
class Lane:
    """A bounded table of calls between a door's loops and Python; `fastpath.listener.Listener.lane` is one."""

    def __new__(cls, loops: int, room: int) -> Lane: ...
    def take(self) -> tuple[int, str, bytes | None] | None:
        """Wait for the next call: (number, method, message), or None once the lane is closed and empty. Message None:
        the call with this number is over, nobody waits for it any more. One thread takes."""
    def answer(self, number: int, message: bytes | None = None, code: int = -1) -> bool:
        """Send a message, and with a `code` of 0 or more end the call with that gRPC status. False: it was over before.
        A message that its loop has not fetched yet is replaced by a newer one."""
    def waiting(self) -> int:
        """Calls that Python has not taken yet."""
    def close(self) -> None:
        """Refuse new calls and end `take`."""
