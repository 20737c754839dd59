"""The targets that a model can be deployed to. Each is a module of this package with the same functions.

- ``deploy(model, config, traffic)`` makes a SavedModel a new version and gives it that percentage of the requests. The
  rest stays with the version that was live, which keeps all requests until the new one is ready, and if it never is.
  If the SavedModel is deployed already, only its share changes.
- ``status(config)`` returns the versions that are deployed or were, as far as the target remembers, newest first.
- ``rollback(config)`` takes the newest version that gets requests out of service, and gives all of them to the previous
  one; it returns the version that is live then.
- ``find_address(config)`` returns the address at which the live versions answer.

``config`` is a ``DeployConfig`` whose ``name`` and ``path`` are given. The functions raise ``DeployError`` if the
target refuses or fails, and ``ModelError`` for what the user can correct here.
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
    """Returns the module of ``config.target``; imported only now, as the clouds' clients take seconds to import."""
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
