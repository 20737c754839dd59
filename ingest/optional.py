"""Imports without what is optional: libraries ask for others that this project has, but not for them."""

import contextlib
import sys
from collections.abc import Iterator

KERAS = ("IPython", "matplotlib", "pandas", "sklearn")
"""What Keras, and so TensorFlow, asks for: 1.7 of the 3.7 s and 160 of the 720 MiB of its import. Models need none."""


@contextlib.contextmanager
def without(*modules: str) -> Iterator[None]:
    """Makes imports of optional modules fail, save of those that this process has loaded already."""
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes `import` raise ImportError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
