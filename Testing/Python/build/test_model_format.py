"""The documentation of model.json in docs/ matches the dataclasses."""

import importlib.util
import json
from pathlib import Path


def test_table_and_json_schema_of_model_json_are_current(repository: Path) -> None:
    place = repository / "Utilities" / "update_model_format.py"
    spec = importlib.util.spec_from_file_location("update_model_format", place)
    utility = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utility)
    page = utility.PAGE.read_text(encoding="utf-8")
    assert page == utility.page(page), f"run {place.name}"
    assert utility.SCHEMA.read_text(encoding="utf-8") == utility.schema_text(), f"run {place.name}"


def test_json_schema_has_fields_of_shipped_models(repository: Path) -> None:
    schema = json.loads((repository / "docs" / "model.schema.json").read_text(encoding="utf-8"))
    for path in (repository / "ConResSegmentation" / "conresnet" / "models").glob("*/model.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        assert set(schema["required"]) <= set(document) <= set(schema["properties"]), path.parent.name
