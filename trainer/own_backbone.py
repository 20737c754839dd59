"""A backbone of the user's own: ``trainer.backbone: my_package.networks:build``.

``build(image_size)`` gives the network without its classifier; see docs/backbones.md. Beside it, its module has what
``trainer.backbones`` has of the built-in ones, as constants that are written out:

    SIZE = (224, 224)           # (height, width) in pixels of the images that it was trained on
    MIN_SIDE = 32               # minimum height and width in pixels
    SCALING = "-1 to 1"         # or "0 to 1", "0 to 255", or {"scale": (r, g, b), "offset": (r, g, b)}
    UNFREEZE_AFTER = "block_9"  # layer above which fine-tuning starts

They are read from the source, so that a configuration is checked without importing the module, and TensorFlow with it.
"""

import ast
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from imagepipe.base.code_closure import hash_code
from imagepipe.base.errors import ConfigError, describe_error
from imagepipe.base.labels import list_names
from imagepipe.base.syntax import parse_source
from trainer.backbones import Backbone, Scaling

_SCALINGS = {
    "0 to 255": Scaling((1.0,) * 3, (0.0,) * 3),
    "0 to 1": Scaling((1 / 255,) * 3, (0.0,) * 3),
    "-1 to 1": Scaling((1 / 127.5,) * 3, (-1.0,) * 3),
}
_CONSTANTS = ("SIZE", "MIN_SIDE", "SCALING", "UNFREEZE_AFTER")


class _Constants(BaseModel):
    model_config = ConfigDict(strict=True)

    SIZE: Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]
    MIN_SIDE: PositiveInt
    SCALING: Any
    UNFREEZE_AFTER: Annotated[str, Field(min_length=1)]


def read_backbone(name: str) -> Backbone:
    """Reads what a module says of its backbone.

    Args:
        name: ``module:function``, the module importable here.

    Raises:
        ConfigError: there is no such module or function, or a constant is missing or wrong.
    """
    module, _, function = name.partition(":")
    file = _locate(module)
    tree = parse_source(file)
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if function not in functions + _list_names(tree):
        raise ConfigError(f"{file} has no function '{function}', only {list_names(functions) or 'none'}")
    constants = _read_constants(tree)
    if missing := [key for key in _CONSTANTS if key not in constants]:
        raise ConfigError(f"{file} has to say {' and '.join(missing)} of its network, as docs/backbones.md has it")
    try:
        checked = _Constants(**constants)
        scaling = _SCALINGS.get(str(checked.SCALING)) or TypeAdapter(Scaling).validate_python(checked.SCALING)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) if first["loc"][:1] and first["loc"][0] in _CONSTANTS else "SCALING"
        choices = f"; SCALING is one of {', '.join(map(repr, _SCALINGS))}, or scale and offset of each channel"
        raise ConfigError(f"{file}: {key}: {first['msg']}{choices if key == 'SCALING' else ''}") from error
    return Backbone("", scaling, checked.SIZE, checked.MIN_SIDE, checked.UNFREEZE_AFTER)


def load_function(name: str) -> Callable[[tuple[int, int]], Any]:
    """Imports a module that ``read_backbone`` takes, and returns its function.

    Raises:
        ConfigError: it doesn't take it, or the module fails.
    """
    read_backbone(name)
    module, _, function = name.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise ConfigError(f"{module} can't be imported: {describe_error(error)}") from error
    if not callable(loaded):
        raise ConfigError(f"{name} is {type(loaded).__name__}, and no function")
    return loaded


def hash_module(name: str) -> str:
    """Returns a hash of a backbone's code: its module, what that imports, and the versions of packages.

    Modules count as code that are of its package, or lie beside it and were not installed there.

    Raises:
        ConfigError: there is no such module, or one of them is no Python.
    """
    module = name.partition(":")[0]
    package = module.partition(".")[0]
    folder = _locate(module).parents[module.count(".") + (_locate(module).name == "__init__.py")]
    return hash_code([module], folder, (package,), with_others=True)


def _locate(module: str) -> Path:
    """Returns the source file of a module, which is not imported, nor is its package."""
    spec: ModuleSpec | None = None
    parts = module.split(".")
    if all(part.isidentifier() for part in parts):
        with suppress(ValueError):  # of what came from no file
            spec = importlib.util.find_spec(parts[0])
        for count in range(1, len(parts)):
            places = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(".".join(parts[: count + 1]), places) if places else None
    # __main__ is another module's other name: of whatever program runs this.
    if not (spec and spec.name == module and spec.origin and spec.origin.endswith(".py")):
        raise ConfigError(
            f"there is no module '{module}' here: install its package in this environment, or put the folder that it "
            "is in on PYTHONPATH"
        )
    return Path(spec.origin)


def _list_names(tree: ast.Module) -> list[str]:
    """Returns the names of a module that may be functions without a ``def``: imported, or assigned as a ``partial``."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    imported = [alias.asname or alias.name for node in imports for alias in node.names]
    return imported + [name for name, _ in _iterate_assigned(tree) if name not in _CONSTANTS]


def _read_constants(tree: ast.Module) -> dict[str, Any]:
    """Returns the constants of a module whose values are written out."""
    constants = {}
    for key, value in _iterate_assigned(tree):
        if key in _CONSTANTS:
            with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                constants[key] = ast.literal_eval(value)
    return constants


def _iterate_assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                yield name, value
