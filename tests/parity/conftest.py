"""Says, at the end of a run, how far apart the two implementations were at most."""

import sys


def pytest_terminal_summary(terminalreporter):
    largest = getattr(sys.modules.get("oracle"), "LARGEST", {})
    if largest:
        terminalreporter.section("largest differences from transformers")
        for stage, (found, tolerance, times) in sorted(largest.items()):
            terminalreporter.line(f"{stage:56} {found:8.1e}  of {tolerance:8.1e} allowed, {times} comparisons")
