"""Texts and pages made of a template that lies beside the module that fills it."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def fill_template(package: str, name: str, **values: Any) -> str:
    """The text of the template ``name`` in a Python package; in .html what is filled in cannot become markup."""
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=select_autoescape(["html"], default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(name).render(**values)
