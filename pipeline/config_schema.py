"""The JSON Schema of ``pipeline.yaml``, made from the models, by which editors complete and check the file."""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from imagepipe.base.metrics import METRICS_BY_NAME
from pipeline.config import Config
from trainer.backbones import BACKBONES

SCHEMA_FILE = "pipeline.schema.json"
"""Name of the file, beside the configuration."""

# The draft that all editors know. Newer ones have nothing that is needed here.
_DRAFT = "http://json-schema.org/draft-07/schema#"


class _WithoutTitles(GenerateJsonSchema):
    """Leaves out pydantic's titles of keys, which only repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def make_json_schema() -> dict[str, Any]:
    """Returns the JSON Schema.

    It refuses unknown keys, wrong types and values out of range, as the models do. Rules about several keys, such as
    those about a task, are the models' alone.
    """
    schema = Config.model_json_schema(schema_generator=_WithoutTitles)
    definitions = schema["$defs"]

    # Names to choose from, which the models check by code.
    definitions["TrainerConfig"]["properties"]["backbone"]["anyOf"] = [
        {"enum": list(BACKBONES)},
        {"pattern": r"^[\w.]+:\w+$"},
    ]
    definitions["RuleConfig"]["properties"]["metric"]["enum"] = list(METRICS_BY_NAME)
    definitions["EvaluationConfig"]["properties"]["thresholds"]["propertyNames"] = {"enum": list(METRICS_BY_NAME)}

    # Values that the models convert before they check them.
    image = definitions["ImageConfig"]
    del image["required"]  # by default the size is the backbone's
    size = image["properties"]["size"]
    side = size.pop("prefixItems")[0]  # one schema for both sides, as draft 7 has no prefixItems
    image["properties"]["size"] = {
        "description": size.pop("description"),
        "anyOf": [size | {"items": side}, {"type": "null"}],
    }
    definitions["RuleConfig"]["properties"]["slice"]["additionalProperties"] = {"type": ["string", "number", "boolean"]}
    optimize = definitions["ServedConfig"]["properties"]["optimize"]
    optimize["enum"] = [*optimize["enum"], False]  # as YAML 1.1 reads off
    del optimize["type"]

    return {"$schema": _DRAFT, **schema, "title": "Configuration of an imagepipe pipeline"}


def render_json_schema() -> str:
    """Returns the JSON Schema as the text of a file."""
    return json.dumps(make_json_schema(), indent=1, ensure_ascii=False) + "\n"
