"""Everything that decides, wired together: identity, generation, mapping, journal, Pdp, shipper.

`Runtime` owns them all. Changes arrive from the identity source, from reloads and from the journal, and each becomes
one `put_*` on the Pdp; whatever fails leaves the last good state in force.
"""

import contextlib
import datetime
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc

from fastpath.call import Pdp
from fastpath.journal import Journal
from fastpath.peer import VerifiedPeer
from fastpath.verify import Verifier
from sidecar import config_file, logs
from sidecar.authority.authority import Authority
from sidecar.config import Config
from sidecar.decisions.events import event_record
from sidecar.decisions.shipper import Shipper
from sidecar.errors import ConfigError, JournalError, SidecarError
from sidecar.identity.message import Choice
from sidecar.identity.peers import PeerResolver
from sidecar.identity.snapshot import Identity
from sidecar.identity.source import WorkloadSource
from sidecar.identity.upstream import Upstream
from sidecar.logs import event
from sidecar.policy.jobs import Change
from sidecar.policy.store import Published
from sidecar.readiness import NO_JOURNAL, STARTING, Conditions, Freshness, reason
from sidecar.rules import Rules
from sidecar.services.errors import ErrorCounts

log = logging.getLogger("remit.runtime")

PREPARE_POLL_S = 0.02
WATCH_S = 0.25  # how late stale policies or a full journal may be noticed; a call notices a full journal at once
LEFT_S = 5.0
"""For a process that died to end: its connection to us can be closed before its lock of the journal is."""
LEFT_LOOK_S = 0.01
FLUSH_S = 5.0  # time for the last records to reach the collector at a stop
# Sections that are open sockets and files: a reload cannot change them.
FIXED = ("name", "identity", "listeners", "journal", "authority", "upstream", "control", "metrics", "limits", "process")
FIXED_POLICY = ("store", "evaluation")


class Reloaded(NamedTuple):
    """What is in force after a reload; `problems` say why it was refused, none: it was applied."""

    generation: int
    digest: str
    changed: bool
    problems: tuple[str, ...]


class Runtime:
    """One sidecar's parts. `start` it once, `close` it once; all other methods are thread-safe.

    Raises ConfigError or JournalError when the parts cannot be made.
    """

    def __init__(self, config: Config, *, deferred: bool = False) -> None:
        """`deferred`: another process has the journal; prepare everything else, until `open_journal`."""
        self.config = config
        self._deferred = deferred
        self.errors = ErrorCounts()
        self.reloads = {"applied": 0, "refused": 0}
        self.last_problem = ""
        self.not_ready = STARTING
        self._listeners: list[Callable[[bool], None]] = []
        self._pep_listeners: list[Callable[[frozenset[str]], None]] = []
        self._reload_listeners: list[Callable[[bool], None]] = []
        self.looks = 0
        """Times that the watcher looked at readiness; stands still when something that it takes hangs."""
        self._reload_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._shipping = False
        self._was_stale = False
        self._fresh = Freshness()
        self.journal = _make_journal(config)
        if not deferred:
            _open_journal(self.journal)
        self.pdp = _make_pdp(config, self.journal)
        self.rules = Rules(config, self.pdp)
        self.source = WorkloadSource(config.workload_api, choice=Choice(spiffe_id=config.identity.spiffe_id))
        self.verifier = Verifier()
        self._resolver = PeerResolver(self.verifier, _peps(config))
        self._followed: Upstream | None = None
        self.authority = self._make_authority(config)
        self._upstream: Upstream | None = None
        self.shipper: Shipper | None = None
        if not deferred:
            self._upstream, self.shipper = self._make_shipper()
        self._watcher = threading.Thread(target=self._watch, name="readiness", daemon=True)

    def start(self) -> None:
        """Begin to fetch our identity and to watch; calls are answered ERROR until all that is needed is there."""
        self.source.feed(self.verifier)
        self.source.subscribe(self._identity_changed)
        self.source.start()
        self._watcher.start()

    def prepare(self, timeout_s: float) -> None:
        """Load, and get ready but for the journal. ConfigError when that takes longer than `timeout_s`."""
        self.load()
        give_up = time.monotonic() + timeout_s
        self.refresh()
        while self.not_ready != NO_JOURNAL:
            if time.monotonic() > give_up:
                raise ConfigError(f"not ready within {timeout_s:g} s: {self.not_ready}; the running sidecar goes on")
            self._wake.wait(PREPARE_POLL_S)
            self.refresh()

    def open_journal(self, lock: int) -> None:
        """Take the journal from the process that had it, by the descriptor of its lock; -1: it left it behind."""
        _open_journal(self.journal, lock, 0.0 if lock >= 0 else LEFT_S)
        with self._reload_lock:
            self._catch_up()
        self._open_authority()
        self._upstream, self.shipper = self._make_shipper()
        self.refresh()
        identity = self.source.current()
        if identity is not None:
            self._identity_changed(identity)
        self._record("generation.in_force", "taken over")

    def _catch_up(self) -> None:
        """Until it gave the journal away that process edited and reloaded: what it said is in force is so here."""
        fresh = self._loaded_since()
        if fresh != self.config and self.rules.reopen(fresh):
            self._apply(fresh)
        else:
            self.rules.reopen(self.config)

    def _loaded_since(self) -> Config:
        """The file's configuration when what is published was built from it; else the one that we began with."""
        try:
            fresh = config_file.load(self.config.file)
            _refuse_fixed(self.config, fresh)
            if fresh == self.config or self.rules.built_from(fresh):
                return fresh
            cause = "its policies are not those that decide"
        except SidecarError as error:
            cause = str(error)
        told = "the configuration has changed and is not in force; run remit reload"
        event(log, "config.not_loaded", logging.WARNING, text=told, cause=cause)
        return self.config

    def end_changes(self) -> None:
        """Refuse reloads and edits from now on; one that is too far to be refused has ended when this returns."""
        self.rules.stop()
        with self._reload_lock:
            pass

    def close_authority(self) -> None:
        """Leave the authority store to the process that comes next."""
        if self.authority is not None:
            self.authority.close()

    def stop_shipping(self) -> None:
        """Leave what is not shipped to the process that comes next."""
        if self.shipper is not None and self._shipping:
            self._shipping = False
            self.shipper.stop(0)

    def close(self) -> None:
        """Ship what is left for a moment, then give everything back."""
        self._closing = True
        self._wake.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self.source.stop()
        self.rules.close()
        if self.authority is not None:
            self.authority.close()
        if self.shipper is not None and self._shipping:
            shipped = self.shipper.stop(FLUSH_S)
            event(log, "stream.stopped", complete=shipped)
        for tls in (self._upstream, self._followed):
            if tls is not None:
                tls.close()
        self.journal.close()

    # ------------------------------------------------------------ who calls

    def tls_peer(self, context: grpc.ServicerContext) -> VerifiedPeer:
        """The caller of a mutual TLS door."""
        return self._resolver.from_auth_context(context.auth_context(), context.peer())

    def socket_peer(self, spiffe_id: str) -> VerifiedPeer:
        """The caller of a Unix socket that belongs to `spiffe_id`."""
        return self._resolver.for_socket(spiffe_id, os.geteuid())

    def on_peps(self, callback: Callable[[frozenset[str]], None]) -> None:
        """Call `callback` now and at every reload with the SPIFFE IDs that may assert another principal."""
        with self._reload_lock:
            self._pep_listeners.append(callback)
            callback(_peps(self.config))

    # ------------------------------------------------------------ what is in force

    def load(self) -> None:
        """The first load. A source that cannot be published is reported, and the last published generation serves."""
        if not self._deferred:
            self._open_authority()
        with self._reload_lock:
            try:
                changed = self.rules.publish(self.config)
                self._fresh.loaded()
                self._record("generation.in_force", "start" if changed else "unchanged")
            except SidecarError as error:
                self._refused("generation.refused", error)
                if self.rules.reopen(self.config):
                    self._record("generation.in_force", "the last one published")
                    told = "what is configured could not be published; the last published generation decides"
                    event(log, "generation.old", logging.WARNING, text=told, generation=self.rules.generation)
        self.refresh()

    def on_reload(self, callback: Callable[[bool], None]) -> None:
        """Call `callback` with True when a reload begins and with False when it is over, applied or refused."""
        with self._reload_lock:
            self._reload_listeners.append(callback)

    def reload(self) -> Reloaded:
        """Load configuration, policies, entities and links again: all of it comes into force, or nothing."""
        with self._reload_lock, self._told_of_reload():
            problems: tuple[str, ...] = ()
            changed = False
            try:
                fresh = config_file.load(self.config.file)
                _refuse_fixed(self.config, fresh)
                changed = self.rules.publish(fresh)
                self._apply(fresh)
                self._record("reload.applied", self.rules.digest)
            except SidecarError as error:
                problems = error.problems if isinstance(error, ConfigError) else (str(error),)
                self._refused("reload.refused", error)
            self.reloads["refused" if problems else "applied"] += 1
        self.refresh()
        return Reloaded(self.rules.generation, self.rules.digest, changed, problems)

    def edit(self, change: Change, by: str) -> Published:
        """Put a change of single policies, links or entities in force. Raises PolicyError or RuleTableError as
        Rules.edit does.
        """
        with self._reload_lock:
            try:
                done = self.rules.edit(self.config, change, by)
            except SidecarError as error:
                event(log, "edit.refused", logging.ERROR, cause=str(error), by=by, generation=self.rules.generation)
                self._journal_event("edit.refused", f"{by}: {type(error).__name__}")
                raise
            self._record("edit.applied", f"{by}: {', '.join(edit.title for edit in done.edits)}")
        self.refresh()
        return done

    @contextlib.contextmanager
    def _told_of_reload(self) -> Iterator[None]:
        for callback in self._reload_listeners:
            callback(True)
        try:
            yield
        finally:
            for callback in self._reload_listeners:
                callback(False)

    def _apply(self, fresh: Config) -> None:
        """The rest of a reload: nothing here can fail."""
        logs.setup(fresh.log.level, fresh.log.format)
        self._resolver = PeerResolver(self.verifier, _peps(fresh))
        self.config = fresh
        for callback in self._pep_listeners:
            callback(_peps(fresh))
        self.last_problem = ""
        self._fresh.loaded()

    def _refused(self, name: str, error: SidecarError) -> None:
        self.last_problem = str(error)
        event(log, name, logging.ERROR, cause=str(error), generation=self.rules.generation)
        self._journal_event(name, type(error).__name__)

    def _record(self, name: str, detail: str) -> None:
        event(log, name, detail=detail, generation=self.rules.generation)
        self._journal_event(name, detail)

    def _journal_event(self, name: str, detail: str) -> None:
        """A change of what decides stands in the same sequence as the decisions."""
        self._append(name, detail, self.epoch)

    def _append(self, name: str, detail: str, epoch: int) -> None:
        self.journal.append_bytes(event_record(name, detail, generation=self.rules.generation, epoch=epoch))

    def _open_authority(self) -> None:
        """Load what calls are decided by. It stands on the journal: what calls spent is recorded there."""
        if self.authority is not None:
            self.authority.open()

    def _make_authority(self, config: Config) -> Authority | None:
        """The live state that calls are decided by, empty and not ready until it is loaded; None: none is enforced."""
        if config.authority is None:
            return None
        follow = config.authority.follow
        followed: Any = None
        if follow is not None and follow.address:
            self._followed = Upstream(self.source, self.verifier, follow.address, [follow.spiffe_id])
            followed = self._followed.channel
        elif follow is not None:
            followed = lambda: grpc.insecure_channel(f"unix:{follow.socket}")  # noqa: E731  typed by its use
        made = Authority(
            config.authority,
            self.journal,
            self._append,
            self.refresh,
            namespace=config.mapping.namespace,
            followed=followed,
            owner_of=self.rules.owner_of,
            classes_of=self.rules.classes_of,
        )
        self.pdp.put_authority(made.live)
        return made

    @property
    def epoch(self) -> int:
        """The revocation epoch in force; 0 without authority."""
        return self.authority.live.epoch if self.authority is not None else 0

    # ------------------------------------------------------------ readiness

    def on_ready(self, callback: Callable[[bool], None]) -> None:
        """Call `callback` now and at every change with whether calls are decided."""
        with self._state_lock:
            self._listeners.append(callback)
            callback(not self.not_ready)

    def refresh(self) -> None:
        """Put readiness and bundle generation in force as they are now."""
        # Read and put under one lock: what an older look found must not overwrite what a newer one did.
        with self._state_lock:
            before, self.not_ready = self.not_ready, reason(self._conditions())
            # The verifier's number, not the source's: peers are verified against what the verifier has.
            self.pdp.put_state(epoch=self.epoch, bundle_generation=self.verifier.generation, not_ready=self.not_ready)
            if before != self.not_ready:
                event(log, "readiness", ready=not self.not_ready, reason=self.not_ready)
                for callback in self._listeners:
                    callback(not self.not_ready)

    def _conditions(self) -> Conditions:
        stale = self._stale()
        return Conditions(
            identity=self.source.state(),
            generation=self.rules.generation > 0,
            journal=self.journal.writable(),
            fresh=not stale or self.config.policy.on_stale == "serve",
            authority=self.authority is None or not self.authority.problem,
        )

    def _stale(self) -> bool:
        """Whether the policies are older than the configuration allows; a change of that is an event."""
        stale = self.rules.generation > 0 and self._fresh.stale(self.config.policy.max_age_s)
        if stale != self._was_stale:
            self._was_stale = stale
            event(log, "policy.stale" if stale else "policy.fresh", logging.WARNING if stale else logging.INFO)
        return stale

    def _identity_changed(self, identity: Identity | None) -> None:
        self.refresh()
        if identity is None:
            return
        ends = datetime.datetime.fromtimestamp(identity.not_after_s, datetime.UTC)
        self._record("identity.changed", f"{identity.spiffe_id} until {ends:%Y-%m-%dT%H:%M:%SZ}")
        # A stream says whose it is at its start, so the first one waits for our name.
        if self.shipper is not None and not self._shipping:
            self._shipping = True
            self.shipper.start()

    def _watch(self) -> None:
        while not self._closing:
            self._wake.wait(WATCH_S)
            self.refresh()
            self.looks += 1

    # ------------------------------------------------------------ the stream upstream

    def _make_shipper(self) -> tuple[Upstream | None, Shipper | None]:
        up = self.config.upstream
        if up is None:
            return None, None
        tls = Upstream(self.source, self.verifier, up.address, [up.spiffe_id]) if up.address else None
        make: Any = tls.channel if tls is not None else lambda: grpc.insecure_channel(f"unix:{up.socket}")
        return tls, Shipper(self.journal, make, sidecar=self.name)

    def name(self) -> str:
        """Our name in the decision stream."""
        identity = self.source.current()
        return self.config.name or (identity.spiffe_id if identity is not None else "")


def _make_journal(config: Config) -> Journal:
    section = config.journal
    try:
        return Journal(
            section.dir,
            segment_bytes=section.segment_bytes,
            cap_bytes=section.cap_bytes,
            on_full=section.on_full,
            sync=section.sync,
            sync_ms=section.sync_ms,
            deferred=True,
        )
    except ValueError as error:
        raise JournalError(f"cannot open the journal `{section.dir}`: {str(error).lower()}; mend `journal`") from error


def _open_journal(journal: Journal, lock: int = -1, wait_s: float = 0.0) -> None:
    """Open it; who still has it after `wait_s` keeps it."""
    folder = journal.directory
    give_up = time.monotonic() + wait_s
    try:
        while not _opened(journal, lock):
            if time.monotonic() >= give_up:
                raise JournalError(f"another process has the journal `{folder}`; stop it, or name another folder")
            time.sleep(LEFT_LOOK_S)
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise JournalError(f"cannot open the journal `{folder}`: {cause.lower()}; mend `journal`") from error


def _opened(journal: Journal, lock: int) -> bool:
    """Whether no other process has it."""
    try:
        journal.open(lock)
    except BlockingIOError:
        return False
    return True


def _make_pdp(config: Config, journal: Journal) -> Pdp:
    limits = config.limits
    return Pdp(
        journal=journal,
        budget_ms=limits.budget_ms,
        strict_path=limits.strict_path,
        headers_max=limits.headers,
        path_bytes_max=limits.path_bytes,
        mcp_status=limits.mcp_status,
        identity_headers=limits.identity_headers,
        arena_bytes=limits.arena_bytes,
    )


def _peps(config: Config) -> frozenset[str]:
    """Who may assert another principal: the listed PEPs, and the Envoys that Unix sockets belong to."""
    own = {door.spiffe_id for _, door in config.listeners.envoy_doors if door.socket}
    return frozenset(own | set(config.peps))


def _refuse_fixed(old: Config, new: Config) -> None:
    """Raise ConfigError when a reload would have to change what only a start can."""
    changed = [name for name in FIXED if getattr(old, name) != getattr(new, name)]
    changed += [f"policy.{name}" for name in FIXED_POLICY if getattr(old.policy, name) != getattr(new.policy, name)]
    lines = tuple(f"`{name}`: changes only with a restart; restart the sidecar, or put it back" for name in changed)
    if lines:
        raise ConfigError("; ".join(lines), lines)
