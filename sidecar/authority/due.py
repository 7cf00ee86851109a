"""What time brings: tasks, approvals and revocations that end, and rows that are not kept any longer."""

from collections.abc import Callable, Mapping

from sidecar.authority import answers, approvals, revocations, tasks
from sidecar.authority.draft import DUE, SURE_DUE, SYSTEM, Draft, read_due
from sidecar.authority.rows import Kind

SWEEP = 1000


def _purge_task(draft: Draft, key: bytes) -> None:
    """A task that is not kept any longer needs no revocations of its own either."""
    if tasks.purge_task(draft, key):
        revocations.drop_all(draft, Kind.TASK, key.decode())


_DO: Mapping[str, Callable[[Draft, bytes], None]] = {
    tasks.EXPIRE: lambda draft, key: tasks.expire_task(draft, key, SYSTEM),
    tasks.FORGET: tasks.forget_task,
    tasks.PURGE: _purge_task,
    approvals.EXPIRE: lambda draft, key: approvals.expire_approval(draft, key, SYSTEM),
    approvals.PURGE: approvals.purge_approval,
    revocations.EXPIRE: lambda draft, key: revocations.expire_revocation(draft, key, SYSTEM),
    answers.FORGET: answers.forget,
}


def sweep(draft: Draft, most: int = SWEEP) -> int:
    """Do what is due, at most so much; how much was. A date that was moved finds nothing to do yet."""
    done = 0
    for table, now_ns in ((DUE, draft.now_ns), (SURE_DUE, draft.sure_ns)):
        for key, _ in draft.rows.scan(table):
            due = read_due(key)
            if due.at_ns > now_ns or done == most:
                break
            done += 1
            draft.drop(table, key)
            _DO[due.what](draft, due.key)
    return done
