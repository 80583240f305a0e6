"""Who imports whom in the library, read from the source: nothing has to be loaded."""

import ast
from pathlib import Path

from ifcsr_lib.config import ROOT

LIBRARY = ROOT / "ifcsr_lib"


def sources(folder: Path) -> dict[str, tuple[ast.Module, bool]]:
    """{module: (its tree, whether it is a package's face)} of every Python file under folder, a package."""
    out = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        face = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if face else parts)
        out[name] = ast.parse(path.read_text(encoding="utf-8"), str(path)), face
    return out


def imports(name: str, tree: ast.Module, face: bool, known) -> dict[str, str]:
    """{name in this module: full name of what it stands for} of all imports from the library, at
    any depth.
    """
    home, out = (name if face else name.rpartition(".")[0]).split("."), {}
    root = home[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == root:
                    out[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*home[: len(home) - node.level + 1], *([node.module] if node.module else [])]
                )
            if base.split(".")[0] == root:
                for alias in node.names:
                    out[alias.asname or alias.name] = f"{base}.{alias.name}"
    return out


def graph(modules: dict) -> dict[str, set[str]]:
    """{module: modules that it imports}. `import a.b.c` runs a and a.b too, unless the importer
    lies in them.
    """
    edges = {}
    for name, (tree, face) in modules.items():
        edges[name] = set()
        for target in imports(name, tree, face, modules).values():
            while target not in modules and target:  # a name of a module stands for the module
                target = target.rpartition(".")[0]
            while target:
                if target != name and not name.startswith(f"{target}."):
                    edges[name].add(target)
                target = target.rpartition(".")[0]
    return edges
