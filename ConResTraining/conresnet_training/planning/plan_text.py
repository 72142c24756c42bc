"""The YAML text of plans and of their settings, read so that no value has a meaning that its writer did not intend."""

import re
from typing import Any, ClassVar

import yaml

# A plan of a hundred segments has a few thousand values, at most eight levels deep.
MOST_VALUES, DEEPEST = 100_000, 40
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_NUMBER = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$
    |[-+]?[0-9]+[eE][-+]?[0-9]+$
    |[-+]?\.(?:inf|Inf|INF)$
    |\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)


def _with_numbers(resolvers: dict[str, list]) -> dict[str, list]:
    """PyYAML's, except that 1:30 is not 90 and 010 not 8, as YAML 1.1 has it, and that 1e-9 is a number."""
    others = {first: [own for own in found if own[0] not in (_INT, _FLOAT)] for first, found in resolvers.items()}
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


def parse(text: str | bytes) -> Any:
    """YAML text. Raises yaml.YAMLError, also for text that is nested or repeated beyond any plan."""
    try:
        content = yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
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


def as_text(content: dict[str, Any]) -> str:
    """The opposite of ``parse``."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def reason_of(error: Exception) -> str:
    """What is wrong in YAML text, and in which line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}: {problem}"
    return " ".join(str(error).split())
