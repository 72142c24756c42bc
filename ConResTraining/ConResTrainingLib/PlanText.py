"""Values that the panel needs from a plan's text. Slicer's Python cannot read YAML."""

import json
import re
from pathlib import Path

# Long values continue on indented lines.
_DATA = re.compile(r"^data:[ \t]+(\S.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
_FOLDS = re.compile(r"^\s+folds:\s*(\d+)", re.MULTILINE)


def foldsOfPlan(text: str) -> int | None:
    """The number of folds in a plan; None if it is missing."""
    found = _FOLDS.search(text)
    return int(found[1]) if found else None


def dataOfPlan(text: str) -> Path | None:
    """The data set's folder in a plan, which may be relative to the plan's file; None if it is missing."""
    found = _DATA.search(text)
    value = _unquoted(found[1].strip()) if found else ""
    return Path(value) if value else None


def _unquoted(value: str) -> str:
    """A YAML string without its quotes, with line breaks as spaces; empty if it is invalid."""
    if value.startswith('"'):
        # In double quotes, a backslash before a line break removes it, and one after it keeps the space that follows.
        joined = re.sub(r"\\\n[ \t]*(?:\\(?= ))?", "", value)
        try:
            return str(json.loads(re.sub(r"\s*\n\s*", " ", joined)))
        except ValueError:
            return ""
    value = re.sub(r"\s*\n\s*", " ", value)
    if value.startswith("'"):
        return value[1:-1].replace("''", "'") if value.endswith("'") else ""
    return re.sub(r"\s+#.*", "", value)
