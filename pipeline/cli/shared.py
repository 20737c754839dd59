"""What the commands share: how they speak, options that several have, and what they do with a configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from imagepipe.deploy import targets
    from imagepipe.deploy.config import DeployConfig

# Results go to stdout, what is said on the way to stderr.
OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)

FAILED, WRONG_USE, NOT_BLESSED = 1, 2, 3

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Workdir = Annotated[
    Path | None, typer.Option(help="Folder for artifacts, models and runs; by default that of the configuration.")
]
ModelFolder = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A SavedModel, a folder of versions (serving/NAME), or a run (runs/RUN)."),
]
TargetName = Literal["filesystem", "kserve", "vertex", "ml_engine"]
Target = Annotated[
    TargetName | None, typer.Option(help="Where models are deployed to; by default what the configuration says.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as trainer.epochs=2.")
]
BeamOption = Annotated[
    Path | None, typer.Option("--config", help="A configuration file, for Beam's runner: its section beam.")
]
ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration file, for its section deploy.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="[CONFIG]", help="The configuration file.")]


@contextmanager
def report_errors() -> Iterator[None]:
    """Turns what is the user's to mend into a message and an exit status, without a traceback."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        from imagepipe.base.errors import ConfigError, IngestError, ModelError, TrainingError, UnavailableError

        if not isinstance(error, ConfigError | IngestError | ModelError | TrainingError):
            raise
        ERR.print(f"[red]imagepipe:[/] {escape(str(error))}")
        raise typer.Exit(FAILED if isinstance(error, UnavailableError) else WRONG_USE) from None
    except OSError as error:  # a full disk, a file system that isn't there, a folder that can't be written
        where = f"{error.filename}: " if error.filename else ""
        ERR.print(f"[red]imagepipe:[/] {escape(f'{where}{error.strerror or error}')}")
        raise typer.Exit(FAILED) from None


def read_beam_arguments(given: list[str], config: Path | None) -> tuple[str, ...]:
    """What a configuration says in its section ``beam``, and what stands after ``--``."""
    if given and not given[0].startswith("-"):
        raise typer.BadParameter(
            f"there is one source; {given[0]} is a second one. A pattern such as 'photos/*.jpg' goes in quotes"
        )
    if config is None:
        return tuple(given)
    from imagepipe.base.beam_options import add_setup_file, make_arguments
    from pipeline.config import BeamConfig
    from pipeline.config_file import read_config

    beam = read_config(config).beam
    configured = add_setup_file(make_arguments(beam.runner, beam.options)) if beam != BeamConfig() else []
    return (*configured, *given)


def print_note(what: object) -> None:
    """Prints to stderr, whatever may look like markup in it."""
    ERR.print(escape(str(what)))


def print_table(table: Table, least: int = 100) -> None:
    """Prints a table to stdout, at least so many characters wide, also where it is piped: a cut row is of no use."""
    Console(width=max(OUT.width, least), highlight=False).print(table)


def read_deployment(config: Path, target: str | None, overrides: list[str] | None) -> "DeployConfig":
    """The section ``deploy`` of a configuration, with the target's name and folder."""
    from pipeline.config_file import read_config
    from pipeline.workdir import Workdir

    sets = (*(overrides or ()), *([f"deploy.target={target}"] if target else ()))
    settings = read_config(config, sets)
    return settings.make_deployment(str(Workdir(config.resolve().parent).serving(settings.name)))


def load_deploy_target(deployment: "DeployConfig") -> "targets.Target":
    """The target that a model is deployed to."""
    from pipeline.logs import hide_output

    with hide_output():
        from imagepipe.deploy import targets

        return targets.load_target(deployment)
