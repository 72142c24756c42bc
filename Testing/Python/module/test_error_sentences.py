"""Every error that a user of Slicer can meet is said in the user's language, with the values that it comes with."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from ConResSegmentationLib import Messages
from ConResSegmentationLib.EngineProcess import EngineError
from ConResSegmentationLib.Messages import errorSentences

# Errors that cannot come up when the engine works for Slicer, by what keeps them away.
NOT_FROM_SLICER = {
    # Slicer reads the images and the region itself.
    *("image-not-found", "cannot-read", "not-an-image", "image-2d", "image-4d", "image-color", "image-complex"),
    *("wrong-component-count", "roi-not-found", "dicom-none", "dicom-several", "dicom-mixed", "dicom-no-position"),
    *("dicom-tilt", "dicom-uneven"),
    # The command line's own: its lists, its output and its options, which the panel offers as choices.
    *("cases-unreadable", "cases-columns", "cases-row", "cases-empty", "cases-failed", "packages-wrong"),
    *("output-not-folder", "output-not-nifti", "results-exist", "models-folder-not-found"),
    *("tiling-unknown", "precision-unknown", "map-unknown", "channels-unclear"),
    # The import of the authors' checkpoints, and networks loaded one by one, are for the command line and Python.
    *("checkpoint-not-found", "checkpoint-unreadable", "checkpoint-object"),
    *("settings-unreadable", "settings-unknown", "channels-differ", "network-ambiguous", "network-not-found"),
    # A package with such a value has been refused as "package-description" before.
    *("bad-orientation", "bad-spacing", "bad-foreground", "bad-intensity"),
    # The module writes the grids.
    "bad-grid",
}
# They pass on the codes of others: the engine's, the command line's, and a few of the import's.
PASSED_ON_IN = ("EngineProcess.py", "EngineConnection.py", "result_folder.py", "authors_checkpoint.py")

Raised = tuple[str, str, str, set[str]]


def raised(folder: Path) -> Iterator[Raised]:
    """(file and line, code, kind of the message's node, names of the values) of every error made in a folder."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in ("UserError", "EngineError", "_failure", "send_error") and node.args:
                    yield from _call(place, path, node)
            elif isinstance(node, ast.Dict):
                fields = {key.value: value for key, value in zip(node.keys, node.values, strict=True) if _text(key)}
                if _text(fields.get("code")):
                    values = _keys(fields.get("values"))
                    yield place, fields["code"].value, type(fields["message"]).__name__, values


def _call(place: str, path: Path, node: ast.Call) -> Iterator[Raised]:
    values = {keyword.arg for keyword in node.keywords if keyword.arg} - {"log", "ours"}
    if len(node.args) > 2:
        values |= _keys(node.args[2])
    if _text(node.args[0]):
        yield place, node.args[0].value, type(node.args[1]).__name__, values
    elif path.name == "server.py":
        # One of two codes, chosen some lines above.
        for code in ("engine-incomplete", "engine-broken"):
            assert f'"{code}"' in path.read_text(encoding="utf-8")
            yield place, code, "", values
    else:
        assert path.name in PASSED_ON_IN, f"{place}: which code is it?"


def _text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _keys(node: ast.AST | None) -> set[str]:
    return {key.value for key in node.keys} if isinstance(node, ast.Dict) else set()


@pytest.fixture(scope="module")
def from_the_engine(repository: Path) -> list[Raised]:
    return list(raised(repository / "ConResSegmentation" / "conresnet"))


def test_every_error_of_the_engine_has_a_sentence_or_a_reason_to_have_none(from_the_engine: list[Raised]) -> None:
    codes = {code for _place, code, *_rest in from_the_engine}
    assert len(codes) > 60
    sentences = set(errorSentences())
    assert codes - sentences - NOT_FROM_SLICER == set()
    assert sentences - codes == set(), "sentences for errors that there are not"
    assert NOT_FROM_SLICER - codes == set()
    assert sentences & NOT_FROM_SLICER == set()


def test_every_sentence_gets_the_values_it_speaks_of(from_the_engine: list[Raised]) -> None:
    sentences = errorSentences()
    for place, code, _kind, values in from_the_engine:
        names = {name for _text, name, *_rest in string.Formatter().parse(sentences.get(code, "")) if name}
        assert names <= values, f"{place}: {code} lacks {names - values}"


def test_errors_of_slicers_own_process_are_said_in_the_users_language(repository: Path) -> None:
    made = list(raised(repository / "ConResSegmentation" / "ConResSegmentationLib"))
    assert len(made) > 12
    english = [(place, code) for place, code, kind, _values in made if kind in ("Constant", "JoinedStr")]
    assert english == []


@pytest.mark.parametrize("code", errorSentences())
def test_every_sentence_can_be_said(code: str) -> None:
    sentence = errorSentences()[code]
    names = {name for _text, name, *_rest in string.Formatter().parse(sentence) if name}
    numbers = {"value": 1.5, "count": 2}
    said = Messages.sentence(EngineError(code, "English", {name: numbers.get(name, name) for name in names}))
    assert said != "English" and "{" not in said and said.endswith(".")


def test_without_its_values_an_error_is_said_as_the_engine_said_it() -> None:
    assert Messages.sentence(EngineError("roi-outside", "English", {})) == "English"
    assert Messages.sentence(EngineError("image-constant", "English", {"name": "a", "value": "b"})) == "English"
    assert Messages.sentence(EngineError("new-code", "English", {})) == "English"
