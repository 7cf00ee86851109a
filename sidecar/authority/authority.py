"""Authority in one sidecar: the native view, the store behind it, who may change it, and what is said about it."""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc

from fastpath.authority import Live
from fastpath.journal import Journal
from sidecar.authority.answers import Repeat
from sidecar.authority.callers import Callers
from sidecar.authority.commands import still
from sidecar.authority.draft import QUEUE_AGENT, Caller, Draft, quoted
from sidecar.authority.errors import DeniedError, MissingError, StateError, StoreError
from sidecar.authority.follow import Follower
from sidecar.authority.followed import Followed
from sidecar.authority.load import JournalTail
from sidecar.authority.policies import AuthorityPolicies
from sidecar.authority.store import AuthorityStore, Note
from sidecar.config_authority import AuthorityConfig
from sidecar.errors import SidecarError
from sidecar.logs import event

log = logging.getLogger("remit.authority")

Result = TypeVar("Result")
EFFECT_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise StoreError(f"the authority store `{folder}` cannot be made: {cause}; mend `authority.store`") from None


class AgentOwner(NamedTuple):
    """Who answers for an agent, as the entity store has it."""

    id: str
    """Empty: nobody, or the store does not have the agent."""
    active: bool
    """Whether the store has the person, and does not say that they left."""


NOBODY = AgentOwner("", False)


class Authority:
    """`open` it once, `close` it once; all other methods are thread-safe."""

    def __init__(
        self,
        section: AuthorityConfig,
        journal: Journal,
        note: Note,
        changed: Callable[[], None],
        *,
        namespace: str = "",
        followed: Callable[[], grpc.Channel] | None = None,
        owner_of: Callable[[str], AgentOwner] = lambda agent: NOBODY,  # noqa: ARG005
        classes_of: Callable[[str], list[str]] = lambda agent: [],  # noqa: ARG005
    ) -> None:
        """`note` puts an event into the journal; `changed` is called when `problem` may have changed.

        `followed` makes a channel to the sidecar that `authority.follow` names; `owner_of` says who answers for an
        agent, and `classes_of` which classes it is in, by the entities in force.
        """
        self.section = section
        self.callers = Callers(section)
        self.live = Live(namespace=namespace, reserve_s=section.reserve_s, followed=section.follow is not None)
        folder = Path(section.store)
        # Before the policies make a folder in it: whoever makes it first says who may enter.
        _make_private(folder)
        self.policies = AuthorityPolicies(folder / "policies", section.policies, self.callers)
        self.store = AuthorityStore(
            folder,
            self.live,
            limits=section.limits,
            map_bytes_max=section.map_bytes,
            note=note,
            changed=changed,
        )
        self.effect_counts = [0] * (len(EFFECT_MS) + 1)
        """Revocations by how long they took from the request to being in force; see EFFECT_MS."""
        self.effect_ms_sum = 0.0
        self._journal = journal
        self._note = note
        self.owner_of = owner_of
        self.classes_of = classes_of
        self.follower: Follower | None = None
        if section.follow is not None and followed is not None:
            kept = Followed(folder, section.map_bytes)
            self.follower = Follower(section.follow, self.live, kept, followed, self._noted, changed)

    @property
    def problem(self) -> str:
        """Why nothing that needs this state may be decided; empty: it may."""
        return self.store.problem if self.follower is None else self.follower.problem

    def open(self) -> None:
        """Put in force what is stored, or follow; load who may change it. What fails is said and leaves `problem`."""
        if self.follower is not None:
            try:
                self.follower.start(JournalTail(self._journal))
            except SidecarError as error:
                event(log, "authority.not_loaded", logging.ERROR, cause=str(error))
            return
        try:
            self.store.open(JournalTail(self._journal))
        except SidecarError as error:
            self.store.problem = self.policies.problem = str(error)
            event(log, "authority.not_loaded", logging.ERROR, cause=str(error))
            return
        event(log, "authority.loaded", epoch=self.store.epoch, **self.live.counts())
        try:
            self.policies.load()
        except SidecarError as error:
            # Calls are decided all the same; only nobody can change anything.
            self.policies.problem = f"the authority's policies are refused: {error}"
            event(log, "authority.policies_refused", logging.ERROR, cause=str(error))

    def close(self) -> None:
        """Give everything back. May be called again."""
        if self.follower is not None:
            self.follower.stop()
        self.policies.stop()
        self.store.close()

    # ------------------------------------------------------------ for the services

    def require(self, caller: Caller, action: str, **asked: Any) -> None:
        """Raise DeniedError unless the policies let `caller` do this; a refusal is journaled."""
        self.refuse_following()
        try:
            self.policies.require(caller, action, **asked)
        except DeniedError:
            about = " ".join(f"{name}={quoted(value)}" for name, value in asked.items() if value)
            self._noted("authority.denied", f"by={quoted(caller.id)} action={action} {about}".strip())
            raise

    def looked(self, caller: Caller, action: str) -> None:
        """Somebody was shown something: that stands in the journal as well."""
        self._noted("authority.looked", f"by={quoted(caller.id)} action={action}")

    def _noted(self, name: str, detail: str) -> None:
        self._note(name, detail, self.live.epoch)

    def run(
        self,
        command: Callable[[Draft], Result],
        repeat: Repeat | None = None,
        pack: Callable[[Result], bytes] | None = None,
        unpack: Callable[[bytes], Result] | None = None,
        stands: Callable[[Draft, Result], bool] = still,
    ) -> Result:
        """As AuthorityStore.call. StateError for a sidecar that follows another one: changes are made there."""
        self.refuse_following()
        return self.store.call(command, repeat=repeat, pack=pack, unpack=unpack, stands=stands)

    def refuse_following(self) -> None:
        """StateError for a sidecar that follows another one: it holds no rows of its own."""
        if self.section.follow is not None:
            where = self.section.follow.address or self.section.follow.socket
            raise StateError(f"this sidecar follows the authority at `{where}`; ask there")

    def took(self, since_ns: int) -> None:
        """A revocation that was asked for at `since_ns` (monotonic) is in force now."""
        ms = (time.monotonic_ns() - since_ns) / 1e6
        self.effect_counts[bisect_left(EFFECT_MS, ms)] += 1
        self.effect_ms_sum += ms

    def step_up(self, evaluation_id: str) -> dict[str, Any]:
        """What a recent STEP_UP was about; MissingError when it is not known."""
        found = self.live.step_up(evaluation_id)
        if found is None:
            raise MissingError(
                f"`{evaluation_id}` is no recent answer STEP_UP; make the call again and ask with its new evaluation id"
            )
        return found

    def figures(self) -> dict[str, int]:
        """For the metrics."""
        counts = self.live.counts()
        return {
            "tasks": counts["tasks"],
            "revocations": counts["revocations"],
            "owners_disabled": counts["owners"],
            "approvals_granted": counts["approvals"],
            "approvals_pending": 0 if self.problem or self.follower is not None else self.store.count(QUEUE_AGENT),
        }
