"""Texts and pages made of a template; all pages extend ``page.html``."""

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def fill_template(name: str, **values: Any) -> str:
    """The text of a template, named by its path in this package; in .html what is filled in cannot become markup."""
    environment = Environment(
        loader=PackageLoader("conresnet_training", ""),
        autoescape=select_autoescape(["html"], default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(name).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """An image as an address that holds it, so that a page is one file; ``kind`` is such as "png" or "svg+xml"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
