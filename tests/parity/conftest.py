"""Print the largest differences between the two implementations at the end of a run."""

import sys


def pytest_terminal_summary(terminalreporter):
    largest = getattr(sys.modules.get("oracle"), "LARGEST", {})
    if largest:
        terminalreporter.section("largest differences from transformers")
        for stage, (difference, tolerance, times) in sorted(largest.items()):
            terminalreporter.line(f"{stage:56} {difference:8.1e}  of {tolerance:8.1e} allowed, {times} comparisons")
