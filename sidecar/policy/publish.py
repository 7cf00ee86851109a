"""Publishing policies: the public face of source, compiler child and store."""

from sidecar.policy.source import PolicySource, SourceFiles
from sidecar.policy.store import GenerationStore, Manifest
from sidecar.policy.worker import compile_in_child

__all__ = ["GenerationStore", "Manifest", "PolicySource", "SourceFiles", "compile_in_child"]
