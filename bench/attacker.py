"""One hostile peer as a process of its own: the attack named, again and again, until standard input ends.

It runs with less priority on the load client's core, so that it takes what the client leaves, which is nine tenths of
it. `quiet` attacks nobody and only keeps the core as busy as an attack would.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from bench.attacks import ATTACKS, Attack
from bench.servers import LOAD_CORE, pin
from tests.fix_records import RecordClient

QUIET = "quiet"
SECRETS = "secrets.txt"  # of one connection's TLS, for who attacks below HTTP/2
LEAST = 19  # nice
LINGER_S = 0.05  # how long a turn with nothing to do takes
LANES = 8  # connections at once of an attack that ends
SILENCE_S = 0.005  # of the server, after which a connection that has sent all is given up
DRIP_S = 1.0
READ = 1 << 16
Address = tuple[str, int]


class Counted:
    """What the attack came to."""

    def __init__(self) -> None:
        self.connections = self.refused = self.bytes = 0


def _connect(address: Address) -> socket.socket:
    made = socket.create_connection(address, 5)
    made.setblocking(False)
    return made


class Burst:
    """One connection of an attack that ends: all that the server takes is sent, what it answers is read."""

    def __init__(self, address: Address, attack: Attack, counted: Counted) -> None:
        self.socket = _connect(address)
        self._data, self._at, self._counted = memoryview(attack.data), 0, counted
        self._heard = time.monotonic()
        counted.connections += 1

    @property
    def writing(self) -> bool:
        return self._at < len(self._data)

    def go_on(self, readable: bool, writable: bool) -> bool:
        """Whether there is more to come: after the last byte, as long as the server does not fall silent."""
        now = time.monotonic()
        if readable or writable:
            self._heard = now
        try:
            if writable:
                sent = self.socket.send(self._data[self._at :])
                self._at += sent
                self._counted.bytes += sent
            if readable and not self.socket.recv(READ):
                return False
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        return self.writing or (len(self._data) > 0 and now - self._heard < SILENCE_S)


class Bursts:
    """So many of them at once that the server, not the wait for one of them, is what bounds the attack."""

    def __init__(self, address: Address, attack: Attack, counted: Counted) -> None:
        self._make = lambda: Burst(address, attack, counted)
        self._counted = counted
        self._open: dict[socket.socket, Burst] = {}

    def turn(self) -> None:
        """Fill up what has ended, serve what is ready."""
        while len(self._open) < LANES:
            try:
                made = self._make()
            except (ConnectionError, TimeoutError):
                self._counted.refused += 1
                break
            self._open[made.socket] = made
        writing = [one.socket for one in self._open.values() if one.writing]
        readable, writable, _ = select.select(self._open, writing, [], SILENCE_S)
        for at, one in list(self._open.items()):
            if not one.go_on(at in readable, at in writable):
                del self._open[at]
                at.close()


class KeyUpdates:
    """A peer with an SVID that makes the server change keys, as often as it takes them."""

    def __init__(self, address: Address, pki: Path, attack: Attack, counted: Counted) -> None:
        self._address, self._attack, self._counted = address, attack, counted
        self._folder = pki
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.load_verify_locations(pki / "roots.pem")
        self._tls.load_cert_chain(pki / "agent.pem", pki / "agent.key")
        self._tls.set_alpn_protocols(["h2"])

    def turn(self) -> None:
        with contextlib.suppress(OSError), RecordClient(self._address, self._tls, self._folder / SECRETS) as made:
            self._counted.connections += 1
            made.send(self._attack.data)
            for _ in range(self._attack.key_updates):
                sealed = made.key_update(requested=True)
                made.plain.sendall(sealed)
                self._counted.bytes += len(sealed)


class Held:
    """Connections that stay; those that the server ends are made anew."""

    def __init__(self, address: Address, attack: Attack, counted: Counted) -> None:
        self._address, self._attack, self._counted = address, attack, counted
        self._open: list[socket.socket] = []
        self._dripped = time.monotonic()

    def turn(self) -> None:
        """Fill up what was lost, drip when it is time, drop what was ended."""
        while len(self._open) < self._attack.held:
            try:
                self._open.append(_connect(self._address))
            except (ConnectionError, TimeoutError):
                self._counted.refused += 1
                break
            self._counted.connections += 1
            self._send(self._open[-1], self._attack.data)
        if self._attack.drip and time.monotonic() - self._dripped > DRIP_S:
            self._dripped = time.monotonic()
            for one in self._open:
                self._send(one, self._attack.drip)
        for one in select.select(self._open, [], [], LINGER_S)[0]:
            # What is answered is not read: a peer that takes nothing costs most. An end shows all the same.
            if self._ended(one):
                one.close()
                self._open.remove(one)

    def _send(self, one: socket.socket, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._counted.bytes += one.send(data)

    def _ended(self, one: socket.socket) -> bool:
        try:
            return not one.recv(READ)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True


def _spin() -> None:
    end = time.monotonic() + LINGER_S
    while time.monotonic() < end:
        pass


def work(attack: Attack, address: Address, counted: Counted, pki: Path) -> Callable[[], None]:
    """What makes one turn of the attack. `pki`: the folder of `bench.servers.Pki`."""
    if attack.key_updates:
        return KeyUpdates(address, pki, attack, counted).turn
    if attack.held:
        return Held(address, attack, counted).turn
    return Bursts(address, attack, counted).turn


@click.command()
@click.option("--name", required=True, help="An attack, or `quiet`.")
@click.option("--port", type=int, required=True)
@click.option("--pki", type=click.Path(path_type=Path), required=True)
def main(name: str, port: int, pki: Path) -> None:
    """Attack 127.0.0.1:PORT until standard input ends; then print what it came to as JSON."""
    pin(LOAD_CORE)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(LEAST)
    counted = Counted()
    turn = _spin if name == QUIET else work(ATTACKS[name], ("127.0.0.1", port), counted, pki)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        turn()
    print(json.dumps(vars(counted)), flush=True)


if __name__ == "__main__":
    main()
