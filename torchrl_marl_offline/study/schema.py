"""The JSON schema of a study file, for editors and other tools."""

from __future__ import annotations

from typing import Any

from torchrl_marl_offline.core.tables import json_schema_of
from torchrl_marl_offline.study.settings import study_tables


def study_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a study file: its keys, their types, ranges, words and defaults.

    It is made of what :func:`read_study` checks by, the settings of all algorithms that are registered at the time
    included. A schema cannot say all of it: which settings a method reads, that a dataset is there, that no number is
    NaN, and that ``3.0`` is no whole number, is found by :func:`read_study` alone.

    Returns:
        What ``json.dumps`` writes. Editors with Taplo, such as Visual Studio Code with Even Better TOML, complete and
        check a TOML file whose first line names the schema's file: ``#:schema ./study.schema.json``.

    Example:
        >>> from torchrl_marl_offline.study import study_schema
        >>> study_schema()["$defs"]["EvaluationTable"]["properties"]["episodes"]["maximum"]
        1048576
    """
    schema = json_schema_of(study_tables().file)
    dataset = {"$ref": "#/$defs/Dataset"}
    schema["$defs"]["Dataset"]["oneOf"] = [{"required": ["source"]}, {"required": ["task"]}]
    tables = schema["properties"]["datasets"]
    told = {key: tables.pop(key) for key in ("title", "description")}
    listed = {"type": "array", "items": {"anyOf": [{"type": "string"}, dataset]}, "minItems": 1}
    schema["properties"]["datasets"] = told | {"anyOf": [tables, listed]}
    return schema
