"""Who may import whom inside the package: the architecture, held by a test.

`ops <- layers, similarities <- models, projection, pruning, alignment <- explain, attacks <-
audits`; `losses` take tensors only; `data` stands alone; `training` never sees attacks, explain,
audits or the report; `report` reads files alone; `reproduce` plans
runs and audits and reads what they wrote; only `ops` speaks of `torch.ops`; `cli` composes.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "protofast"

# A part is a module or subpackage directly below protofast. `errors` is open to everyone.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "_build": set(),
    "files": set(),
    "heatmaps": set(),
    "sameness": set(),
    "settings_tree": set(),
    "ops": {"_build"},
    "info": {"ops", "_build", "_C"},
    "similarities": {"ops"},
    "layers": {"ops", "similarities"},
    "losses": set(),
    "models": {"ops", "layers", "similarities"},
    "alignment": {"models", "ops", "losses"},
    "export": {"models", "ops"},
    "scan": {"models"},
    "projection": {"models", "scan"},
    "pruning": {"models", "ops", "scan"},
    "data": {"files"},
    "evaluation": {"models", "data", "files", "scan"},
    "training": {
        "models",
        "layers",
        "losses",
        "alignment",
        "projection",
        "pruning",
        "data",
        "evaluation",
        "files",
        "heatmaps",
        "sameness",
        "scan",
        "settings_tree",
        "_build",
    },
    "explain": {
        "models",
        "ops",
        "similarities",
        "projection",
        "pruning",
        "data",
        "files",
        "heatmaps",
        "sameness",
        "scan",
    },
    "attacks": {"models", "ops", "data"},
    "audits": {
        "attacks",
        "explain",
        "models",
        "ops",
        "data",
        "evaluation",
        "files",
        "heatmaps",
        "scan",
        "settings_tree",
        "training",
    },
    "report": {"files"},
    "reproduce": {"training", "audits", "report", "files"},
    "interop": {"ops", "similarities", "layers", "models", "projection", "heatmaps"},
}


def _part(module: str) -> str | None:
    """The part of `protofast` that a dotted module name belongs to; None for others."""
    names = module.split(".")
    if names[0] != "protofast":
        return None
    return names[1] if len(names) > 1 else "__init__"


def _imports(path: Path) -> set[str]:
    """Parts of protofast that the file imports, wherever in the file the import stands."""
    own = ["protofast", *path.relative_to(PACKAGE).with_suffix("").parts]
    parts: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from protofast import x` names the part in the alias.
            if module == "protofast":
                modules = [f"protofast.{alias.name}" for alias in node.names]
            else:
                modules = [module]
        parts |= {part for module in modules if (part := _part(module))}
    return parts


FILES = sorted(PACKAGE.rglob("*.py"))
COMPOSING = {"cli", "__init__", "__main__"}


def _part_of_file(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if _part_of_file(path) not in COMPOSING],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_a_file_imports_only_what_its_part_may(path: Path) -> None:
    part = _part_of_file(path)
    assert part in ALLOWED, f"a new part, {part}: say in this test what it may import"
    surplus = _imports(path) - ALLOWED[part] - {part, "errors"}
    assert not surplus, f"{path.name} belongs to {part}, which may not import {sorted(surplus)}"


def test_only_ops_speaks_of_torch_ops() -> None:
    speakers = {_part_of_file(path) for path in FILES if "torch.ops" in path.read_text()}
    assert speakers <= {"ops", "_build"}


def test_the_check_sees_an_import() -> None:
    """The test above would be worthless if `_imports` were blind."""
    assert "models" in _imports(PACKAGE / "projection.py")
    assert "ops" in _imports(PACKAGE / "layers.py")
