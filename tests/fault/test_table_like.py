"""`like` is linear: the work of a pattern is counted in bytes that are looked at, not in time (PO-04)."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import pytest

from tests.fix_faults import LONG, ROOT, SEED

# Every search of the evaluator is a memmem(3), which is linear itself; this one counts what the searches pass over.
COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
static unsigned long passed;
void *memmem(const void *text, size_t n, const void *part, size_t part_n) {
    static void *(*real)(const void *, size_t, const void *, size_t);
    if (!real) *(void **) &real = dlsym(RTLD_NEXT, "memmem");
    char *at = real(text, n, part, part_n);
    passed += at ? (size_t) (at - (char *) text) + part_n : n;
    return at;
}
unsigned long remit_passed(void) { unsigned long now = passed; passed = 0; return now; }
"""
# Reads (pattern, text) pairs; says for each whether it matches and how many bytes the searches passed.
ASKER = """
import ctypes, json, sys
from tests.fix_policy import condition
counter = ctypes.CDLL(sys.argv[1])
counter.remit_passed.restype = ctypes.c_ulong
def asked(pattern, text):
    counter.remit_passed()
    return condition(f'context.t like "{pattern}"', {"t": text}), counter.remit_passed()
print(json.dumps([asked(*pair) for pair in json.load(sys.stdin)]))
"""


def pairs() -> list[tuple[str, str]]:
    """The worst known patterns against texts of growing length, and random ones over two letters."""
    chance = random.Random(SEED)
    made = []
    for n in (1_000, 2_000, 4_000, 8_000):
        made += [
            ("*a" * (n // 10) + "*b", "a" * n),
            ("*" + "a" * (n // 10) + "b", "a" * n),
            ("*" + "ab" * (n // 20) + "a*b", "ab" * (n // 2)),
            ("*" * 50 + "b", "a" * n),
            ("a*" * 20 + "c*d", "a" * n),
        ]
    for _ in range(2_000 if LONG else 60):
        pattern = "".join(chance.choices("ab*", k=chance.randrange(1, 30)))
        made.append((pattern, "".join(chance.choices("ab", k=chance.randrange(0, 60)))))
    return made


def matches(pattern: str, text: str) -> bool:
    """By a table over both, which needs their product: what `like` means (Cedar, like operator)."""
    reached = [True] + [False] * len(text)
    for letter in pattern:
        if letter == "*":
            first = reached.index(True) if True in reached else len(reached)
            reached = [at >= first for at in range(len(reached))]
        else:
            reached = [False, *(reached[at] and text[at] == letter for at in range(len(text)))]
    return reached[-1]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_po_04_no_pattern_looks_at_a_byte_of_the_text_twice(tmp_path: pathlib.Path) -> None:
    """PO-04: the searches of one `like` pass over the text once, whatever the pattern; the answer is Cedar's."""
    (tmp_path / "counter.c").write_text(COUNTER)
    library = tmp_path / "counter.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "counter.c", "-ldl"], check=True)
    asked = pairs()
    done = subprocess.run(
        [sys.executable, "-c", ASKER, str(library)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(library)},
        check=True,
    )
    answers = json.loads(done.stdout)
    assert len(answers) == len(asked)
    for (pattern, text), (matched, passed) in zip(asked, answers, strict=True):
        assert matched == matches(pattern, text), (pattern, text)
        assert passed <= len(text), (pattern, text)
    assert sum(passed for _, passed in answers) > 0, "the counter was not used"
