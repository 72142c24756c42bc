"""What the text of a plan says, as far as the panel must know; Slicer's Python has no reader of YAML."""

import json
import re
from pathlib import Path

# A value goes on in lines that are indented, where it is long.
_DATA = re.compile(r"^data:[ \t]+(\S.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
_FOLDS = re.compile(r"^\s+folds:\s*(\d+)", re.MULTILINE)


def foldsOfPlan(text: str) -> int | None:
    """Into how many folds the plan divides the cases; None where it does not say."""
    found = _FOLDS.search(text)
    return int(found[1]) if found else None


def dataOfPlan(text: str) -> Path | None:
    """The data set's folder as it stands there, perhaps relative to the plan's file; None where it does not say."""
    found = _DATA.search(text)
    value = _unquoted(found[1].strip()) if found else ""
    return Path(value) if value else None


def _unquoted(value: str) -> str:
    """A YAML text without its quotes, whose breaks of lines are blanks; empty where it is none that can be read."""
    if value.startswith('"'):
        # There a backslash before a break stands for no blank, and one after it for the blank that follows.
        joined = re.sub(r"\\\n[ \t]*(?:\\(?= ))?", "", value)
        try:
            return str(json.loads(re.sub(r"\s*\n\s*", " ", joined)))
        except ValueError:
            return ""
    value = re.sub(r"\s*\n\s*", " ", value)
    if value.startswith("'"):
        return value[1:-1].replace("''", "'") if value.endswith("'") else ""
    return re.sub(r"\s+#.*", "", value)
