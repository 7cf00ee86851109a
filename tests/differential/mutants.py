"""`python -m tests.differential.mutants`: shows that the differential test would notice a wrong evaluator.

Each mutant is one small, named mistake in our source. The tree is copied to a temporary folder, the mistake is made
there, the one module that it touches is compiled again, and the differential test with a fixed seed must report a
disagreement.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
COPIED = ("fastpath", "sidecar", "tests", "proto", "setup.py")
SEED, CASES = 1, 6000


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `path`; `new` takes its place."""

    name: str
    path: str
    old: str
    new: str


PROGRAM, WALK, DECIDE = "fastpath/program.pyx", "fastpath/candidates.pyx", "fastpath/decide.pyx"
COMPILER = "sidecar/policy/program.py"
MUTANTS = (
    Mutant("and-right-unchecked", COMPILER, "        self._check_bool(parts[-1])\n", ""),
    Mutant("scope-in-as-eq", "sidecar/policy/rules.py", '"in": Scope.IN,', '"in": Scope.EQ,'),
    Mutant(
        "duration-since-swapped",
        PROGRAM,
        "else long_sub(left.v, right.v, &value):",
        "else long_sub(right.v, left.v, &value):",
    ),
    Mutant(
        "in-range-swapped",
        PROGRAM,
        "ip_in_range(<const Ip *> cell_at(left), <const Ip *> cell_at(right))",
        "ip_in_range(<const Ip *> cell_at(right), <const Ip *> cell_at(left))",
    ),
    Mutant(
        "literal-star-as-wildcard",
        COMPILER,
        'part["Literal"].encode() for part',
        'part["Literal"].encode().replace(b"*", WILDCARD) for part',
    ),
    Mutant(
        "decimal-boundary",
        PROGRAM,
        "        return a < b\n",
        "        return a < b or (op == OP_DECIMAL_LT and a == b)\n",
    ),
    Mutant("to-days-as-milliseconds", COMPILER, '"toDays": (Op.OP_TO_DAYS, 1)', '"toDays": (Op.OP_TO_MILLISECONDS, 1)'),
    Mutant(
        "to-hours-as-milliseconds", COMPILER, '"toHours": (Op.OP_TO_HOURS, 1)', '"toHours": (Op.OP_TO_MILLISECONDS, 1)'
    ),
    Mutant(
        "to-minutes-as-milliseconds",
        COMPILER,
        '"toMinutes": (Op.OP_TO_MINUTES, 1)',
        '"toMinutes": (Op.OP_TO_MILLISECONDS, 1)',
    ),
    Mutant(
        "to-seconds-as-milliseconds",
        COMPILER,
        '"toSeconds": (Op.OP_TO_SECONDS, 1)',
        '"toSeconds": (Op.OP_TO_MILLISECONDS, 1)',
    ),
    Mutant("overflow-wraps", PROGRAM, "    return EVAL_OVERFLOW if overflow else EVAL_OK\n", "    return EVAL_OK\n"),
    # An index that loses a policy: where two or more are filed under one key, it forgets one of them.
    Mutant(
        "index-hides-conditional",
        WALK,
        "        stop = walk_policy(walk, walk.met + i)\n",
        "        if n > 1 and i == n - 1 and table_policy(walk.t, walk.met[i].policy).code_words:\n"
        "            continue\n"
        "        stop = walk_policy(walk, walk.met + i)\n",
    ),
    Mutant(
        "index-hides-forbid",
        WALK,
        "        stop = walk_policy(walk, walk.met + i)\n",
        "        if n > 1 and i == n - 1 and table_policy(walk.t, walk.met[i].policy).effect == 1:\n"
        "            continue\n"
        "        stop = walk_policy(walk, walk.met + i)\n",
    ),
    Mutant(
        "index-hides-all-scope",
        WALK,
        "walk_list(walk, &walk.t.header.any_policies)\n",
        "(walk_list(walk, &walk.t.header.any_policies) if walk.t.header.any_policies.n < 3 else 0)\n",
    ),
    Mutant(
        "index-hides-erring",
        DECIDE,
        "        note_error(run, index, error)\n        run.forbids_erring += policy.effect == EFFECT_FORBID\n",
        "        return 0\n",
    ),
    Mutant("erring-policy-unlisted", DECIDE, "        note_error(run, index, error)\n", "        pass\n"),
    Mutant(
        "ancestors-not-transitive",
        "fastpath/table.pyx",
        "        if parent is not NULL and list_has(t, &parent.closure, ancestor):\n",
        "        if False and list_has(t, &parent.closure, ancestor):\n",
    ),
    Mutant(
        "inherited-not-walked",
        WALK,
        "        return walk_list(walk, node_list(walk.t, node, INHERITED))\n",
        "        return 0\n",
    ),
    Mutant(
        "guard-in-as-eq",
        WALK,
        "        return resource_is_in(t, context, row)\n",
        "        return context.resource.index == row\n",
    ),
    Mutant(
        "erring-forbid-skipped-in-strict-mode",
        DECIDE,
        "    return run.t.strict and run.forbids_erring and not run.forbids.total\n",
        "    return False\n",
    ),
    Mutant(
        "bool-equals-long",
        "sidecar/policy/cells.py",
        "    return (BOOL, int(value))\n",
        "    return (LONG, int(value))\n",
    ),
)
# Mistakes of the compiler need no build.
CHEAP = tuple(mutant for mutant in MUTANTS if mutant.path.endswith(".py"))


class Stale(Exception):
    """The source no longer holds the text that a mutant changes."""


def changed(mutant: Mutant) -> str:
    """The mutant's file with the mistake made. Raises Stale when its text does not stand there once."""
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise Stale(f"{mutant.name}: `{mutant.old}` stands {text.count(mutant.old)} times in {mutant.path}; update it")
    return text.replace(mutant.old, mutant.new)


def plant(mutant: Mutant, into: Path) -> None:
    """Copy the tree to `into` with the mistake made and built."""
    # With what is built, so that only the mistake is built again.
    built = [str(path.relative_to(ROOT)) for path in (ROOT / "build").glob("objects.*")]
    for name in (*COPIED, *built):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, into / name, ignore=shutil.ignore_patterns("__pycache__", "integration", "fault"))
        else:
            shutil.copy2(source, into / name)
    path = into / mutant.path
    path.write_text(changed(mutant), encoding="utf-8")
    if path.suffix == ".pyx":
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=into, check=True, capture_output=True)


def caught(mutant: Mutant, *, cases: int = CASES, jobs: int = 1) -> tuple[bool, str]:
    """Whether the differential test notices the mutant, and the first lines of what it said."""
    with tempfile.TemporaryDirectory(prefix="remit-mutant-") as folder:
        tree = Path(folder)
        plant(mutant, tree)
        command = [sys.executable, "-m", "tests.differential", "--seed", str(SEED), "--cases", str(cases), "--first"]
        done = subprocess.run(
            [*command, "--jobs", str(jobs), "--save", str(tree / "found")],
            cwd=tree,
            env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "REMIT_CORPUS")},
            capture_output=True,
            text=True,
            check=False,
        )
    # A traceback exits 1 as well, so the verdict is read from the summary line.
    noticed = done.returncode == 1 and f"seed {SEED} cases " in done.stdout
    said = [line.strip() for line in done.stdout.splitlines()[4:5]] or done.stderr.splitlines()[-1:]
    return noticed, "".join(said)


def report() -> Table:
    """The empty table of verdicts; what is too long for the terminal is the disagreement, never the verdict."""
    table = Table(title="mutants of the evaluator", expand=True)
    for heading in ("mutant", "caught", "seconds"):
        width = max(len(one.name) for one in MUTANTS) if heading == "mutant" else len(heading)
        table.add_column(heading, no_wrap=True, min_width=width)
    # What is left of the line: a terminal of 80 columns shows the verdicts whole.
    table.add_column("first disagreement", no_wrap=True, overflow="ellipsis", ratio=1)
    return table


@click.command(help=__doc__)
@click.option(
    "--only", multiple=True, type=click.Choice([m.name for m in MUTANTS]), help="Only this mutant; repeatable."
)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes of each differential run.")
def main(only: tuple[str, ...], jobs: int) -> None:
    console = Console()
    table = report()
    survived = []
    for mutant in MUTANTS:
        if only and mutant.name not in only:
            continue
        started = time.monotonic()
        with console.status(f"{mutant.name}: build and compare"):
            noticed, said = caught(mutant, jobs=jobs)
        if not noticed:
            survived.append(mutant.name)
        seconds = f"{time.monotonic() - started:.0f}"
        table.add_row(mutant.name, "yes" if noticed else "[red]no[/red]", seconds, said)
    console.print(table)
    if survived:
        console.print(f"not caught: {', '.join(survived)}")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
