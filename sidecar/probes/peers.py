"""Who grpcio says a caller is, and whether our own verifier hears enough to say better."""

from concurrent import futures

import grpc

from fastpath.peer import VerifiedPeer
from sidecar.demo.ca import Authority, Svid, to_pem
from sidecar.identity.peers import PeerResolver
from sidecar.probes import Probe, Verdict, ok, unknown, unsafe
from sidecar.probes.tls import AGENT, OURS, Stage

METHOD = "/remit.probe/Who"
SERVER_NAME = "localhost"
TIMEOUT_S = 10
MEND = "install another grpcio, or set `listeners.listener: native`"


class Answers(grpc.GenericRpcHandler):
    """Notes what each caller is said to be: by grpcio, and by us."""

    def __init__(self, resolver: PeerResolver) -> None:
        self._resolver = resolver
        self.said: list[str] = []
        self.judged: list[VerifiedPeer] = []

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._who)

    def _who(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        known = context.auth_context()
        self.said.append(b"".join(known.get("peer_spiffe_id", ())).decode("ascii", "replace"))
        self.judged.append(self._resolver.from_auth_context(known, context.peer()))
        return b"heard"


def probes() -> list[Probe]:
    return [Probe("grpcio: who calls", who_calls)]


def who_calls() -> Verdict:
    """grpcio gives one store to all trust domains, so a forged ID gets in; the chain that it hands on must tell."""
    stage = Stage()
    answers = Answers(PeerResolver(stage.verifier))
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((answers,))
    own = stage.ours.issue(f"spiffe://{OURS}/sidecar", dns=[SERVER_NAME])
    roots = b"".join(to_pem(one.root_der) for one in (stage.ours, stage.theirs))
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(own.key_pem, own.chain_pem)], roots, True)
    )
    server.start()
    try:
        for svid in (stage.ours.intermediate().issue(AGENT), stage.theirs.issue(AGENT)):
            _ask(port, stage.ours, svid)
    finally:
        server.stop(0).wait()
    return judged(answers.said, [peer.refusal for peer in answers.judged])


def judged(said: list[str], refusals: list[str]) -> Verdict:
    """The verdict on what grpcio `said` of a genuine caller and then of a forged one, and on our own `refusals`."""
    if not refusals:
        return unknown("a genuine SVID gets no connection, so no agent over TLS gets in", MEND)
    if refusals[0]:
        return unknown(f"hands on too little of a genuine chain ({refusals[0]}), so no agent gets in", MEND)
    if len(refusals) == 1:
        return ok("a forged ID gets no connection")
    if not refusals[1]:
        return unsafe("a forged ID gets in", MEND)
    trap = "takes a forged ID for genuine; Remit does not" if said[1] == AGENT else "a forged ID has no name"
    return ok(f"{trap} ({refusals[1]})")


def _ask(port: int, root: Authority, svid: Svid) -> None:
    credentials = grpc.ssl_channel_credentials(to_pem(root.root_der), svid.key_pem, svid.chain_pem)
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        try:
            channel.unary_unary(METHOD)(b"", timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # what a refused handshake looks like
                raise
