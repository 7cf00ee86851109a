"""A small SPIFFE Workload API server: the X.509 profile, for the demo, the tests and users without SPIRE.

`python -m sidecar.demo.workload_api --config FILE` serves one Unix socket per identity: whoever may enter the
socket's folder is that workload, so there is no attestation beyond the file system's. With SPIRE, only the socket
path in the sidecar's configuration changes. SIGHUP rotates every SVID, SIGTERM ends it.

    folder: /run/remit-demo            # gets mode 0700; sockets are relative to it
    svid_ttl_s: 3600                   # rotated at half of it
    trust_domains:
      demo.test: {federates_with: [partner.test]}
      partner.test: {}
    identities:
      - {socket: agent-a.sock, spiffe_id: "spiffe://demo.test/agent/a"}
      - {files: envoy, spiffe_id: "spiffe://demo.test/envoy", dns: [localhost]}   # svid.pem, key.pem, bundle.pem
"""

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import grpc
import msgspec
from spiffe._proto import workload_pb2

from sidecar.demo.ca import SVID_TTL_S, Authority, Svid, to_pem
from sidecar.errors import ConfigError

SERVICE = "SpiffeWorkloadAPI"
HEADER = ("workload.spiffe.io", "true")
STREAMS_MAX = 32
NO_IDENTITY = (grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
SERVER_OPTIONS = (
    # Clients ping to notice a hung server; the default would call their pings abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)


def svid_message(
    svids: Sequence[Svid | tuple[Svid, str]], bundle: Sequence[bytes], federated: Mapping[str, Sequence[bytes]]
) -> workload_pb2.X509SVIDResponse:
    """The response that gives `svids` (each alone or with its hint), the roots of their domain and foreign ones."""
    message = workload_pb2.X509SVIDResponse()
    for entry in svids:
        svid, hint = entry if isinstance(entry, tuple) else (entry, "")
        message.svids.add(
            spiffe_id=svid.spiffe_id,
            x509_svid=b"".join(svid.chain_der),
            x509_svid_key=svid.key_der,
            bundle=b"".join(bundle),
            hint=hint,
        )
    for name, roots in federated.items():
        message.federated_bundles[f"spiffe://{name}"] = b"".join(roots)
    return message


class WorkloadApi:
    """One socket and what it answers now. Each stream gets the present answer at once and every later one.

    The JWT and WIT profiles are not registered, so they are UNIMPLEMENTED. `seen` is the metadata of every call.
    """

    def __init__(self, path: str | Path, options: Sequence[tuple[str, int]] = SERVER_OPTIONS) -> None:
        self.path = Path(path)
        self._options = tuple(options)
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()
        self._answer: bytes | tuple[grpc.StatusCode, str] = NO_IDENTITY
        self._version = 0
        self._ending = 0
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Serve; the socket is there when this returns. ConfigError when it cannot be made."""
        self._server = grpc.server(ThreadPoolExecutor(STREAMS_MAX, "workload-api"), options=self._options)
        rpcs = {
            "FetchX509SVID": grpc.unary_stream_rpc_method_handler(self._fetch_svid),
            "FetchX509Bundles": grpc.unary_stream_rpc_method_handler(self._fetch_bundles),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, rpcs),))
        try:
            self._server.add_insecure_port(f"unix:{self.path}")
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on `{self.path}`: {error}") from error
        self.path.chmod(0o660)
        self._server.start()

    def stop(self, grace_s: float | None = None) -> None:
        """End every stream and the socket."""
        self.end_streams()
        if self._server is not None:
            self._server.stop(grace_s).wait()
            self._server = None
        self.path.unlink(missing_ok=True)

    def push(self, message: workload_pb2.X509SVIDResponse) -> None:
        """Answer with `message` from now on."""
        self.push_raw(message.SerializeToString())

    def push_raw(self, raw: bytes) -> None:
        """Answer with these bytes from now on, whatever they are."""
        self._set(raw)

    def deny(self) -> None:
        """Take the identity back: PERMISSION_DENIED to open streams and to new ones."""
        self._set(NO_IDENTITY)

    def fail(self, code: grpc.StatusCode, details: str = "injected") -> None:
        """End open streams and new ones with `code`."""
        self._set((code, details))

    def end_streams(self) -> None:
        """End the open streams with OK; new ones are answered as before."""
        with self._changed:
            self._ending += 1
            self._changed.notify_all()

    def _set(self, answer: bytes | tuple[grpc.StatusCode, str]) -> None:
        with self._changed:
            self._answer = answer
            self._version += 1
            self._changed.notify_all()

    def _fetch_svid(self, _: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from self._answers("FetchX509SVID", context)

    def _fetch_bundles(self, _: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for raw in self._answers("FetchX509Bundles", context):
            message = workload_pb2.X509SVIDResponse.FromString(raw)
            bundles = dict(message.federated_bundles)
            bundles.update({"/".join(s.spiffe_id.split("/")[:3]): s.bundle for s in message.svids})
            yield workload_pb2.X509BundlesResponse(bundles=bundles).SerializeToString()

    def _answers(self, method: str, context: grpc.ServicerContext) -> Iterator[bytes]:
        metadata = dict(context.invocation_metadata())
        self.seen.append((method, metadata))
        if metadata.get(HEADER[0]) != HEADER[1]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        context.add_callback(self._wake)
        with self._changed:
            version, ending = -1, self._ending
        while True:
            with self._changed:
                while version == self._version and ending == self._ending and context.is_active():
                    self._changed.wait()
                if self._ending != ending or not context.is_active():
                    return
                version, answer = self._version, self._answer
            if not isinstance(answer, bytes):
                context.abort(*answer)
                return
            yield answer

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


# ---------------------------------------------------------------- the server of a whole deployment


class TrustDomain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A trust domain that this server is the authority of."""

    federates_with: list[str] = []


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An identity, given out over a socket or kept in a folder of files (workloads that read files, as Envoy can)."""

    spiffe_id: str
    socket: str = ""
    files: str = ""
    dns: list[str] = []


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file that `--config` names."""

    folder: str
    trust_domains: dict[str, TrustDomain]
    identities: list[Entry]
    svid_ttl_s: int = SVID_TTL_S


def read_config(path: str | Path) -> Config:
    """The configuration in a YAML file; ConfigError names what is wrong with it."""
    try:
        config = msgspec.yaml.decode(Path(path).read_bytes(), type=Config)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"`{path}` cannot be used: {error}") from error
    for entry in config.identities:
        if _domain(entry.spiffe_id) not in config.trust_domains:
            raise ConfigError(f"`{path}`: the trust domain of `{entry.spiffe_id}` is not under `trust_domains`")
        if bool(entry.socket) == bool(entry.files):
            raise ConfigError(f"`{path}`: `{entry.spiffe_id}` needs `socket` or `files`, and not both")
    for name in {n for domain in config.trust_domains.values() for n in domain.federates_with}:
        if name not in config.trust_domains:
            raise ConfigError(f"`{path}`: `federates_with` names `{name}`, which is not under `trust_domains`")
    return config


class Deployment:
    """Authorities, sockets and files of one configuration; `rotate` gives every workload a new SVID."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._folder = Path(config.folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self.authorities = {name: Authority(name) for name in config.trust_domains}
        self.apis = {e.socket: WorkloadApi(self._folder / e.socket) for e in config.identities if e.socket}

    def start(self) -> None:
        """Give out the first SVIDs and serve."""
        self.rotate()
        for api in self.apis.values():
            api.start()

    def stop(self) -> None:
        """End every socket; the files stay."""
        for api in self.apis.values():
            api.stop()

    def rotate(self) -> None:
        """A new key and SVID for every identity; streams get theirs at once, files are replaced by rename."""
        for entry in self._config.identities:
            name = _domain(entry.spiffe_id)
            authority = self.authorities[name]
            svid = authority.issue(entry.spiffe_id, dns=entry.dns, ttl_s=self._config.svid_ttl_s)
            federated = {n: [self.authorities[n].root_der] for n in self._config.trust_domains[name].federates_with}
            if entry.socket:
                self.apis[entry.socket].push(svid_message([svid], [authority.root_der], federated))
            else:
                _write_files(self._folder / entry.files, svid, authority, federated)


def _write_files(folder: Path, svid: Svid, authority: Authority, federated: Mapping[str, Sequence[bytes]]) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    texts = {
        "bundle.pem": to_pem(authority.root_der),
        **{f"bundle.{name}.pem": b"".join(map(to_pem, roots)) for name, roots in federated.items()},
        "key.pem": svid.key_pem,
        "svid.pem": svid.chain_pem,
    }
    for name, text in texts.items():
        fresh = folder / f".{name}"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(text)
        fresh.rename(folder / name)


def _domain(spiffe_id: str) -> str:
    return spiffe_id.removeprefix("spiffe://").partition("/")[0]


@click.command()
@click.option(
    "--config", "path", required=True, type=click.Path(), help="YAML file with folder, trust domains, identities"
)
def main(path: str) -> None:
    """Serve SVIDs over the SPIFFE Workload API until SIGTERM; SIGHUP rotates."""
    wanted = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT}
    # Before the server's threads exist: they inherit it, and the signals are this thread's to take.
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        config = read_config(path)
        deployment = Deployment(config)
        deployment.start()
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"serving {len(config.identities)} identities in {config.folder}")
    try:
        while True:
            caught = signal.sigtimedwait(wanted, config.svid_ttl_s / 2)
            if caught is not None and caught.si_signo != signal.SIGHUP:
                return
            deployment.rotate()
    finally:
        deployment.stop()


if __name__ == "__main__":
    main()
