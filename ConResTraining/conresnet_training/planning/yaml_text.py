"""YAML text of plans: reading it strictly, writing it, and saying in plain words where it is wrong."""

import re
from typing import Any, ClassVar

import yaml

from conresnet.package.schema import TOO_DEEP

# A plan of a hundred segments has a few thousand values, at most eight levels deep.
MOST_VALUES, DEEPEST = 100_000, 40
_INT, _FLOAT, _DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_NUMBER = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$
    |[-+]?[0-9]+[eE][-+]?[0-9]+$
    |[-+]?\.(?:inf|Inf|INF)$
    |\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)


def _with_numbers(resolvers: dict[str, list]) -> dict[str, list]:
    """PyYAML's, except that 1:30, 010 and 2024-01-01 are text, unlike in YAML 1.1, and 1e-9 is a number."""
    dropped = (_INT, _FLOAT, _DATE)
    others = {first: [own for own in found if own[0] not in dropped] for first, found in resolvers.items()}
    numbers = [(_INT, _INTEGER), (_FLOAT, _NUMBER)]
    return others | {first: numbers + others.get(first, []) for first in "-+0123456789."}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _with_numbers(yaml.SafeLoader.yaml_implicit_resolvers)

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Refuse a key that occurs twice; PyYAML would silently use the last one."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                problem = f'the key "{name[:80]}" occurs twice; remove one of them'
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(name)
        return node


class _Dumper(yaml.SafeDumper):
    # Text is quoted if either reading takes it for a number.
    yaml_implicit_resolvers: ClassVar = {
        first: found + _Loader.yaml_implicit_resolvers.get(first, [])
        for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def parse_yaml(text: str) -> Any:
    """The content of YAML text. Raises yaml.YAMLError, also for text that is nested or repeated beyond any plan."""
    try:
        content = yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError(TOO_DEEP) from error
    except (KeyError, AttributeError) as error:
        # From PyYAML, for a value that is not of the type named before it, such as !!bool maybe.
        raise yaml.YAMLError("it has a value that is not of the type named by !! before it") from error
    # Aliases can make a short text stand for billions of values.
    count, level = 0, [content]
    for _ in range(DEEPEST):
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [item for part in parts for item in part]
        count += len(level)
        if not level:
            return content
        if count > MOST_VALUES:
            break
    raise yaml.YAMLError("it has too many values or levels")


def yaml_text(content: dict[str, Any]) -> str:
    """The opposite of ``parse_yaml``."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def decoded(content: bytes) -> str:
    """The text in a file, which Windows may save as UTF-16. Raises UnicodeDecodeError if it is in another encoding."""
    is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    if "\0" in text:
        raise UnicodeDecodeError("utf-8", content, 0, 1, "not text")
    return text


_COLON = "there is no colon; write KEY: VALUE"
_SPACE = "put a space after the colon"
# A key whose colon has no space after it, unless it is the address of a file or page.
_UNSPACED = re.compile(r"\s*(?:- )?[\w.]+:(?=[^\s/])")
_HYPHEN = "put a space after the hyphen"
_QUOTES = "put text that begins with {letter} in quotation marks"
_INDENTED = "it is not indented like the other settings of its group"
# What PyYAML says, whether the place is where it began to read ("context") or where it gave up ("problem"), and what is
# probably wrong there. The first that matches counts.
_MISTAKES = (
    # It may quote any key, also one that is a word below.
    ("occurs twice", "problem", "{problem}"),
    (r"character '\\t'", "problem", "use spaces instead of tabs"),
    ("cannot start any token|found undefined alias", "problem", _QUOTES),
    (
        "expected alphabetic or numeric|constructor for the tag|undefined tag|expected a comment or|indentation ind",
        "context",
        _QUOTES,
    ),
    ("(mapping keys|sequence entries) are not allowed", "problem", _QUOTES),
    ("could not find expected ':'", "context", _COLON),
    ("end of stream|document separator", "context", "a quotation mark here is not closed"),
    ("parsing a flow node", "problem", "a bracket before this point is not closed, or a value is missing"),
    ("expected the node content", "problem", _QUOTES),
    ("expected ',' or", "problem", "the bracket opened in {context} is not closed, or a comma is missing"),
    ("but found '[]}]'", "problem", "the bracket {letter} was never opened; remove it"),
    ("but found '<scalar>'", "problem", "the value ends before this point; put all of it in double quotation marks"),
    ("expected (<block end>|'<document start>')", "problem", _INDENTED),
    ("escape", "problem", "a backslash in double quotation marks has a special meaning; use single quotation marks"),
    ("expected a single document", "problem", "expected a single document; remove this line and the second plan"),
)


def mistake(error: Exception, text: str) -> str:
    """What is probably wrong in text that ``parse_yaml`` refused with this error, with line and column if known."""
    if isinstance(error, yaml.reader.ReaderError):
        lines = _lines(text[: error.position])
        return _at(len(lines), len(lines[-1]) + 1, f"remove the control character U+{error.character:04X}")
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error) if isinstance(error, yaml.YAMLError) else "a number in it is too long"
    problem, lines = error.problem or "", _lines(text)
    marks = {"problem": error.problem_mark or error.context_mark, "context": error.context_mark or error.problem_mark}
    if "mapping values are not allowed" in problem:
        return _misplaced_colon(lines, marks["problem"].line, marks["problem"].column)
    said_by_yaml = f"{error.context} {problem}"
    known = (rest for pattern, *rest in _MISTAKES if re.search(pattern, said_by_yaml))
    where, said = next(known, ("problem", "this is not valid; compare it with a new plan"))
    mark, begun = marks[where], marks["context"]
    if said == _COLON:
        if unspaced := _UNSPACED.match(lines[mark.line]):
            return _at(mark.line + 1, unspaced.end(), _SPACE)
        said = _HYPHEN if re.match(r"-\S", lines[mark.line][mark.column :]) else said
    letter = lines[mark.line][mark.column : mark.column + 1]
    context = f"line {begun.line + 1}, column {begun.column + 1},"
    return _at(mark.line + 1, mark.column + 1, said.format(letter=letter, context=context, problem=problem))


def _misplaced_colon(lines: list[str], line: int, column: int) -> str:
    """What is wrong if a colon is where no key can be: often it is the line before that is not complete."""
    if ": " in lines[line][:column]:
        return _at(line + 1, column + 1, "put text that contains a colon in quotation marks")
    before = next((number for number in range(line - 1, -1, -1) if not re.match(r"\s*(#|$)", lines[number])), line)
    if unspaced := _UNSPACED.match(lines[before]):
        return _at(before + 1, unspaced.end(), _SPACE)
    if ":" not in lines[before] and not re.match(r"\s*- ", lines[before]):
        return _at(before + 1, len(lines[before]) + 1, _COLON)
    return _at(line + 1, column + 1, _INDENTED)


def _lines(text: str) -> list[str]:
    """The lines as YAML counts them."""
    return re.split("\r\n|[\r\n\x85\u2028\u2029]", text)


def _at(line: int, column: int, said: str) -> str:
    return f"line {line}: {said} (column {column})"
