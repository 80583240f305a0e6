"""Print two numbers: the lines of the method (loss.py, models.py, trainer.py), and those of all ifcsr_lib.

Lines are what `wc -l` says. Lines of code are those without blank lines, comments and docstrings.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent.parent / "ifcsr_lib"
METHOD = ("loss.py", "models.py", "trainer.py")
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> int:
    """The lines of a Python source that hold code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if documented and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def count(names=None) -> tuple[int, int]:
    """(lines, lines of code) of these files of ifcsr_lib, or of all of it."""
    paths = [LIBRARY / name for name in names] if names else sorted(LIBRARY.rglob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return sum(text.count("\n") for text in texts), sum(map(code_lines, texts))


def main() -> int:
    for path in sorted(LIBRARY.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(LIBRARY).as_posix()
        print(f"{text.count(chr(10)):6} lines, {code_lines(text):6} of code: {name}")
    lines, code = count(METHOD)
    print(f"the method, {', '.join(METHOD)}: {lines:,} lines, {code:,} of code")
    lines, code = count()
    print(f"all of ifcsr_lib: {lines:,} lines, {code:,} of code")
    return 0


if __name__ == "__main__":
    sys.exit(main())
