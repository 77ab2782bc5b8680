"""The rules of the house: which room may import which. Every import counts, also inside functions and under TYPE_CHECKING."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "": 0, "errors": 0, "tokenizer_tools": 0, "spec": 1, "console": 1, "devices": 1,
    "artifacts": 2, "export_summary": 2, "summaries": 2, "weight_summaries": 2,
    "text_summaries": 2, "languages": 2, "context": 2, "ready": 2,
    "architectures": 2,
    "data": 3, "methods": 3, "models": 4, "evaluation": 4, "training": 5, "exports": 5, "report": 5,
    "stages": 6, "pipeline": 7, "cli": 8,
}  # fmt: skip
APART = ({"data", "architectures"},)
"""Rooms of different floors that do not know each other; rooms of one floor never do."""
READERS = {"report": ("langext.evaluation.certificate", "langext.evaluation.scores", "langext.evaluation.significance")}
"""Rooms that see nothing above floor 2 but these."""
ONLY = {"deepspeed": "langext.training.engine", "lm_eval": "langext.evaluation.harness", "rich": "langext.console"}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60


def module_of(path: Path, root: Path) -> str:
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> modules that it imports, for all Python files of langext and tokenizer_tools below `root`."""
    files = [path for room in ("langext", "tokenizer_tools") for path in sorted((root / room).rglob("*.py"))]
    names = {module_of(path, root) for path in files}

    def imported(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative imports are not used here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in names else str(node.module)

    trees = {module_of(path, root): ast.parse(path.read_text(encoding="utf-8")) for path in files}
    return {name: {found for node in ast.walk(tree) for found in imported(node)} for name, tree in trees.items()}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] != "langext" else parts[1] if len(parts) > 1 else ""


def broken(graph: dict[str, set[str]]) -> list[str]:
    """What breaks the rules, in words."""
    found = []
    for module, wanted in graph.items():
        here = room(module)
        for other in sorted(wanted):
            top = other.split(".")[0]
            if top in ONLY and module != ONLY[top]:
                found.append(f"{module} imports {top}, which only {ONLY[top]} may")
            if top not in ("langext", "tokenizer_tools") or room(other) == here:
                continue
            there = room(other)
            if here == "tokenizer_tools":
                found.append(f"{module} imports {other}, and tokenizer_tools imports nothing of langext")
            elif FLOORS[there] >= FLOORS[here]:
                found.append(f"{module} (floor {FLOORS[here]}) imports {other} (floor {FLOORS[there]})")
            elif any({here, there} == pair for pair in APART):
                found.append(f"{module} imports {other}: {here} and {there} do not know each other")
            elif here in READERS and FLOORS[there] > 2 and other not in READERS[here]:
                found.append(f"{module} imports {other}: {here} only reads what is on disk")
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle of imports; [] when there is none."""
    try:
        TopologicalSorter({name: wanted & graph.keys() for name, wanted in graph.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


GRAPH = imports(ROOT)


def test_every_room_imports_only_what_it_may():
    assert len(GRAPH) > 90 and {room(module) for module in GRAPH} == FLOORS.keys()
    assert broken(GRAPH) == []


def test_there_is_no_circle():
    assert circle(GRAPH) == []


def test_files_and_functions_are_short():
    for path in [path for folder in ("langext", "tokenizer_tools") for path in (ROOT / folder).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MOST_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < MOST_LINES_OF_A_FUNCTION, f"{path}: {node.name}"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("methods/new.py", "from langext.exports import write", "langext.methods.new (floor 3) imports langext.exports.write"),
        ("methods/new.py", "def f():\n    from langext.exports.write import write", "imports langext.exports.write (floor 5)"),
        ("data/new.py", "if TYPE_CHECKING:\n    from langext.architectures import stock", "do not know each other"),
        ("models/new.py", "import langext.evaluation.bpb", "langext.models.new (floor 4) imports langext.evaluation.bpb"),
        ("report/new.py", "from langext.models import loading", "report only reads what is on disk"),
        ("stages/new.py", "def f():\n    import lm_eval.tasks", "imports lm_eval, which only langext.evaluation.harness may"),
        ("cli/new.py", "from rich.table import Table", "imports rich, which only langext.console may"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, text, said):
    for name in ("exports/write.py", "architectures/stock.py", "evaluation/bpb.py", "models/loading.py", file):
        path = tmp_path / "langext" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if name == file else "", encoding="utf-8")
    (problem,) = broken(imports(tmp_path))
    assert said in problem


def test_a_planted_circle_is_found(tmp_path):
    (tmp_path / "langext").mkdir()
    (tmp_path / "langext" / "a.py").write_text("from langext import b", encoding="utf-8")
    (tmp_path / "langext" / "b.py").write_text("def f():\n    from langext.a import x", encoding="utf-8")
    assert set(circle(imports(tmp_path))) == {"langext.a", "langext.b"}
