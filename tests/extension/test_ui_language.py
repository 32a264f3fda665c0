"""The page in English and German: two tables that say the same, and nothing that a person reads beside them."""

from __future__ import annotations

import ast
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
import pytest

from pixelkiln.extension import app, fetch, fields, language, recipe, studies, tagger, words, words_de
from pixelkiln.extension.page import Context

SAME = {
    "TITLE", "LANGUAGE", "PREVIOUS", "FOLLOWING", "GPU", "GPU_SIZE", "KOHYAS_NAME", "PRESET", "LOSS", "LOSSES",
    "OPEN_FOLDER_IN", "LOG_SCALE", "COMPARED", "USE_WHICH", "COMPARE_WHAT",
    "ZOOM", "SECTIONS",
}  # fmt: skip
"""Names whose words, or some of them, are the same in both languages."""


OF_OPTIONS = {"OPTION_WORDS", "OBJECTIVES"}
"""Their English is the trainer's own reference."""


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a table's entry, and where it stands in it."""
    if isinstance(value, str):
        yield at, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for key, one in parts:
        yield from leaves(one, f"{at}[{key!r}]")


def table(module: ModuleType) -> dict[str, str]:
    """``{"GOALS['style']": "A style"}`` of a table's module."""
    names = [name for name in vars(module) if name.isupper() and name not in OF_OPTIONS]
    return {where: text for name in names for where, text in leaves(vars(module)[name], name)}


def places(text: str) -> list[tuple[str, str | None]]:
    """What is filled in: which value, and how it is written; in the values' order."""
    found = [(field, spec) for _, field, spec, _ in string.Formatter().parse(text) if field is not None]
    return sorted((field or str(number), spec) for number, (field, spec) in enumerate(found))


ENGLISH, GERMAN = table(words), table(words_de)


def test_both_tables_have_the_same_entries_in_the_same_order() -> None:
    assert list(GERMAN) == list(ENGLISH)


def test_both_say_what_is_filled_in() -> None:
    wrong = [name for name in ENGLISH if places(ENGLISH[name]) != places(GERMAN.get(name, ""))]
    assert not wrong


def test_what_is_the_same_in_both_is_named_here() -> None:
    same = {name.partition("[")[0] for name, text in ENGLISH.items() if GERMAN.get(name) == text}
    assert same == SAME


def test_options_that_everybody_meets_are_explained_in_both() -> None:
    everybody = {*recipe.FIRST, *(key for keys in recipe.PRIMARY.values() for key in keys)}
    assert set(words_de.OPTION_WORDS) == everybody <= set(fields.rows())
    assert set(words_de.OBJECTIVES) == set(fields.objectives())
    assert not words.OPTION_WORDS and not words.OBJECTIVES


def test_spaces_at_the_ends_are_the_same() -> None:
    def ends(text: str) -> tuple[str, ...]:
        return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]

    assert not [name for name in ENGLISH if ends(ENGLISH[name]) != ends(GERMAN.get(name, ""))]


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What is evaluated when a module is imported: all but the bodies of functions."""
    yield node
    inside = node.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) else None
    for one in ast.iter_child_nodes(node):
        if one is not inside and not (isinstance(inside, list) and one in inside):
            yield from at_import(one)


def test_no_word_is_taken_before_it_is_known_who_reads_it() -> None:
    wrong = []
    for path in sorted(Path(words.__file__).parent.glob("*.py")):
        for node in at_import(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "words":
                wrong.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong


def test_errors_of_the_page_stand_in_the_table() -> None:
    """But for what is said in the terminal, before there is a page."""
    wrong = []
    for path in sorted(Path(words.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                line = ast.unparse(node.args[0])
                if "words." not in line and not line.startswith("str(error)"):  # the trainer's own
                    wrong.append(f"{path.name}: {line}")
    assert all(re.search(r"--(port|listen|password|runs)\b", one) for one in wrong), wrong


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, "en"),
        ({"accept-language": "de-AT,de;q=0.9,en;q=0.8"}, "de"),
        ({"accept-language": "en-GB,en;q=0.9,de;q=0.8"}, "en"),
        ({"accept-language": "fr, de;q=0.5, en;q=0.4"}, "de"),
        ({"accept-language": "de;q=0.3,en;q=0.7"}, "en"),
        ({"accept-language": "de;q=0"}, "en"),
        ({"accept-language": "fr"}, "en"),
        ({"accept-language": "*;q=x, ;;;"}, "en"),
        ({"accept-language": "en", "cookie": f"a=b; {language.COOKIE}=de"}, "de"),
        ({"accept-language": "de", "cookie": f"{language.COOKIE}=en"}, "en"),
        ({"accept-language": "de", "cookie": f"{language.COOKIE}=../x"}, "de"),
    ],
)
def test_what_was_chosen_comes_before_what_the_browser_asks_for(headers: dict[str, str], wanted: str) -> None:
    assert language.wanted(headers) == wanted


def test_no_rule_of_style_or_script_asks_for_a_word_that_is_shown() -> None:
    """A rule such as ``[value="left out"]`` would hold in one language alone."""
    files = [*Path(language.__file__).parent.glob("*.css"), *Path(language.__file__).parent.glob("*.js")]
    asked = [found for file in files for found in re.findall(r"""=\\?["']([^"']+)""", file.read_text(encoding="utf-8"))]
    assert "status-tracker" in asked and not set(ENGLISH.values()) & set(asked)


def test_a_word_is_of_the_language_that_is_spoken() -> None:
    assert words.OPEN == "Open"
    with language.speaking("de"):
        assert words.OPEN == "Öffnen"
        assert words.number(1, words.PICTURES) == "1 Bild"
        assert words.number(2, words.PICTURES) == "2 Bilder"
    assert words.OPEN == "Open"


def shown(blocks: Any) -> set[str]:
    """Every text that a built page shows before its first event."""
    texts: list[Any] = [blocks.title]
    for one in blocks.blocks.values():
        if not isinstance(one, gr.State):
            texts += [getattr(one, name, None) for name in ("label", "info", "placeholder", "value")]
            texts += [choice[0] for choice in getattr(one, "choices", None) or []]
    for text in [one for one in texts if isinstance(one, str)]:
        texts += re.findall(r'(?:title|alt|aria-label)="([^"]*)"', text)
    return {re.sub(r"<[^>]*>", " ", text).replace("``", "").strip() for text in texts if isinstance(text, str)}


def of_the_trainer() -> set[str]:
    """What is written in English for every page: the reference of options, and the questions of ready studies."""
    rows = [row for candidates in fields.rows().values() for row in candidates]
    texts = {fields.label(row) for row in rows} | {row["help"].replace("``", "") for row in rows} | {"last"}
    texts |= {row["table"].partition(".")[0] for row in rows}
    texts |= {name for row in rows for _, name in fields.choices(row)}
    return texts | set(fields.objectives().values()) | {shown for shown, _ in studies._ready()}


def test_nothing_is_shown_that_does_not_stand_in_the_table(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built from a table whose letters are all ¤, the page has letters only in what the trainer says and in names."""
    table = ModuleType("pixelkiln.extension.words_xx")
    for name in (name for name in vars(words) if name.isupper()):
        setattr(table, name, blinded(vars(words)[name]))
    monkeypatch.setitem(sys.modules, table.__name__, table)
    with language.speaking("xx"):
        texts = shown(app.page(context))
    texts = {re.sub(r" \(¤{5}: \w+\)$", "", text) for text in texts} - of_the_trainer()
    names = [str(context.home.runs / "studies"), str(tagger.FOLDER)]
    for source in fetch.SOURCES.values():
        names += [source.title, source.licence, source.repository]
    for name in sorted(names, key=len, reverse=True):
        texts = {text.replace(name, "") for text in texts}
    assert any("¤" in text for text in texts)
    assert not {text for text in texts if re.search(r"[a-z]{2}", text)}


def blinded(value: Any) -> Any:
    """A table's entry without letters; places that are filled in stay."""
    if isinstance(value, str):
        return re.sub(r"(\{[^}]*\})|[^\W\d_]", lambda found: found[1] or "¤", value)
    if isinstance(value, dict):
        return {key: blinded(one) for key, one in value.items()}
    return tuple(map(blinded, value)) if isinstance(value, tuple) else value
