"""Imports run one way: between rooms as `ROOMS` says, and between files without a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOPS = ("recipe", "probe", "reward", "launch")

# Each room and the rooms it may import. A room is the longest name here that a module's name begins with.
PLUGIN = "recipe.poise"
ROOMS: dict[str, set[str]] = {
    "probe": set(),  # mathematics; knows nothing of verl
    "reward": set(),  # stands alone, verl calls it by path
    # the data's way through a step
    f"{PLUGIN}.rollout": set(),
    f"{PLUGIN}.capture": {"probe", f"{PLUGIN}.rollout"},
    f"{PLUGIN}.choose": {"probe", f"{PLUGIN}.capture"},
    f"{PLUGIN}.correction": set(),
    f"{PLUGIN}.separate": {"probe", f"{PLUGIN}.correction"},
    f"{PLUGIN}.config": {"probe", *(f"{PLUGIN}.{room}" for room in ("capture", "choose", "correction", "separate"))},
    f"{PLUGIN}.cpu": {f"{PLUGIN}.capture", f"{PLUGIN}.rollout"},
    f"{PLUGIN}.plugin": {f"{PLUGIN}.cpu"},
    f"{PLUGIN}.baseline": {"probe", f"{PLUGIN}.capture", f"{PLUGIN}.config", f"{PLUGIN}.plugin"},
    f"{PLUGIN}.trainer": {
        *("probe", "reward"),
        *(f"{PLUGIN}.{room}" for room in ("baseline", "capture", "choose", "config", "correction", "cpu", "plugin")),
    },
    f"{PLUGIN}.moved": set(),
    f"{PLUGIN}.attention": set(),
    f"{PLUGIN}.trackers": set(),
    f"{PLUGIN}.main_poise": {
        f"{PLUGIN}.{room}" for room in ("attention", "config", "moved", "plugin", "rollout", "trackers", "trainer")
    },
    # applications beside it
    f"{PLUGIN}.progress": set(),
    f"{PLUGIN}.data": {"reward", f"{PLUGIN}.progress"},
    f"{PLUGIN}.evaluate": {"reward", f"{PLUGIN}.data", f"{PLUGIN}.progress"},
    f"{PLUGIN}.quickstart": {"reward", f"{PLUGIN}.progress"},
    # and above it
    "launch": {f"{PLUGIN}.{room}" for room in ("moved", "plugin", "separate")},
    f"{PLUGIN}.compare": {"probe", "launch", f"{PLUGIN}.quickstart"},
    f"{PLUGIN}.studies": {
        *("probe", "launch"),
        *(f"{PLUGIN}.{room}" for room in ("baseline", "capture", "choose", "compare", "config", "cpu", "evaluate")),
        f"{PLUGIN}.trainer",
    },
}


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for top in TOPS for file in sorted((ROOT / top).rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """Modules of ours that a file imports: at its top, in a function, or for type checkers."""
    tree = ast.parse(MODULES[module].read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inner or {node.module}
    return found & set(MODULES) - {module}


IMPORTS = {module: imports_of(module) for module in MODULES}


def room_of(module: str) -> str | None:
    names = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    return max(names, key=len, default=None)


def test_no_circle_between_files():
    try:
        order = list(TopologicalSorter(IMPORTS).static_order())
    except CycleError as error:
        pytest.fail("files import each other: " + " -> ".join(reversed(error.args[1])))
    assert len(order) == len(MODULES) > 100


def test_every_file_has_a_room():
    assert [module for module in MODULES if room_of(module) is None and module != PLUGIN] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_stands_under_it(room):
    mine = {module for module in MODULES if room_of(module) == room}
    assert mine
    used = {(module, other) for module in mine for other in IMPORTS[module] if room_of(other) not in (room, None)}
    assert [pair for pair in sorted(used) if room_of(pair[1]) not in ROOMS[room]] == []
    assert ROOMS[room] - {room_of(other) for _, other in used} == set(), "allowed, but not used: take it out"


def test_rooms_have_no_circle():
    list(TopologicalSorter(ROOMS).static_order())
