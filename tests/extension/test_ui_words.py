"""What a person reads on the page stands in one file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

EXTENSION = Path(__file__).resolve().parents[2] / "extension"
OTHERS = {"words.py", "__main__.py", "host_tab.py", "look.py"}
"""The words themselves, the help of flags, a file that may import nothing of ours, the names of letters."""
NAMES = {"Documents", "Desktop", "Downloads"}
"""Folders, not words."""


def labels(source: str) -> list[str]:
    """Texts that begin as a label or a sentence does, tags aside; docstrings and errors are none."""

    def texts(tree: ast.AST) -> Iterator[str]:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            yield from texts(node)

    found = re.compile(r"\W*[A-Z][a-z]+( [a-z]|\W*$)")
    return [one for one in texts(ast.parse(source)) if found.match(re.sub(r"<[^>]*>", "", one)) and one not in NAMES]


def test_a_label_is_found() -> None:
    source = '"""Of a file."""\nrows = [("Held out", 1), f"<h3>It needs {x}</h3>", "data.path", "sdxl step 3"]\n'
    assert labels(source + 'raise ValueError("Not here")\n') == ["Held out", "<h3>It needs "]


def test_every_label_of_the_page_is_in_its_file() -> None:
    found = {path.name: labels(path.read_text(encoding="utf-8")) for path in EXTENSION.glob("*.py")}
    assert len(found) > 20
    assert not {name: some for name, some in found.items() if some and name not in OTHERS}
