"""KServe's Python library, imported without the command line: everything of ours that needs KServe gets it from here.

``kserve.model_server``, which ``import kserve`` loads, parses ``sys.argv`` for options of its own (``--http_port``,
``--workers``, ...). It would take ours for its own, and ``imagepipe serve --help`` would print KServe's help.
"""

import sys

_arguments = sys.argv
sys.argv = _arguments[:1]
try:
    from kserve import ModelRepository, constants, models
    from kserve.model import Model
    from kserve.model_server import app
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc import grpc_predict_v2_pb2
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer
    from kserve.protocol.rest.server import _RefreshingServer as RefreshingServer
    from kserve.protocol.rest.v2_datamodels import (
        InferenceResponse,
        ModelMetadataResponse,
        ModelReadyResponse,
        ServerMetadataResponse,
    )
finally:
    sys.argv = _arguments

__all__ = [
    "DataPlane",
    "InferenceResponse",
    "Model",
    "ModelMetadataResponse",
    "ModelReadyResponse",
    "ModelRepository",
    "ModelRepositoryExtension",
    "RESTServer",
    "RefreshingServer",
    "ServerMetadataResponse",
    "app",
    "constants",
    "grpc_predict_v2_pb2",
    "models",
]
