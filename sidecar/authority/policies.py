"""Who may call which authority service: Cedar policies of their own, compiled and evaluated like those of the calls."""

import importlib.resources
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastpath.evaluator import Evaluator
from sidecar.authority.callers import Callers
from sidecar.authority.draft import Caller
from sidecar.authority.errors import DeniedError, StoreError
from sidecar.policy.cells import encode_context
from sidecar.policy.lexer import PolicyText
from sidecar.policy.source import PolicySource, SourceFiles, SourceTexts
from sidecar.policy.store import GenerationStore

_TYPES = {"person": "Person", "workload": "Workload"}
SERVICE = ("Service", "authority")
ABSENT: dict[str, Any] = {
    "agent": "",
    "owner": "",
    "own_agent": False,
    "in_chain": False,
    "own_owner": False,
    "own_request": False,
    "assigned": False,
    "kind": "",
    "key": "",
    "mode": "",
    "max_level": 0,
    "ttl_s": 0,
}


class _Source(PolicySource):
    """The operator's files, or ours, with the schema of the package and the entities of the configuration."""

    def __init__(self, files: Sequence[str], callers: Callers) -> None:
        super().__init__(SourceFiles(list(files)))
        self._callers = callers

    def read(self) -> SourceTexts:
        package = importlib.resources.files("sidecar.authority")
        if self.paths.policies:
            texts = super().read().policies
        else:
            texts = [PolicyText("default.cedar", (package / "default.cedar").read_text("utf-8"))]
        return SourceTexts(
            policies=texts,
            schema=(package / "authority.cedarschema").read_text("utf-8"),
            entities=PolicyText("authority.people", json.dumps(self._callers.entities())),
        )


class AuthorityPolicies:
    """The rules in force. Thread-safe."""

    def __init__(self, folder: Path, files: Sequence[str], callers: Callers) -> None:
        self._store = GenerationStore(folder)
        self._source = _Source(files, callers)
        self._lock = threading.Lock()
        self._evaluator: Evaluator | None = None
        self.problem = "the authority's policies are not loaded yet"
        """Why nobody may do anything, as long as `load` has not worked."""

    def load(self) -> None:
        """Compile and put in force. PolicyError or RuleTableError when that cannot be; nobody may do anything then."""
        self._store.publish(self._source)
        generation = self._store.open_current()
        with self._lock:
            self._evaluator = Evaluator(generation)

    def stop(self) -> None:
        """End a compilation in progress."""
        self._store.stop()

    def require(self, caller: Caller, action: str, **asked: Any) -> str:
        """The reason why `caller` may do this. DeniedError when they may not, StoreError before the rules are here."""
        context = encode_context({**ABSENT, **asked})
        with self._lock:
            if self._evaluator is None:
                raise StoreError(self.problem)
            found = self._evaluator.evaluate((_TYPES[caller.kind], caller.id), ("Action", action), SERVICE, context)
        if found.outcome != "ALLOW":
            why = f"policy {', '.join(found.reasons[:4])}" if found.reasons else "no policy of the authority permits it"
            raise DeniedError(f"`{caller.id}` may not {action}: {why}")
        return found.reason
