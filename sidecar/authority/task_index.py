"""Tasks by their agent and by their owner: an index that follows the tasks a few seconds behind.

An index row of a new task stands on a page of its own, somewhere in the file, and each commit would write two of them.
So the writer indexes when it has time, many tasks in one commit, and whoever looks for tasks goes through the index and
then through the tasks that are younger. Ids grow with time (sidecar.authority.ids), so one id says how far it has come.
"""

from collections.abc import Iterator

from sidecar.authority.database import Database, DatabaseRows
from sidecar.authority.draft import AGENT_TASKS, META, OWNER_TASKS, SECOND_NS, TASKS, Rows, hashed_name
from sidecar.authority.ids import first_of
from sidecar.authority.rows import Task, decode

BATCH = 4000
INDEXED = b"indexed"
"""Of the last task that is indexed."""
MARK = b"\0"


def tasks_of(rows: Rows, table: str, name: str, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """(key, mark) of every task of the agent or owner `name` behind the key `after`, oldest first.

    A key is the name's hash and the task's id, whether the index has it yet or not. DamagedRow for a task that is.
    """
    prefix = hashed_name(name)
    last = after[len(prefix) :]
    for key, value in rows.scan(table, prefix, after):
        last = key[len(prefix) :]
        yield key, value
    for id_, stored in rows.scan(TASKS, b"", max(last, rows.get(META, INDEXED) or b"")):
        task = decode(stored, Task)
        if name == (task.agent if table == AGENT_TASKS else task.owner):
            yield prefix + id_, MARK


def follow(database: Database, now_ns: int) -> bool:
    """Index what is not yet; whether nothing is left. lmdb.Error as it comes, DamagedRow for a task that is.

    What is younger than a second stays: no id that is still to come may be smaller than one that is indexed, not even
    after a restart.
    """
    while True:
        with database.read() as rows:
            young, more = _young(rows, first_of(now_ns - SECOND_NS))
        if not young:
            return not more
        with database.write() as rows:
            places = [(AGENT_TASKS, hashed_name(task.agent) + id_) for id_, task in young]
            places += [(OWNER_TASKS, hashed_name(task.owner) + id_) for id_, task in young]
            # In the order of the file: each page is come to once.
            rows.write(dict.fromkeys(sorted(places), MARK))
            rows.put(META, INDEXED, young[-1][0])


def _young(rows: DatabaseRows, end: bytes) -> tuple[list[tuple[bytes, Task]], bool]:
    """Tasks below the id `end` that are not indexed, and whether there are more."""
    found: list[tuple[bytes, Task]] = []
    for id_, stored in rows.scan(TASKS, b"", rows.get(META, INDEXED) or b""):
        if id_ >= end or len(found) == BATCH:
            return found, True
        found.append((id_, decode(stored, Task)))
    return found, False
