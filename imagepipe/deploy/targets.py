"""Where a blessed model goes. Each target is a module of this package, with the same functions.

- ``deploy(model, config, traffic)`` makes a SavedModel a new version and gives it so many percent of the requests. The
  rest goes on to what was live; what is live stays so until the new one is ready, and if it doesn't get ready.
  If the SavedModel is a version already, only its share changes.
- ``status(config)`` are the versions that are known there, newest first.
- ``rollback(config)`` takes the newest version that gets requests out of service, and gives all of them to the one
  before; it returns what is live then.
- ``find_address(config)`` is the address at which what is live answers.

``config`` is a ``DeployConfig`` whose ``name`` and ``path`` are given. They raise ``DeployError`` for what the target
refuses or fails at, and ``ModelError`` for what is to be mended here.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import Address, Version


class Target(Protocol):
    """The functions of a target's module."""

    deploy: Callable[[str, DeployConfig, int], Version]
    status: Callable[[DeployConfig], list[Version]]
    rollback: Callable[[DeployConfig], Version]
    find_address: Callable[[DeployConfig], Address]


def load_target(config: DeployConfig) -> Target:
    """The module of ``config.target``; imported only now, as clients of clouds take their time."""
    module: Any
    match config.target:
        case "filesystem":
            from imagepipe.deploy import folder as module
        case "kserve":
            from imagepipe.deploy import kserve as module
        case "vertex":
            from imagepipe.deploy import vertex as module
        case "ml_engine":
            from imagepipe.deploy import ml_engine as module
    return cast(Target, module)
