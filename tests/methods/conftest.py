"""The table of contract points, printed after the tests."""

from typing import Any

POINTS = ("as base", "trains only", "learns", "penalties", "cache", "reload", "export", "control", "switch off")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for outcome, sign in (("passed", "x"), ("failed", "FAIL"), ("error", "FAIL")):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", []):
                if key == "contract":
                    method, family, point = value
                    cells.setdefault((method, family), {})[point] = sign
    if not cells:
        return
    terminalreporter.section("method contract (x holds, - does not apply)")
    wide = max(len(method) for method, _ in cells)
    terminalreporter.write_line("  ".join(["method".ljust(wide), "family".ljust(11), *POINTS]))
    for (method, family), row in cells.items():
        marks = [row.get(point, "-").ljust(len(point)) for point in POINTS]
        terminalreporter.write_line("  ".join([method.ljust(wide), family.ljust(11), *marks]))
