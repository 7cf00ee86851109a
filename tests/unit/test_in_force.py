"""What calls read is swapped whole and let go of when nobody reads it any more (fastpath/held.pxd)."""

import gc
import weakref

import pytest

from fastpath.mapping import Mapping
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from fastpath.tls import TlsIdentity
from sidecar.config_mapping import mapping_config
from sidecar.demo.ca import Authority
from tests.fix_calls import agent_check
from tests.fix_native import make_pdp
from tests.fix_rules import image

PEER = VerifiedPeer(1, "spiffe://example.org/a", "unix:0")


def test_a_replaced_generation_is_let_go_of() -> None:
    """After the swap nothing of ours keeps the old table and its mapped file."""
    pdp = make_pdp()
    table = Generation.from_bytes(image("permit(principal, action, resource);", columns=True))
    gone = weakref.ref(table)
    pdp.put_rules(table, Mapping(mapping_config({})))
    del table
    assert gone() is not None
    pdp.check(agent_check(action="read"), PEER)
    pdp.put_generation(None)
    gc.collect()
    assert gone() is None


def test_the_last_generation_goes_with_its_pdp() -> None:
    """Deallocation lets go of what is in force."""
    pdp = make_pdp()
    table = Generation.from_bytes(image("permit(principal, action, resource);", columns=True))
    gone = weakref.ref(table)
    pdp.put_generation(table)
    del table, pdp
    gc.collect()
    assert gone() is None


def test_reasons_are_counted_up_to_a_bound() -> None:
    """Policies choose reason codes: 1,024 of them are counted, the rest only by outcome."""
    lines = [f'@id("p{i}") @reason("r{i}") forbid(principal, action == Action::"a{i}", resource);' for i in range(1100)]
    pdp = make_pdp()
    table = Generation.from_bytes(image("\n".join(lines), named=True, columns=True))
    pdp.put_rules(table, Mapping(mapping_config({"trust_domains": ["example.org"]})))
    for i in range(1100):
        pdp.check(agent_check(action=f"a{i}", resource=("Tool", "t")), PEER)
    counters = pdp.counters()
    assert len(counters["causes"]) == 1024
    assert counters["causes"]["r7"] == 1
    assert counters["decisions"]["check", "deny"] == 1100


def test_a_tls_identity_is_a_chain_and_its_own_key() -> None:
    """What is no PEM, or another's key, is refused before a handshake meets it."""
    authority = Authority("example.org")
    one, other = (authority.issue(f"spiffe://example.org/{name}") for name in "ab")
    assert TlsIdentity(one.chain_pem, one.key_pem)
    for chain, key in ((b"", one.key_pem), (one.chain_pem, b""), (one.chain_pem, other.key_pem), (b"x" * 99, b"y")):
        with pytest.raises(ValueError, match="SVID"):
            TlsIdentity(chain, key)
