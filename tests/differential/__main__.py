"""`python -m tests.differential`: generated policy sets, entities and requests, compared with cedarpy in both modes."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from tests.differential.chains import check_chains
from tests.differential.compare import differences
from tests.differential.deltas import check
from tests.differential.families import FAMILIES
from tests.differential.ours import Ours
from tests.differential.run import SHRINK_SECONDS, Tally, run, run_batch


@click.command()
@click.option("--seed", default=1, show_default=True, help="Same seed, same cases.")
@click.option("--cases", default=50_000, show_default=True, help="Requests to compare, each in Cedar and strict mode.")
@click.option("--family", type=click.Choice(sorted(FAMILIES)), help="Only this family of generators.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--batch", type=int, help="Only this batch, in this process.")
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("var/differential"),
    show_default=True,
    help="Folder for disagreements: JSON lines in the format of the conformance corpus.",
)
@click.option("--first", is_flag=True, help="Stop at the first disagreement and do not shrink it.")
@click.option("--deltas", type=int, help="Compare so many random sequences of edits over random bases instead.")
@click.option("--chains", type=int, help="Ask about so many random chains of delegation in a live state instead.")
@click.option(
    "--replay", type=click.Path(path_type=Path, exists=True), help="Compare the records of this file instead."
)
def main(
    seed: int,
    cases: int,
    family: str | None,
    jobs: int,
    batch: int | None,
    save: Path,
    first: bool,
    replay: Path | None,
    deltas: int | None,
    chains: int | None,
) -> None:
    """Compare our evaluator with cedarpy on generated cases; exit 1 on any disagreement."""
    if chains is not None:
        done = check_chains(seed, chains)
        click.echo(f"seed {seed} chains {done.chains} allowed below {done.allowed} wider than the parent 0")
        return
    if deltas is not None:
        click.echo(f"seed {seed} deltas {sum(check(seed + number) for number in range(deltas))} disagreements 0")
        return
    if replay:
        sys.exit(replayed(replay))
    if batch is not None:
        total = run_batch(seed, batch, family, Ours, save)
    else:
        total = run(
            seed,
            cases,
            only=family,
            jobs=jobs,
            save=save,
            failures_max=1 if first else 10,
            shrink_seconds=0.0 if first else SHRINK_SECONDS,
            progress=progress_line(cases),
        )
    click.echo(f"seed {seed} cases {total.cases} disagreements {len(total.failures)}")
    for counts in (total.answers, total.families):
        click.echo("  " + " ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    for failure in total.failures:
        click.echo(failure)
    sys.exit(1 if total.failures else 0)


def progress_line(cases: int) -> Callable[[Tally, float], None]:
    """A line that overwrites itself on a terminal, and nothing elsewhere."""

    def show(total: Tally, seconds: float) -> None:
        rate = total.cases / max(seconds, 1e-9)
        click.echo(
            f"\r{total.cases}/{cases} cases, {rate:.0f} cases/s, {len(total.failures)} disagreements  ",
            nl=False,
            err=True,
        )
        if total.cases >= cases:
            click.echo(err=True)

    return show if sys.stderr.isatty() else lambda _total, _seconds: None


def replayed(path: Path) -> int:
    """Compare every record of a saved file; 1 when any differs."""
    opener = gzip.open if path.suffix == ".gz" else open
    worst = 0
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            found = differences(record, Ours)
            worst = worst or int(bool(found))
            click.echo(f"{record['name']}: {len(found)} difference(s)")
            for difference in found:
                click.echo(f"  {difference}")
    return worst


if __name__ == "__main__":
    main()
