"""Print the lines of code in ifcsr_lib: no blank lines, no comments, no docstrings."""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent / "ifcsr_lib"
total = 0
for path in sorted(ROOT.rglob("*.py")):
    text = path.read_text(encoding="utf-8")
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    print(f"{len(lines):6} {path.relative_to(ROOT).as_posix()}")
    total += len(lines)
print(f"{total:6} lines of code in ifcsr_lib")
