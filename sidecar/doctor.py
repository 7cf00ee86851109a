"""What `remit doctor` looks at: each finding says what was checked, how it stands, and what to do."""

import dataclasses
import os
import stat
import time
from collections.abc import Iterator

from sidecar._proto.remit.control.v1 import control_pb2
from sidecar.config import Config, sockets
from sidecar.errors import ConfigError, SidecarError
from sidecar.policy.source import PolicySource
from sidecar.probes import Probe, State, disk, kernel, run, texts, unknown, versions
from sidecar.services.sockets import check_folders

SVID_SHORT_S = 300  # an SVID this close to its end should have been rotated long ago


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report. `good` None: nothing to judge, only to know, or with `unknown` it could not be judged."""

    what: str
    good: bool | None
    state: str
    advice: str = ""
    unknown: bool = False


def examine(config: Config, live: control_pb2.StatusResponse | None) -> Iterator[Finding]:
    """All findings; `live` is the running sidecar's status, or None when it does not run."""
    yield Finding("configuration", True, config.file)
    yield from _policies(config)
    yield from _folders(config)
    yield from _workload_api(config)
    yield from _process(config, live)
    if live is not None:
        yield from _identity(live)
        yield from _generation(live)
        yield from _upstream(config, live)
    yield from libraries(config)


def libraries(config: Config | None) -> Iterator[Finding]:
    """Versions of all that takes part, and what each library and the kernel do when they are tried (sidecar.probes)."""
    for name, found in (versions.native() | versions.packages() | {"kernel": versions.kernel()}).items():
        yield Finding(f"version: {name}", None, found)
    yield Finding("version: python's ssl", None, versions.python_ssl())
    for what, verdict in run(probes_of(config)):
        good = {State.OK: True, State.UNSAFE: False, State.UNKNOWN: None}[verdict.state]
        yield Finding(what, good, verdict.found, verdict.advice, verdict.state is State.UNKNOWN)


def probes_of(config: Config | None) -> Iterator[Probe]:
    """Every probe; without a configuration its folders are not tried."""
    yield from kernel.probes(config)
    if config is not None:
        yield from disk.probes(config.journal.dir, config.policy.store)
    yield from texts.probes()
    try:
        from sidecar.probes import http2, peers, tls
    except ImportError as error:
        missing = unknown(f"this build has no native doors (`{error.name}` is missing)", "run make setup")
        yield Probe("nghttp2 and openssl", lambda: missing)
        return
    yield from (*http2.probes(), *tls.probes(), *peers.probes())


def _policies(config: Config) -> Iterator[Finding]:
    try:
        source = PolicySource(config.policy)
        source.read()
        yield Finding("policy source", True, str(source))
    except SidecarError as error:
        yield Finding("policy source", False, str(error), "mend the files, then run remit policy check")


def _folders(config: Config) -> Iterator[Finding]:
    for field, path in sockets(config):
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            yield Finding(field, None, f"`{folder}` is made at start")
            continue
        try:
            check_folders(folder)
            yield Finding(field, True, path)
        except ConfigError as error:
            yield Finding(field, False, str(error))
    stores = [("journal.dir", config.journal.dir), ("policy.store", config.policy.store)]
    stores += [("authority.store", config.authority.store)] if config.authority is not None else []
    for field, folder in stores:
        at = folder
        while not os.path.exists(at):
            at = os.path.dirname(at)
        good = os.access(at, os.W_OK | os.X_OK)
        yield Finding(field, good, folder, "" if good else f"user {os.geteuid()} cannot write `{at}`; change its owner")


def _workload_api(config: Config) -> Iterator[Finding]:
    path = config.workload_api.removeprefix("unix://").removeprefix("unix:")
    try:
        good = stat.S_ISSOCK(os.stat(path).st_mode) and os.access(path, os.W_OK)
        state, advice = path, "" if good else "it is not a socket that we may use; check the path and its mode"
    except OSError as error:
        good, state = False, f"`{path}`: {(error.strerror or '').lower()}"
        advice = "start the SPIFFE agent, or mend `identity.workload_api`"
    yield Finding("workload api", good, state, advice)


def _process(config: Config, live: control_pb2.StatusResponse | None) -> Iterator[Finding]:
    if live is None:
        yield Finding("sidecar", False, "does not run", f"remit serve --config {config.file}")
        return
    yield Finding("sidecar", live.ready, "ready" if live.ready else live.not_ready, _ADVICE.get(live.not_ready, ""))
    if live.journal.problem:
        yield Finding("journal", False, live.journal.problem, _JOURNAL_ADVICE)
    if live.last_reload_problem:
        yield Finding("last reload", False, live.last_reload_problem, "mend it, then run remit reload")
    if live.config_file != config.file:
        yield Finding("configuration in force", False, live.config_file, "this is not the file named here")


_JOURNAL_ADVICE = (
    "look at the disk of `journal.dir` and at the collector; after a sync that failed, start the sidecar again"
)
_ADVICE = {
    "not_ready.svid": "no valid SVID: is this workload registered with the SPIFFE server?",
    "not_ready.svid_expired": "the SPIFFE agent did not rotate our SVID in time: look at its log",
    "not_ready.starting": "it has not looked at its parts yet: ask again",
    "not_ready.bundle": "no trust bundle: check the SPIFFE server",
    "not_ready.generation": "no policies in force: run remit policy check, then remit reload",
    "not_ready.policy_stale": "the last good load is older than `policy.max_age_s`: run remit reload",
    "not_ready.journal": "decisions cannot be recorded: look at the disk of `journal.dir` and at the collector",
    "not_ready.authority": "the store of tasks and revocations cannot be used, or who is followed is silent: look at"
    " the log for `authority.` and `follow.`",
}


def _identity(live: control_pb2.StatusResponse) -> Iterator[Finding]:
    left = live.svid_not_after_unix - int(time.time())
    good = left > SVID_SHORT_S
    advice = "" if good else "the SPIFFE agent did not rotate it in time; look at its log"
    yield Finding("svid", good, f"{live.spiffe_id or 'none'}, {max(left, 0)} s left", advice)
    yield Finding("trust domains", bool(live.trust_domains), ", ".join(live.trust_domains) or "none")


def _generation(live: control_pb2.StatusResponse) -> Iterator[Finding]:
    yield Finding("generation", live.generation > 0, f"{live.generation} {live.generation_digest}")


def _upstream(config: Config, live: control_pb2.StatusResponse) -> Iterator[Finding]:
    if config.upstream is None:
        yield Finding("upstream", None, "none configured: decisions stay in the journal")
        return
    where = config.upstream.address or config.upstream.socket
    state = f"{where}, {live.stream.lag} records behind"
    advice = "" if live.stream.connected else "start the collector (remit collect), or mend `upstream`"
    yield Finding("upstream", live.stream.connected, state, advice)
