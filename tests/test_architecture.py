"""The page on the architecture says what is: files, rooms, tests, and which way the arrows between rooms point."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_imports import imports

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / ".github" / "ARCHITECTURE.md").read_text()
PACKAGES = {
    "runmeter": ROOT / "instrumentation" / "runmeter",
    "runmeter_exporter": ROOT / "exporter" / "runmeter_exporter",
}
ROOMS = {
    (package, room): {name.strip() for name in allowed.split(",") if name.strip()}
    for package, room, allowed in re.findall(r"^\| `\w+/(\w+)/(\w+)` \|[^|]*\|([^|]*)\|$", PAGE, re.MULTILINE)
}


def test_every_room_is_on_the_page() -> None:
    """A folder of code that the page does not name, or one that is gone, fails."""
    there = {
        (package, folder.name)
        for package, root in PACKAGES.items()
        for folder in root.iterdir()
        if (folder / "__init__.py").exists()
    }
    assert set(ROOMS) == there


@pytest.mark.parametrize(("package", "room"), sorted(ROOMS))
def test_arrows_point_one_way(package: str, room: str) -> None:
    """A room imports what the page says, of its own package: no more, and no less."""
    found: set[str] = set()
    for path in (PACKAGES[package] / room).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == package and len(parts) > 1 and (package, parts[1]) in ROOMS:
                found.add(parts[1])
    assert found - {room} == ROOMS[package, room]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.py)`", PAGE))))
def test_every_file_named_exists(name: str) -> None:
    """Files are named from their package on."""
    places = [*PACKAGES.values(), ROOT, ROOT / "tests"]
    assert any((place / name).is_file() for place in places)


@pytest.mark.parametrize("test", sorted(set(re.findall(r"`(test_\w+\.py::\w+)`", PAGE))))
def test_every_test_named_exists(test: str) -> None:
    """The rules are shown by tests that there are."""
    file, _, function = test.partition("::")
    assert f"def {function}(" in (ROOT / "tests" / file).read_text()
