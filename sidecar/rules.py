"""The rules in force: the published generation and the mapping, put into the Pdp together."""

import logging

import msgspec

from fastpath.call import Pdp
from fastpath.mapping import Mapping
from fastpath.plain import attributes_of, groups_of
from fastpath.table import Generation
from sidecar.authority.authority import NOBODY, AgentOwner
from sidecar.config import Config
from sidecar.errors import PolicyError, RuleTableError, SidecarError
from sidecar.logs import event
from sidecar.policy.compilers import Work
from sidecar.policy.jobs import Change
from sidecar.policy.source import PolicySource, SourceTexts
from sidecar.policy.store import GenerationStore, Published

log = logging.getLogger("remit.rules")


class Rules:
    """Owns the store and knows what the Pdp decides by. Its owner changes it from one thread at a time.

    Raises ConfigError when the mapping cannot be compiled, PolicyError when the store's folder cannot be used.
    """

    def __init__(self, config: Config, pdp: Pdp) -> None:
        self._pdp = pdp
        self._store = GenerationStore(config.policy.store, stays=True)
        if self._store.volatile:
            event(log, "store.volatile", logging.WARNING, folder=config.policy.store, filesystem=self._store.volatile)
        self._current: Generation | None = None
        self._mapping = Mapping(config.mapping)
        self._note_types(config)
        pdp.put_mapping(self._mapping)

    @property
    def generation(self) -> int:
        """Number of the generation in force; 0 while there is none."""
        return self._current.generation if self._current is not None else 0

    @property
    def digest(self) -> str:
        """Its SHA-256 ("sha256:<hex>"), or empty."""
        return self._current.digest if self._current is not None else ""

    @property
    def extras_read(self) -> list[str]:
        """Context attributes beside the live columns that some policy reads."""
        return self._current.extras_read if self._current is not None else []

    def in_force(self) -> tuple[Generation, Mapping]:
        """What calls are decided by. RuleTableError while there is no generation."""
        if self._current is None:
            raise RuleTableError("no generation is in force; mend the policies, then run remit reload")
        return self._current, self._mapping

    def owner_of(self, agent: str) -> AgentOwner:
        """Who answers for the agent by the entities in force: what calls are judged by (no owner, no allow)."""
        if self._current is None:
            return NOBODY
        found = attributes_of(self._current, self._agent_type, agent)
        owner = (found or {}).get("owner")
        if not isinstance(owner, dict) or "__entity" not in owner:
            return NOBODY
        person = attributes_of(self._current, owner["__entity"]["type"], owner["__entity"]["id"])
        return AgentOwner(owner["__entity"]["id"], person is not None and person.get("active", True) is True)

    def classes_of(self, agent: str) -> list[str]:
        """The classes that the agent is in by the entities in force: what revocations of classes are judged by."""
        current = self._current
        return groups_of(current, self._agent_type, agent, self._class_type) if current is not None else []

    def texts(self, config: Config) -> SourceTexts:
        """The texts that the generation in force was built from, with its edits.

        PolicyError when the files have changed since, RuleTableError when the edits cannot be read.
        """
        texts = PolicySource(config.policy).read()
        manifest = self._store.current()
        if manifest is None or manifest.generation != self.generation or manifest.built_from != texts.digests():
            raise PolicyError(f"the policy files are not those of generation {self.generation}; run remit reload first")
        return msgspec.structs.replace(texts, edits=self._store.edits())

    def built_from(self, config: Config) -> bool:
        """Whether the last generation that was published is of the very files that `config` names, as they are now.

        PolicyError when they cannot be read.
        """
        manifest = self._store.current()
        return manifest is not None and manifest.built_from == PolicySource(config.policy).read().digests()

    def stop(self) -> None:
        """End a publish in progress; no other begins. Thread-safe."""
        self._store.stop()

    def close(self) -> None:
        """End the compilers. What is in force stays so."""
        self._store.close()

    def publish(self, config: Config) -> bool:
        """Compile what the configuration names and put it in force with its mapping; whether the generation changed.

        Raises ConfigError, PolicyError or RuleTableError, and then nothing has changed. Equal content keeps its number.
        """
        # The mapping first: publishing is durable, so whatever can be refused is refused before it.
        mapping = Mapping(config.mapping)
        manifest = self._store.publish(PolicySource(config.policy), compile_s=config.policy.compile_s)
        for warning in manifest.report.warnings:
            event(log, "policy.warning", logging.WARNING, text=warning)
        return self._put(config, mapping)

    def edit(self, config: Config, change: Change, by: str) -> Published:
        """Put a change that the account `by` asks for in force, durably.

        Raises PolicyError or RuleTableError, and then calls are decided as before; when the change is durable all the
        same, the error says so.
        """
        done = self._store.edit(change, PolicySource(config.policy), Work(config.policy.compile_s), by)
        try:
            self._put(config, self._mapping)
        except SidecarError as error:
            raise PolicyError(
                f"generation {done.manifest.generation} was published, but generation {self.generation} still decides:"
                f" {error}; run remit reload"
            ) from error
        return done

    def reopen(self, config: Config) -> bool:
        """Put the last published generation in force, as it is; whether there is one that can be used."""
        try:
            self._put(config, Mapping(config.mapping))
        except SidecarError as error:
            event(log, "generation.unusable", logging.ERROR, cause=str(error))
            return False
        return True

    def _put(self, config: Config, mapping: Mapping) -> bool:
        manifest = self._store.current()
        if self._current is not None and manifest is not None and manifest.generation == self.generation:
            # A process has a generation's file open once.
            fresh = self._current
        else:
            fresh = self._store.open_current(strict=config.policy.evaluation == "strict")
        changed = fresh is not self._current
        if changed and fresh.unlocked:
            advice = "raise the limit on locked memory: LimitMEMLOCK=infinity in the unit, ulimit -l in a shell"
            event(log, "generation.unlocked", logging.WARNING, cause=fresh.unlocked, advice=advice)
        # The old generation is closed by the last call that uses it.
        self._pdp.put_rules(fresh, mapping)
        self._current, self._mapping = fresh, mapping
        self._note_types(config)
        return changed

    def _note_types(self, config: Config) -> None:
        namespace = config.mapping.namespace
        self._agent_type = f"{namespace}::{config.mapping.agent_type}" if namespace else config.mapping.agent_type
        self._class_type = f"{namespace}::AgentClass" if namespace else "AgentClass"
