"""The consoles, options, and handling of errors and configurations that the commands share."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from imagepipe.base.console import PlainConsole
from imagepipe.base.progress import print_note

if TYPE_CHECKING:
    from imagepipe.deploy import targets
    from imagepipe.deploy.config import DeployConfig
    from imagepipe.serving.access import Access
    from pipeline.config import Config

# Results go to stdout, progress and messages to stderr.
OUT = PlainConsole()
ERR = PlainConsole(stderr=True)

FAILED, WRONG_USE, NOT_BLESSED, MOVED = 1, 2, 3, 3
"""Exit statuses."""

TargetName = Literal["filesystem", "kserve", "vertex", "ml_engine"]

ConfigArgument = Annotated[Path, typer.Argument(metavar="[CONFIG]", help="The configuration file.")]
BeamConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A configuration file; its section beam names the runner.")
]
DeployConfigOption = Annotated[Path, typer.Option("--config", help="The configuration file, for its section deploy.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key, such as trainer.epochs=2. A path is relative to the current folder.",
    ),
]
TargetOption = Annotated[
    TargetName | None, typer.Option(help="The deploy target; by default the one in the configuration.")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Answer only callers who send the token in this file (openssl rand -hex 32 > FILE)."
    ),
]
CertificateOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Answer by HTTPS, with this certificate (chain) in PEM.")
]
KeyOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The certificate's private key; by default in the same file.")
]
HostOption = Annotated[
    str, typer.Option(help="The address to listen on; 0.0.0.0 for all of this machine's, :: for those of IPv6 too.")
]
AllowHostOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Answer only to this name of the server, or *.NAME; repeat it for several. By default to this machine's "
        "own names, or with another --host to all.",
    ),
]
AllowOriginOption = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Let pages of this origin (https://app.example.com) ask; repeat it for several."),
]
WorkdirOption = Annotated[
    Path | None, typer.Option(help="Folder for artifacts, models and runs; by default the configuration's folder.")
]

CaptureRateOption = Annotated[
    float, typer.Option(min=0, max=1, help="With --capture: the share of the requests, drawn at random.")
]
CaptureImagesOption = Annotated[
    Literal["none", "thumbnail", "original"],
    typer.Option(help="With --capture: the images to keep; a thumbnail has at most 160 pixels a side."),
]


@contextmanager
def report_errors() -> Iterator[None]:
    """Turns errors that the user can fix into a message and an exit status, without a traceback."""
    from imagepipe.base.errors import USER_ERRORS, NothingIngestedError, UnavailableError, describe_error
    from imagepipe.base.signals import Stopped

    try:
        yield
    except (*USER_ERRORS, OSError) as error:
        ERR.print(f"[red]imagepipe:[/] {escape(describe_error(error))}")
        has_failed = isinstance(error, NothingIngestedError | UnavailableError | OSError)
        raise typer.Exit(FAILED if has_failed else WRONG_USE) from None
    except Stopped as stopped:
        ERR.print(f"[yellow]imagepipe:[/] {escape(str(stopped))}")
        raise typer.Exit(stopped.status) from None


def read_beam_arguments(arguments: list[str], config: Path | None) -> tuple[str, ...]:
    """Returns Beam's arguments: those of the configuration's section ``beam``, then those that follow ``--``."""
    if arguments and not arguments[0].startswith("-"):
        raise typer.BadParameter(
            f"there is one source; {arguments[0]} is a second one. A pattern such as 'photos/*.jpg' goes in quotes"
        )
    if config is None:
        return tuple(arguments)
    from imagepipe.base.beam_options import make_arguments
    from pipeline.config import BeamConfig
    from pipeline.config_file import read_config

    beam = read_config(config).beam
    configured = make_arguments(beam.runner, beam.options) if beam != BeamConfig() else []
    return (*configured, *arguments)


def print_json(data: object) -> None:
    """Prints results for programs to stdout; numbers that are not finite, which JSON lacks, are null.

    All in ASCII: a file's name that is no text has characters that no encoding takes.
    """
    OUT.print_json(data=replace_non_finite(data), allow_nan=False, ensure_ascii=True)


def replace_non_finite(data: object) -> object:
    """Returns data of lists, tuples and dicts with None for each number in it that is infinite or not a number."""
    if isinstance(data, dict):
        return {key: replace_non_finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [replace_non_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def print_table(table: Table, min_width: int = 100) -> None:
    """Prints a table to stdout, at least ``min_width`` characters wide also into a pipe: a cut row is useless."""
    PlainConsole(width=max(OUT.width, min_width), soft_wrap=False).print(table)


def read_deployment(config: Path, target: str | None, overrides: list[str] | None) -> "DeployConfig":
    """Reads the section ``deploy`` of a configuration; name and folder are filled in."""
    return fill_in_deployment(read_settings(config, target, overrides), config)


def read_settings(config: Path, target: str | None, overrides: list[str] | None) -> "Config":
    """Reads a configuration, with another deploy target if one is given."""
    from pipeline.config_file import read_config

    return read_config(config, (*(overrides or ()), *([f"deploy.target={target}"] if target else ())))


def fill_in_deployment(settings: "Config", config: Path) -> "DeployConfig":
    """Returns the section ``deploy`` of a file's configuration; name and folder are filled in."""
    from pipeline.workdir import Workdir

    workdir = Workdir(config.absolute().parent.resolve())  # as of a run: the file itself may be a link
    return settings.make_deployment(str(workdir.serving(settings.name)))


def read_access_options(
    host: str,
    token_file: Path | None,
    certificate: Path | None,
    key: Path | None,
    hosts: list[str] | None,
    origins: list[str] | None,
) -> "Access":
    """Reads which callers a server answers, and prints the risks of it."""
    from imagepipe.serving.access import list_risks, read_access

    access = read_access(token_file, certificate, key, hosts or (), origins or ())
    for risk in list_risks(access, host, token_file):
        print_note(risk)
    return access


def load_deploy_target(deployment: "DeployConfig") -> "targets.Target":
    """Imports the deploy target quietly."""
    from pipeline.logs import hide_output

    with hide_output():
        from imagepipe.deploy import targets

        return targets.load_target(deployment)
