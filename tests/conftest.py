"""Fixtures that every kind of test may use."""

pytest_plugins = ["tests.fix_native", "tests.fix_http2", "tests.fix_faults", "tests.fix_stage", "tests.fix_examples"]
