"""`python -m bench`: one question per file, each measured against a peer in the same run."""

from __future__ import annotations

import click

from bench.attack import attack
from bench.authority import authority
from bench.check import check
from bench.decide import decide
from bench.envoy import envoy
from bench.publish import publish
from bench.report import report


@click.group(context_settings={"max_content_width": 110})
def main() -> None:
    """Measure Remit, one question at a time.

    Every question runs us and a peer in turns within one process, checks that both gave the same answers, prints a
    table and a hash of the answers, and writes raw samples as JSON. Times on shared machines drift: trust the ratios,
    and compare only numbers of one run.

    \b
    python -m bench decide --json decide.json --plot decide.png    what does a decision cost?
    python -m bench decide --sizes 100,1000000 --workloads sharing --json large.json
    python -m bench decide --rounds 5 --requests 500               a quick look
    python -m bench publish --json publish.json                    what does a full publish cost?
    python -m bench check --json check.json                        what does a call cost beside HTTP/2 itself?
    python -m bench authority --json authority.json                what do tasks and revocations cost?
    python -m bench envoy --json envoy.json                        what does asking us cost an Envoy?
    python -m bench attack --json attack.json                      what do others notice of an attack?
    python -m bench report --html bench.html check.json attack.json    one page with plots
    """


main.add_command(decide)
main.add_command(publish)
main.add_command(check)
main.add_command(authority)
main.add_command(envoy)
main.add_command(attack)
main.add_command(report)

if __name__ == "__main__":
    main()
