"""The code of a component in its cache key. TFX's key has the name of the component's class, but not what it does.

Each component gets a hash of its code as one more execution property: TFX puts all of them into the key, and executors
ignore those that they don't know. The hash covers what a run is given by name as well: the code of a backbone of the
user's own, the files of weights, and the curated schema.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfx.dsl.components.base.base_component import BaseComponent

from imagepipe.base.code_closure import SOURCES, find_names, hash_code
from pipeline.source import hash_schema
from trainer.config import list_given
from trainer.given import hash_given

CODE = "code"
"""Name of the execution property."""

_BASES = ("tfx.dsl.", "tfx.orchestration.")  # TFX's base classes of executors and drivers, which compute nothing


def add_code_keys(components: Iterable[BaseComponent], trainer: Mapping[str, Any], schema: str | None) -> None:
    """Puts into the cache key of each component the code that it runs, as it is on this machine.

    Args:
        components: all of a pipeline.
        trainer: settings of a ``TrainerConfig``. A backbone of the user's own, and a file of weights, count for the
            components whose properties name them.
        schema: file of the curated schema, if there is one; it counts likewise.

    Raises:
        OSError: if the schema can't be read.
    """
    given = {name: hash_given(key, name) for key, name in list_given(trainer)}
    if schema:
        given[schema] = hash_schema(schema)
    for component in components:
        properties = component.spec.exec_properties
        text = " ".join(map(str, properties.values()))
        named = [digest for name, digest in given.items() if name in text or json.dumps(name)[1:-1] in text]
        properties[CODE] = "".join([compute_code_key(component), *named])


def compute_code_key(component: BaseComponent, sources: Path = SOURCES) -> str:
    """Returns a hash of the code that a component runs, see ``imagepipe.base.code_closure.hash_code``.

    Args:
        component: one of TFX's or of ours.
        sources: the folder of our packages.
    """
    return hash_code(list_modules(component), sources)


def list_modules(component: BaseComponent) -> set[str]:
    """Returns the modules of a component's executor and driver, and the names in its properties.

    Of TFX's executors it is the imports that count: they tell which libraries do the work. Properties name functions,
    such as the Trainer's ``run_fn``, and in the Evaluator's configuration the modules of metrics.
    """
    classes = (*component.executor_spec.executor_class.__mro__, *component.driver_class.__mro__)
    modules = {class_.__module__ for class_ in classes if not class_.__module__.startswith(_BASES)}
    return modules.union(*(find_names(str(value)) for value in component.exec_properties.values()))
