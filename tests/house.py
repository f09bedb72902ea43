"""The structure of the code: who imports whom, where imports run in a circle, and what each file says that it is.

python tests/house.py [ROOT]         figures
python tests/house.py --map [ROOT]   the tree that docs/architecture.md shows
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("featstore", "heads", "pipelines")


def read_imports(root: Path) -> dict[str, set[str]]:
    """By module, the modules of ours that it imports; those under `if TYPE_CHECKING` do not run and do not count."""
    files = {_name(file, root): file for package in PACKAGES for file in (root / package).rglob("*.py")}
    return {
        module: {_module(target, files) for target in _imported(file)} & files.keys() - {module}
        for module, file in files.items()
    }


def find_circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = imports[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    reach = {module: reached(module) for module in imports}
    circles = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in imports if a in reach[a]}
    return [list(circle) for circle in sorted(circles)]


def folder_of(module: str, root: Path) -> str:
    """The folder that a module lies in, or is."""
    path = module.replace(".", "/")
    return path if (root / path).is_dir() else path.rpartition("/")[0]


def draw_map(root: Path) -> str:
    """Every folder and file of ours, each with the first line of its docstring."""
    lines = []
    for package in PACKAGES:
        for folder in sorted({file.parent for file in (root / package).rglob("*.py")}):
            depth = len(folder.relative_to(root).parts) - 1
            lines.append(_line(folder / "__init__.py", f"{folder.name}/", depth))
            files = sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")
            lines += [_line(file, file.name, depth + 1) for file in files]
    return "\n".join(lines)


def _line(file: Path, name: str, depth: int) -> str:
    said = ast.get_docstring(ast.parse(file.read_text("utf-8"))) if file.exists() else None
    return f"{'  ' * depth + name:<28}{(said or '').partition(chr(10))[0]}".rstrip()


def _name(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imported(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text("utf-8"))
    unseen = {
        id(each)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for each in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError(f"{file}: a relative import; name the module from its package on")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (each.value for each in node.args[:1] if isinstance(each, ast.Constant))


def _module(target: str, files: dict[str, Path]) -> str:
    """The module that `from a.b import c` reads: a.b.c if that is one, or else a.b."""
    return target if target in files else target.rpartition(".")[0]


def main(root: Path) -> None:
    imports = read_imports(root)
    files = [file for package in PACKAGES for file in (root / package).rglob("*.py")]
    pairs = {(folder_of(a, root), folder_of(b, root)) for a, bs in imports.items() for b in bs}
    folders: dict[str, set[str]] = {}
    for a, b in pairs:
        folders.setdefault(a, set()).add(b) if a != b else folders.setdefault(a, set())
        folders.setdefault(b, set())
    print(f"lines {sum(len(file.read_text('utf-8').splitlines()) for file in files)}, files {len(files)}")
    print(f"folders with code {len({file.parent for file in files})}")
    print(f"imports between files {sum(map(len, imports.values()))}, between folders {sum(a != b for a, b in pairs)}")
    print(f"circles of files {len(find_circles(imports))}, of folders {len(find_circles(folders))}")
    for circle in find_circles(imports):
        print("  " + ", ".join(circle))


if __name__ == "__main__":
    arguments = [each for each in sys.argv[1:] if each != "--map"]
    where = Path(arguments[0] if arguments else ".")
    if "--map" in sys.argv:
        print(draw_map(where))
    else:
        main(where)
