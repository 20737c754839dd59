"""From labelled images to a gated, served classifier.

The Python API; the command line does its work through the same functions:

- ``imagepipe.ingest("photos", "flowers/dataset")`` turns labelled images into a dataset of TFRecords.
- ``imagepipe.run("flowers/pipeline.yaml")`` runs the pipeline: validate, train, evaluate, push what passes the gate.
- ``imagepipe.load("flowers/serving/flowers")`` loads a model into this process and answers about images.
- ``imagepipe.Client("http://127.0.0.1:8080")`` asks a model that is served elsewhere.

Both answer with an ``imagepipe.Prediction`` per image, or an ``imagepipe.Failure`` with the reason.

Nothing is imported before it is used: ``import imagepipe`` takes milliseconds, TFX about 20 s.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ imports, for type checkers and editors
    from imagepipe.ingest.command import ingest
    from imagepipe.serving.client import Client
    from imagepipe.serving.predictor import Predictor, load
    from imagepipe.serving.types import Failure, Prediction
    from pipeline.run import run

    __version__: str

__all__ = ["Client", "Failure", "Prediction", "Predictor", "__version__", "ingest", "load", "run"]


def __getattr__(name: str) -> Any:
    """Imports a name of the API when it is used (PEP 562)."""
    match name:
        case "ingest":
            import imagepipe.ingest as package  # callable, as it bears the function's name

            return package
        case "run":
            from pipeline.run import run

            return run
        case "load" | "Predictor":
            from imagepipe.serving import predictor

            return getattr(predictor, name)
        case "Prediction" | "Failure":
            from imagepipe.serving import types

            return getattr(types, name)
        case "Client":
            from imagepipe.serving.client import Client

            return Client
        case "__version__":
            from imagepipe.base.names import read_version

            return read_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
