"""A change in the compiler's process: the edits that it comes to, and the delta of them and all before them."""

import hashlib

import msgspec

from fastpath.rowview import Rows
from fastpath.table import Generation
from sidecar.errors import PolicyError
from sidecar.policy.asked import edits_of, refuse_with_links
from sidecar.policy.basis import basis_of
from sidecar.policy.code import Constants
from sidecar.policy.compile import CompileReport
from sidecar.policy.delta import DELTA_KEY, DeltaEdits, DeltaTooLarge, write_delta
from sidecar.policy.edits import merged
from sidecar.policy.inforce import Base, InForce
from sidecar.policy.jobs import BaseFile, EditJob, Result
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.links import check_ids
from sidecar.policy.lmdb_writer import write_file
from sidecar.policy.rules import RuleSet
from sidecar.policy.schema import load_schema
from sidecar.policy.source_rows import PolicyRow


class Editor:
    """Makes deltas. The base of the last one stays open, since verifying a large one takes longer than a delta."""

    def __init__(self) -> None:
        self._file: BaseFile | None = None
        self._base: Base | None = None

    def run(self, job: EditJob) -> Result:
        """The delta of a job, written, and what it holds. PolicyError or RuleTableError for what is refused."""
        base = self._opened(job.base, job.limits)
        asked = edits_of(job.change, InForce(base, job.pending, job.limits))
        pending = merged(job.pending, asked)
        now = InForce(base, pending, job.limits)
        base.keep(pending)
        for edit in asked:
            if edit.of != "entity" and now.kind(edit.id) != "template":
                refuse_with_links(edit.id, now)
        report = _report(now)
        unneeded = [edit for edit in pending if edit.removed and not now.base_holds(edit.key)]
        made = Result(edits=asked, unneeded=unneeded, report=report)
        relinked = next((id_ for id_ in _templates_put(now) if now.base_links(id_)), None)
        if relinked is not None:
            return msgspec.structs.replace(made, too_large=f"the links of template `{relinked}` are compiled with it")
        try:
            raw = write_delta(base.table, _delta_edits(now))
        except DeltaTooLarge as error:
            return msgspec.structs.replace(made, too_large=str(error))
        size, file_digest = write_file(job.output, {DELTA_KEY: raw})
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        return msgspec.structs.replace(made, size=len(raw), digest=digest, file_size=size, file_digest=file_digest)

    def _opened(self, file: BaseFile, limits: PolicyLimits) -> Base:
        # A file is what its digest says, whatever it is called by now.
        if self._base is not None and self._file is not None and self._file.file_digest == file.file_digest:
            return self._base
        if self._base is not None:
            self._base.table.close()
            self._base = None
        table = Generation.open(
            file.path,
            generation=file.generation,
            digest=file.digest,
            size=file.size,
            file_digest=file.file_digest,
            file_size=file.file_size,
        )
        basis = basis_of(table)
        self._file = file
        self._base = Base(table, basis, None if basis.schema is None else load_schema(basis.schema, limits))
        return self._base


def _templates_put(now: InForce) -> list[str]:
    puts = (edit for edit in now.edits.values() if edit.of == "policy" and not edit.removed)
    return [edit.id for edit in puts if now.base.rules[edit.text].template]


def _rows(now: InForce, constants: Constants) -> list[PolicyRow]:
    """The rows of policies and links that edits put; templates must compile as well."""
    links = now.overlay.own_links
    check_ids(links, {})
    for place in links:
        kind = now.kind(place.link.template)
        if kind not in (None, "template"):
            cause = f"names the template `{place.link.template}`, which is a {kind}"
            raise PolicyError(f"{place.where}: link `{place.link.id}` {cause}")
    rules = RuleSet(now.rules(), links, constants, positional=False)
    rows = []
    for id_ in sorted(rules.named, key=str.encode):
        if rules.named[id_].template:
            rules.like(id_, linked=False)
        else:
            rows.append(rules.row(id_))
    return [*rows, *(rules.row(rules.template_of(place), place.link) for place in links)]


def _delta_edits(now: InForce) -> DeltaEdits:
    """The rows that the base is to have, and what it is to have no longer."""
    constants = Constants()
    rows = _rows(now, constants)
    own = {row.id for row in rows}
    base = Rows(now.base.table)
    rules = [edit for edit in now.edits.values() if edit.of != "entity"]
    entities = [edit for edit in now.edits.values() if edit.of == "entity"]
    return DeltaEdits(
        policies_put=rows,
        policies_removed=[one.id for one in rules if one.id not in own and base.template_of(one.id) is not None],
        entities_put=now.entity_rows(),
        entities_removed=[one.uid for one in entities if one.removed and base.has_entity(*one.uid)],
        constants=constants,
    )


def _report(now: InForce) -> CompileReport:
    """The base's report with templates and links as they are now; the table counts the rest. Caps hold."""
    was, basis = now.base.basis.report, now.base.basis
    edited = [edit.id for edit in now.edits.values() if edit.of != "entity"]
    hidden = [now.base_kind(id_) for id_ in edited]
    kinds = [now.kind(id_) for id_ in edited]
    links = was.links - hidden.count("link") + kinds.count("link")
    templates = len(basis.templates) - hidden.count("template") + kinds.count("template")
    policies = was.policies - was.links - hidden.count("policy") + kinds.count("policy")
    if policies + templates > now.limits.policies_max:
        raise PolicyError(
            f"there would be {policies + templates} policies; at most {now.limits.policies_max} are compiled"
        )
    if links > now.limits.links_max:
        raise PolicyError(f"there would be {links} links; at most {now.limits.links_max} are compiled")
    return msgspec.structs.replace(was, templates=templates, links=links)
