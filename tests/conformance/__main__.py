"""`python -m tests.conformance FILE.jsonl.gz`: a Cedar corpus against our evaluator, in Cedar mode with positional ids.

Prints `requests N decision N reason N errors N`, each count being the requests that agree; exits 1 on any difference.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.progress import Progress

from tests.conformance.run import Score, read_records, run_corpus
from tests.differential.ours import Ours, validates


@click.command(help=__doc__)
@click.argument("corpus", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--show", default=5, show_default=True, help="Differences to print.")
def main(corpus: Path, show: int) -> None:
    records = list(read_records(corpus))
    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("records", total=len(records))

        def advance(score: Score) -> None:
            bar.update(task, completed=score.records)

        score = run_corpus(records, Ours, validates, advance)
    click.echo(score.line())
    for text in score.wrong[:show]:
        click.echo(text)
    if len(score.wrong) > show:
        click.echo(f"and {len(score.wrong) - show} more; --show N prints more of them")
    sys.exit(1 if score.wrong else 0)


if __name__ == "__main__":
    main()
