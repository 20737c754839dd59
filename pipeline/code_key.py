"""The code of a component in its cache key. TFX's key has the name of the component's class, but not what it does.

Each component gets a hash of its code as one more execution property: TFX puts all of them into the key, and executors
ignore those that they don't know.
"""

from collections.abc import Iterable
from pathlib import Path

from tfx.dsl.components.base.base_component import BaseComponent

from imagepipe.base.code_closure import SOURCES, find_names, hash_code
from trainer.backbones import BACKBONES
from trainer.own_backbone import hash_module

CODE = "code"
"""Name of the execution property."""

_BASES = ("tfx.dsl.", "tfx.orchestration.")  # TFX's base classes of executors and drivers, which compute nothing


def add_code_keys(components: Iterable[BaseComponent], backbone: str) -> None:
    """Puts into the cache key of each component the code that it runs, as it is on this machine.

    Args:
        components: all of a pipeline.
        backbone: the one that is trained, which may be the user's own: then its code is that of the components too
            whose properties name it.
    """
    for component in components:
        properties = component.spec.exec_properties
        is_used = backbone not in BACKBONES and any(backbone in str(value) for value in properties.values())
        properties[CODE] = compute_code_key(component) + (hash_module(backbone) if is_used else "")


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
