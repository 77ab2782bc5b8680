"""Prints the wrong inputs that the tests try, by room and kind: `python tests/wrong_inputs.py`."""

import inspect
import os
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SIGNS = ("raises(ConfigError", "raises(RunFailed", "raises(ValueError", "refused(", "code == 2", "read_or_refused(")
"""What the source of a test has in it that expects a refusal."""


class Wrong:
    """A plugin of pytest that counts the tests that expect a refusal, by room and by the words of their names."""

    def __init__(self) -> None:
        self.kinds: Counter[tuple[str, str]] = Counter()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if isinstance(item, pytest.Function) and any(sign in inspect.getsource(item.function) for sign in SIGNS):
                folder = item.path.parent.relative_to(TESTS).as_posix()
                self.kinds[folder if folder != "." else "settings", item.function.__name__.removeprefix("test_")] += 1


def main() -> None:
    wrong = Wrong()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        pytest.main(["--collect-only", "-qq", str(TESTS)], plugins=[wrong])
    for room in sorted({room for room, _ in wrong.kinds}):
        of_room = {kind: count for (name, kind), count in wrong.kinds.items() if name == room}
        print(f"{sum(of_room.values()):4} {room}")
        for kind, count in sorted(of_room.items()):
            print(f"     {count:4} {kind.replace('_', ' ')}")
    print(f"{wrong.kinds.total():4} in all")


if __name__ == "__main__":
    main()
