"""The rooms of the library: imports form no circle, and no room uses another's private names.

Read from the source with ast, so that imports inside functions count too and nothing has to be loaded.
"""

import ast
import importlib

import pytest
from import_graph import LIBRARY, graph, imports, sources


def circle(edges: dict[str, set[str]]) -> list[str]:
    """A path of imports that ends where it began, or []."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name, []))), [])


def private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def room(module: str, modules: dict) -> str:
    """The sub-package of a module; a module at the top is a room of its own."""
    parts = module.split(".")
    first = ".".join(parts[:2])
    return first if len(parts) > 1 else module


def trespasses(modules: dict) -> set[tuple[str, str]]:
    """(module, private name of another room) wherever one is imported, or reached as an attribute."""
    out = set()
    for name, (tree, face) in modules.items():
        known = imports(name, tree, face, modules)
        used = set(known.values())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr):
                chain, value = [node.attr], node.value
                while isinstance(value, ast.Attribute):
                    chain, value = [value.attr, *chain], value.value
                if isinstance(value, ast.Name) and value.id in known:
                    used.add(".".join([known[value.id], *chain]))
        for target in used:
            if not any(private(part) for part in target.split(".")):
                continue
            owner = target
            while owner not in modules:
                owner = owner.rpartition(".")[0]
            if room(owner, modules) != room(name, modules):
                out.add((name, target))
    return out


@pytest.fixture(scope="module")
def modules():
    return sources(LIBRARY)


def test_no_circle_of_imports(modules):
    edges = graph(modules)
    assert len(edges) > 30 and sum(map(len, edges.values())) > 100  # the library was read at all
    assert not (found := circle(edges)), " imports ".join(found)


def test_no_private_name_of_another_room(modules):
    found = trespasses(modules)
    assert not found, "; ".join(f"{name} uses {target}" for name, target in sorted(found))


def test_modules_load_by_name_in_faces_alone(modules):
    """`import_module` hides an import from the tests above; only a face's table of names may."""
    for name, (tree, face) in modules.items():
        calls = {
            n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", "")
            for n in ast.walk(tree)
            if isinstance(n, ast.Call)
        }
        assert face or not calls & {"import_module", "__import__"}, name


def test_names_of_the_faces_exist():
    for face in ("ifcsr_lib", "ifcsr_lib.control", "ifcsr_lib.data", "ifcsr_lib.evaluate"):
        module = importlib.import_module(face)
        for name in module.__all__:
            assert getattr(module, name) is not None, f"{face}.{name}"
        with pytest.raises(AttributeError, match="missing_name"):
            module.missing_name  # noqa: B018


def test_the_finders_find(tmp_path):
    """Circles at the top, inside functions, and through a face; private names by import and as attributes."""
    package = tmp_path / "pack"
    for folder in ("a", "b"):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").touch()
    (package / "__init__.py").write_text("")
    (package / "top.py").write_text("def f():\n    from .a.one import g\n")
    (package / "a" / "one.py").write_text(
        "from ..b import two as other\nfrom ..b.two import _hidden\nother._reached\n"
    )
    (package / "b" / "two.py").write_text("_hidden = _reached = 1\n")
    (package / "b" / "three.py").write_text(
        "from .two import _hidden\nfrom . import two\ntwo._reached\ntwo.__name__\n"
    )
    modules = sources(package)
    assert circle(graph(modules)) == []
    assert trespasses(modules) == {
        ("pack.a.one", "pack.b.two._hidden"),
        ("pack.a.one", "pack.b.two._reached"),
    }
    (package / "b" / "two.py").write_text("def f():\n    import pack.top\n")
    assert circle(graph(sources(package))) == ["pack.a.one", "pack.b.two", "pack.top", "pack.a.one"]
    (package / "b" / "two.py").write_text("")
    (package / "b" / "__init__.py").write_text("from ..a import one\n")
    assert circle(graph(sources(package))) == ["pack.a.one", "pack.b", "pack.a.one"]
