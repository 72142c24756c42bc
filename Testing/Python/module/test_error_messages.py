"""Every error message is in the catalog once and is marked for translation."""

from __future__ import annotations

import ast
import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from slicer.i18n import getContext

from conresnet.errors import UserError
from conresnet.messages import MESSAGES, sentence
from conresnet.package import outputs
from ConResSegmentationLib import Widgets
from ConResSegmentationLib.EngineConnection import EngineError

PRODUCT = ("ConResSegmentation", "ConResTraining")
CATALOG = Path("ConResSegmentation") / "conresnet" / "messages"


def modules(repository: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Yield (file, its syntax tree) for every Python file of the product."""
    for folder in PRODUCT:
        for path in sorted((repository / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def errors(repository: Path) -> Iterator[tuple[str, str, set[str] | None]]:
    """Yield (file and line, code, names of its values) for each UserError; names are None if passed as ``**values``.

    Errors with a message of their own are left out, because their codes need not be in the catalog.
    """
    for path, tree in modules(repository):
        for node in ast.walk(tree):
            name = getattr(getattr(node, "func", None), "id", getattr(getattr(node, "func", None), "attr", ""))
            if not isinstance(node, ast.Call) or name not in ("UserError", "within") or len(node.args) != 1:
                continue
            code = node.args[0]
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                names = {keyword.arg for keyword in node.keywords}
                names |= {"sentence"} if name == "within" else set()
                yield f"{path.name}:{node.lineno}", code.value, None if None in names else names


def placeholders(template: str) -> set[str]:
    """The names of the placeholders in a message."""
    return {name.split(".")[0] for _text, name, *_rest in string.Formatter().parse(template) if name}


def test_every_error_has_a_message_and_its_values(repository: Path) -> None:
    for place, code, names in errors(repository):
        assert code in MESSAGES, f"{place}: {code} has no message in the catalog"
        missing = placeholders(MESSAGES[code]) - names if names is not None else set()
        assert not missing, f"{place}: {code} is raised without {sorted(missing)}"


def test_no_message_is_repeated(repository: Path) -> None:
    repeated = [template for template, count in Counter(MESSAGES.values()).items() if count > 1]
    assert repeated == []
    templates = set(MESSAGES.values())
    for path, tree in modules(repository):
        if CATALOG.as_posix() not in path.as_posix():
            texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            assert not texts & templates, f"{path.name} repeats {texts & templates}"


def test_no_long_text_is_repeated(repository: Path) -> None:
    """Covers the product's Python files, without docstrings, and its .ui files."""
    places: dict[str, list[str]] = {}
    for path, tree in modules(repository):
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                places.setdefault(" ".join(node.value.split()), []).append(f"{path.name}:{node.lineno}")
    for folder in PRODUCT:
        for path in (repository / folder).rglob("*.ui"):
            for element in ElementTree.parse(path).iter("string"):
                places.setdefault(" ".join((element.text or "").split()), []).append(path.name)
    assert not {text: found for text, found in places.items() if len(found) > 1 and _is_long(text)}


def _is_long(text: str) -> bool:
    return len(text) >= 22 and text.count(" ") >= 3


def catalogs(repository: Path) -> Iterator[tuple[Path, str, ast.expr]]:
    """Yield (file, code, template) for each message in the files of the catalog."""
    for path in sorted((repository / CATALOG).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # The dictionary of all catalogs has no codes of its own.
            if isinstance(node, ast.Dict) and not any(isinstance(value, ast.Name) for value in node.values):
                for key, value in zip(node.keys, node.values, strict=True):
                    yield path, key.value, value


def test_every_message_has_its_own_code_and_is_marked_for_translation(repository: Path) -> None:
    codes = []
    for path, code, template in catalogs(repository):
        codes.append(code)
        assert getattr(getattr(template, "func", None), "id", "") == "_", f"{path.name}: {code} is not in _()"
        assert isinstance(template.args[0], ast.Constant), f"{path.name}: {code} is not one literal"
    assert sorted(codes) == sorted(MESSAGES), "a code is in the catalog twice"


def test_slicer_finds_translations_under_the_file_that_has_the_message(slicer_app: object, repository: Path) -> None:
    asked = []
    for path, code, _template in catalogs(repository):
        sentence(code, {}, lambda context, text: asked.append((context, text)) or "")
        assert asked.pop() == (getContext(str(path)), MESSAGES[code])


def test_texts_about_maps_are_marked_and_found_under_their_file(slicer_app: object, repository: Path) -> None:
    path = repository / "ConResSegmentation" / "conresnet" / "package" / "outputs.py"
    assert getContext(str(path)) == outputs.MAPS_CONTEXT
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    marked = [call.args[0].value for call in calls if getattr(call.func, "id", "") == "_"]
    assert marked == [text for entry in outputs.MAPS.values() for text in (entry.title, entry.description)]


def test_every_message_can_be_filled_in_and_is_punctuated(slicer_app: object) -> None:
    for code, template in MESSAGES.items():
        assert template == template.strip(), template
        assert template[-1] in ".?}" or code.startswith("reason-"), "only reasons are fragments of a sentence"
        values = {name: 2 for name in placeholders(template)}
        shown = Widgets.errorSentence(EngineError(code, "English", values))
        assert shown != "English" and not re.search(r"\{\w+\}", shown), code


@pytest.mark.parametrize("wrong", ["{nom}", "{0}", "{name"])
def test_error_is_shown_in_users_language(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = UserError("roi-not-found", path="a.json")
    monkeypatch.setattr(Widgets, "translate", lambda context, text: "{path} gibt es nicht.")
    assert Widgets.errorSentence(error) == "a.json gibt es nicht."
    monkeypatch.setattr(Widgets, "translate", lambda context, text: f"{wrong} gibt es nicht.")
    assert Widgets.errorSentence(error) == error.message


def test_engines_own_text_is_shown_if_code_or_values_are_missing(slicer_app: object) -> None:
    assert Widgets.errorSentence(EngineError("new-code", "English", {})) == "English"
    assert Widgets.errorSentence(EngineError("roi-outside", "English", {})) == "English"
