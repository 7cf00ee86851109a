"""No child may what its parent may not: a slice of `python -m tests.differential --chains 100000`."""

from tests.differential.chains import check_chains
from tests.fix_faults import SEED

CHAINS = 2_500


def test_a_child_is_allowed_only_what_its_parent_is() -> None:
    """Over random chains in a live state, judged as calls are (facts row 12); enough of them allow their children."""
    done = check_chains(SEED, CHAINS)
    assert done.chains == CHAINS
    assert done.allowed > CHAINS / 4
