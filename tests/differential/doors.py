"""`python -m tests.differential.doors`: one answer, whoever carries it (row H2-29).

The same random messages, good and broken, to the Pdp itself, through grpcio and through the native door, questions of
agents also as those of a CheckStream at both. With clock and ids given, status and bytes must be equal.
"""

import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import click
import grpc

from fastpath.call import Pdp
from fastpath.peer import VerifiedPeer
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.config import Limits
from sidecar.services.check_streams import CheckStreams
from sidecar.services.doors import authz_service, ext_authz_service, make_server
from sidecar.services.errors import ErrorCounts
from tests.fix_calls import agent_check, envoy_call, network_call, tool_call
from tests.fix_native import AGENT, BATCH, CHECK, ENVOY, EXT_AUTHZ, NativeServer, make_pdp, native_server
from tests.fix_streams import Talker

EVERY = 1000  # cases between two lines of progress
SHARE = 20_000  # cases that one set of doors is asked
ANSWER_S = 300  # a machine that stalls is not a difference
AGENT_KIND, ENVOY_KIND = 1, 2
ANSWER = b"\x0a"  # the one field of a question and of an answer on a stream
REPORT = "/remit.authz.v1.Authorization/Report"
Ask = Callable[[str, bytes], tuple[int, bytes]]
Case = tuple[str, bytes]


def words(rng: random.Random, most: int = 12) -> str:
    return "".join(rng.choice("abcdefXYZ/-_.%?ü 0159") for _ in range(rng.randrange(most)))


def http_call(rng: random.Random) -> bytes:
    headers = [(f"x-{rng.randrange(20)}", words(rng)) for _ in range(rng.randrange(8))]
    return envoy_call(
        method=rng.choice(["GET", "POST", "DELETE", "BREW"]),
        path="/" + words(rng, 30),
        host=rng.choice(["api.example.org", "API.example.org:443", words(rng)]),
        headers=headers,
        raw=rng.random() < 0.5,
        body=words(rng, 200).encode() if rng.random() < 0.5 else None,
        principal=rng.choice([AGENT, AGENT + "/" + words(rng), "spiffe://other.test/a", ""]),
    )


def check_call(rng: random.Random) -> bytes:
    return agent_check(
        action=rng.choice(["read", "write", "docs/search", words(rng)]),
        resource=(rng.choice(["Tool", "Doc", ""]), words(rng)) if rng.random() < 0.9 else None,
        arguments={words(rng): rng.choice([1, "x", True, None, [1, 2], {"a": "b"}])} if rng.random() < 0.5 else None,
        request_id=rng.choice(["", "", "again", words(rng)]),
        data_level=rng.choice([0, 1, 4]),
    )


def batch_call(rng: random.Random) -> bytes:
    items = [check_call(rng) for _ in range(rng.choice([1, 2, 3, 64, 65]))]
    return b"".join(b"\x0a" + _length(item) + item for item in items)


def _length(data: bytes) -> bytes:
    n, out = len(data), b""
    while n >= 128:
        out += bytes((n & 127 | 128,))
        n >>= 7
    return out + bytes((n,))


def broken(rng: random.Random, whole: bytes) -> bytes:
    """A byte changed, dropped or added somewhere."""
    at = rng.randrange(len(whole) + 1)
    return whole[:at] + rng.choice([b"", rng.randbytes(1), rng.randbytes(3)]) + whole[at + rng.randrange(3) :]


def cases(seed: int, count: int, *, envoy: bool) -> Iterator[Case]:
    rng = random.Random(seed)
    for _ in range(count):
        if envoy:
            path, whole = EXT_AUTHZ, rng.choice([http_call, http_call, _tool, _network])(rng)
        else:
            path, make = rng.choice([(CHECK, check_call), (CHECK, check_call), (BATCH, batch_call)])
            whole = make(rng)
        yield path, broken(rng, whole) if rng.random() < 0.3 else whole


def _tool(rng: random.Random) -> bytes:
    return tool_call(words(rng), {"a": words(rng)})


def _network(rng: random.Random) -> bytes:
    return network_call(destination=words(rng), sni=words(rng))


def over(channel: grpc.Channel) -> Ask:
    def ask(path: str, raw: bytes) -> tuple[int, bytes]:
        try:
            return 0, bytes(channel.unary_unary(path)(raw, timeout=ANSWER_S))
        except grpc.RpcError as error:
            return error.code().value[0], error.details().encode()

    return ask


def direct(pdp: Pdp, peer: VerifiedPeer) -> Ask:
    decide = {EXT_AUTHZ: pdp.ext_authz, CHECK: pdp.check, BATCH: pdp.batch_check, REPORT: pdp.report}
    return lambda path, raw: decide[path](raw, peer)


def over_stream(channel: grpc.Channel) -> Ask:
    """A Check as a question of a CheckStream, opened anew when a question ended it; other methods by a call."""
    unary = over(channel)
    open_: list[Talker] = []

    def ask(path: str, raw: bytes) -> tuple[int, bytes]:
        if path != CHECK:
            return unary(path, raw)
        if not open_:
            open_.append(Talker(channel, timeout=None).begin())
        open_[0].send(ANSWER + _length(raw) + raw)
        try:
            got = open_[0].raw()
        except grpc.RpcError as error:
            open_.clear()
            return error.code().value[0], error.details().encode()
        answer = authz_pb2.CheckStreamResponse.FromString(got).answer
        if answer.outcome == authz_pb2.OUTCOME_ERROR:
            return grpc.StatusCode.UNAVAILABLE.value[0], answer.reason.encode()
        whole = got[len(got) - answer_bytes(got) :]
        assert got == ANSWER + _length(whole) + whole
        return 0, whole

    return ask


def answer_bytes(message: bytes) -> int:
    """Length of the one field that a message consists of, as its varint says."""
    n = shift = 0
    for byte in message[1:]:
        n |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return n


@contextmanager
def grpcio_channel(pdp: Pdp, peer: VerifiedPeer) -> Iterator[grpc.Channel]:
    errors = ErrorCounts()
    server = make_server(Limits(), 1 << 20, "differential")
    streams = CheckStreams(pdp, lambda _: peer, errors, Limits())
    server.add_generic_rpc_handlers(
        (
            ext_authz_service(pdp.ext_authz, lambda _: peer, errors),
            authz_service(pdp.check, pdp.batch_check, pdp.report, lambda _: peer, errors, streams),
        )
    )
    with tempfile.TemporaryDirectory(prefix="dd") as folder:
        target = f"unix:{pathlib.Path(folder) / 'sock'}"
        server.add_insecure_port(target)
        server.start()
        with grpc.insecure_channel(target) as channel:
            yield channel
        server.stop(0).wait()
        streams.close()


@contextmanager
def all_doors(*, envoy: bool) -> Iterator[tuple[list[Ask], list[Pdp], NativeServer]]:
    """The ways to ask, each with a Pdp of its own in the same state, and the native door."""
    peer = VerifiedPeer(ENVOY_KIND, ENVOY, "unix:0") if envoy else VerifiedPeer(AGENT_KIND, AGENT, "unix:0")
    pdps = [make_pdp(fixed=True) for _ in range(3 if envoy else 5)]
    with ExitStack() as stack:
        door = stack.enter_context(native_server(pdps[2], envoy=envoy, message_bytes=1 << 20))
        asks = [
            direct(pdps[0], peer),
            over(stack.enter_context(grpcio_channel(pdps[1], peer))),
            over(stack.enter_context(grpc.insecure_channel(door.target))),
        ]
        if not envoy:
            streamed = stack.enter_context(native_server(pdps[4], message_bytes=1 << 20))
            asks += [
                over_stream(stack.enter_context(grpcio_channel(pdps[3], peer))),
                over_stream(stack.enter_context(grpc.insecure_channel(streamed.target))),
            ]
        yield asks, pdps, door


def compare(seed: int, count: int, *, envoy: bool, progress: Callable[[int], None] = lambda _: None) -> set[int]:
    """The gRPC codes that `count` cases got; AssertionError with seed and bytes at the first difference."""
    seen: set[int] = set()
    with all_doors(envoy=envoy) as (asks, pdps, door):
        for number, (path, raw) in enumerate(cases(seed, count, envoy=envoy)):
            wanted, *others = [ask(path, raw) for ask in asks]
            assert others == [wanted] * len(others), f"case {number} of seed {seed}: {path} {raw!r}: {wanted} {others}"
            assert wanted[1] or wanted[0], f"case {number} of seed {seed}: an empty answer"
            seen.add(wanted[0])
            if number % EVERY == EVERY - 1:
                progress(EVERY)
        assert door.listener.counters()["calls"] == count
        assert all(pdp.counters()["causes"] == pdps[0].counters()["causes"] for pdp in pdps)
    return seen


@click.command()
@click.option("--cases", "count", default=1_000_000, show_default=True, help="Messages to each of the three.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same messages.")
@click.option("--skip", default=0, show_default=True, help=f"Leave out the first ones, in whole shares of {SHARE:,}.")
def main(count: int, seed: int, skip: int) -> None:
    """Compare the doors on random messages; exit 1 at the first difference."""
    done, began = 0, time.monotonic()

    def progress(more: int) -> None:
        nonlocal done
        done += more
        rate = done / (time.monotonic() - began)
        click.echo(f"\r{done}/{count - skip} messages, {rate:.0f}/s ", nl=False, err=True)

    seen: set[int] = set()
    for part, start in enumerate(range(0, count, SHARE)):
        if start < skip:
            continue
        try:
            share = min(SHARE, count - start)
            seen |= compare(seed * 1_000_003 + part, share, envoy=part % 2 == 0, progress=progress)
        except AssertionError as difference:
            click.echo(f"\n{difference}", err=True)
            sys.exit(1)
    click.echo(f"\n{count - skip} messages, seed {seed}: every answer equal; gRPC codes {sorted(seen)}")


if __name__ == "__main__":
    main()
