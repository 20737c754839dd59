"""Which files a person means."""

import glob
from pathlib import Path

from imagepipe.base.errors import ModelError

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def image_files(arguments: list[str]) -> list[Path]:
    """Expands files, folders (the images in them, at any depth) and globs.

    Args:
        arguments: paths or patterns. A name that exists is taken as it is, also with a ``[`` in it.

    Returns:
        Files in the order of the arguments; a file that does not exist is kept, for its reader to say so.

    Raises:
        ModelError: if a folder or a pattern holds no image.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix.lower() in _IMAGE_SUFFIXES)
        elif path.exists() or not glob.has_magic(argument):
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(argument, recursive=True))  # noqa: PTH207 (Path's takes no absolute pattern)
        if not files:
            raise ModelError(f"{argument}: no image there")
        found += files
    return found
