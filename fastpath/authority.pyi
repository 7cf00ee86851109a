"""What the control plane says of authority, in and out of the live state that calls are decided on."""

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import disjoint_base

STATES: tuple[str, ...]
"""States of a task: "open", "suspended", "completed", "cancelled", "expired", "revoked"."""
KINDS: dict[str, int]
"""Kinds of revocation by name: agent, class, task, tool, server, destination, credential, owner, trust_domain."""
MODES_BY_NAME: dict[str, int]
"""Modes of a revocation: deny, read_only, step_up."""

@disjoint_base
class Changes:
    """Changes that were read and are not in force yet: Live.prepare makes them. What is never put goes with them."""

    def __new__(cls, live: Live, changes: Sequence[tuple[str, Mapping[str, Any]]]) -> Changes: ...

@disjoint_base
class Live:
    """The state that calls are decided on, in native memory. Thread-safe; changed only by `apply`, `put` and `redo`.

    A call takes its lock twice, so a change that `apply` returned from is seen by every call that starts later.
    `namespace` is the Cedar namespace of Person, AgentClass, Server and Action; `reserve_s` is how long an allowed
    call may still be reported as not executed. `followed`: tasks end by the clock of the sidecar that is followed, and
    by our own only as long as that is ahead.
    """

    def __new__(cls, *, namespace: str = "", reserve_s: int = 300, followed: bool = False) -> Live: ...
    def apply(self, changes: Sequence[tuple[str, Mapping[str, Any]]], epoch: int) -> None:
        """Make all changes at once, and `epoch` the one in force. Times are Unix nanoseconds, ids at most 64 bytes.

        - "task" {id, agent, owner, purpose, state, parent, depth, max_depth, expires_unix_ns, calls, cost, bytes,
          scope} and optional {spent_calls, spent_cost, spent_bytes, over_calls, over_cost,
          over_bytes, attenuated, origin, on_behalf, rev, reset}: put or replace; calls, cost and bytes are what is
          left, -1 unlimited, over_.. what was spent beyond that. A known task keeps its live spending and never ends
          later than before, unless `reset` for the spending; its agent and parent are what they were.
        - "state" {id, state} and optional {rev} · "forget" {id}
        - "budget" {id, calls, cost, bytes}: added to what is left; what is taken beyond that is owed
        - "revoke" {kind, key, mode, reason, expires_unix_ns (0: until lifted)} and optional {left_ns: on the clock that
          nobody sets; else what the wall clock says}: until the later end of those that were put, and until both clocks
          have reached it; {revoked_unix_ns}: approvals that are older do not answer for it · "lift" {kind, key, mode}
        - "owner" {id, active}
        - "approval" {id, digest, agent, task (empty: of calls of no task), generation (of policies; 0: any), scope
          ("exact" or "class"), uses, expires_unix_ns, decided_unix_ns, data_level, data_labels, cost, self_approved,
          break_glass, state}: "granted" puts it in force, any other state takes it out. A call of a higher level or
          cost, or with another label, is not covered.

        A scope is {any_tool, tools, tool_groups, any_action, actions, methods (None: any), any_dest, destinations,
        zones, max_level, label_allow (None: any), label_deny, arg_rules [{tool, path, op, values}]}; `op` is eq, in,
        range, prefix, host_suffix or cidr. An empty list covers nothing. Raises ProtocolError, and changes nothing,
        for a change that cannot be read; MemoryError when what is in force is no longer complete.
        """
    def prepare(self, changes: Sequence[tuple[str, Mapping[str, Any]]]) -> Changes:
        """The changes as `put` takes them. ProtocolError for one that cannot be read."""
    def put(self, prepared: Sequence[Changes], epoch: int) -> None:
        """Make all that was prepared at once, each once and in this order; errors as of `apply`."""
    def put_fresh(self, boot_ns: int) -> None:
        """For state that follows another's: after this moment of CLOCK_BOOTTIME it is stale and calls get ERROR.
        0: our own state, always fresh."""
    def put_clock(self, *, boot_ns: int = 0, unix_ns: int = 0) -> None:
        """Inject the clocks (tests); 0 gives the real one back."""
    def put_floor(self, unix_ns: int) -> None:
        """The wall clock was here already: from now on it goes on from here at the latest. Of followed state: the wall
        clock of the other side is here now, whatever it said before."""
    @property
    def epoch(self) -> int: ...
    def counts(self) -> dict[str, int]:
        """How many tasks, revocations, owners (inactive) and approval digests are in memory."""
    def work(self) -> dict[str, int]:
        """{steps: rows walked so far, held_most: most changes under one hold of the lock} (tests)."""
    def open_tasks(self, agent: str) -> int:
        """How many open tasks the agent has at this moment."""
    def task(self, id_: str) -> dict[str, Any] | None:
        """{id, state, calls, cost, bytes (left), spent_.., over_.. (spent beyond what there was), ttl_ns} as of now."""
    def uses(self, approval: str) -> int | None:
        """How often the approval may still be used; None when it is not in force."""
    def snapshot(self) -> tuple[list[tuple[str, int, int, int]], list[tuple[str, int]]]:
        """([(task, calls, cost, bytes spent)], [(approval, uses left)]), of one moment."""
    def redo(self, effects: Sequence[tuple[int, str, int]]) -> None:
        """Add effects of a record to the state. Tasks and approvals that are not there are passed over."""
    def step_up(self, evaluation_id: str) -> dict[str, Any] | None:
        """What a recent STEP_UP was about: {digest, class_digest, task, reason, agent, action, resource_type, resource,
        destination, method, http_method, target, chain, data_level, data_labels, cost, unix_ns, generation,
        content_unseen, truncated, emergency_only}; None when it is too long ago.

        `target`: path and query of an HTTP call as sent. `content_unseen`: the call's body did not reach us whole and
        unaltered, so that no exact approval can ever fit it. `truncated`: some text is cut here; the digests are over
        the whole ones.
        `emergency_only`: it was a DENY by forbids that only a break-glass approval crosses (never those with @never).
        """
