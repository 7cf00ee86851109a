"""Fixtures that every kind of test may use."""

import os
import sys

# A sanitized interpreter is a script; children that get no environment of ours must be started by it as well.
sys.executable = os.environ.get("REMIT_PYTHON", sys.executable)

pytest_plugins = ["tests.fix_native", "tests.fix_http2", "tests.fix_faults", "tests.fix_stage", "tests.fix_examples"]
