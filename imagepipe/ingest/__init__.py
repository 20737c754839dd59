"""From folders and manifests of labelled images to sharded TFRecords, on Apache Beam.

``command.ingest`` does it, ``dataset.load`` reads the result. Neither imports TensorFlow; only ``ingest`` imports Beam,
once it has work for it.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """This package, callable as the API's function ``imagepipe.ingest``.

    Both have the same name. Python sets ``imagepipe.ingest`` to the package as soon as anything below is imported, so a
    function of that name would be there or not, depending on what was imported. So the package itself is the function.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from imagepipe.ingest.command import ingest

        return ingest(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
