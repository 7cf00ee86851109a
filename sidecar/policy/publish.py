"""Publishing policies: the public face of source, compiler child and store."""

from sidecar.policy.compilers import Work
from sidecar.policy.jobs import Change
from sidecar.policy.source import PolicySource, SourceFiles
from sidecar.policy.store import GenerationStore, Manifest, Published
from sidecar.policy.worker import compile_in_child

__all__ = [
    "Change",
    "GenerationStore",
    "Manifest",
    "PolicySource",
    "Published",
    "SourceFiles",
    "Work",
    "compile_in_child",
]
