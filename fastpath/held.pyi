"""Values in force, shared between Python and threads that never take the GIL."""

from typing_extensions import disjoint_base

@disjoint_base
class Slot:
    """One value in force; filled and read natively."""
