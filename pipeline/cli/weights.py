"""Command that says what a file of weights is: weights."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.shared import OUT, JsonOption, print_json, report_errors

if TYPE_CHECKING:
    from trainer.weights.identify import Description

app = typer.Typer()


@app.command("weights")
def describe_weights(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A .h5, .weights.h5, .weights.json or .keras file of Keras 2 or 3, or a SavedModel's folder; or the "
            "URI of one.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show whose weights a file holds: backbone, image size, classifier. Nothing in it is built or executed."""
    with report_errors():
        from trainer.weights.check import check_readable
        from trainer.weights.contents import open_weights
        from trainer.weights.fetch import open_fetched
        from trainer.weights.identify import describe_contents

        with open_fetched(file) as path:
            check_readable(path)
            with open_weights(path) as (contents, _):
                description = describe_contents(contents)
    if as_json:
        print_json(description._asdict())
    else:
        OUT.print(escape(_render(description)))


def _render(description: "Description") -> str:
    backbone = description.backbone or "none that comes with imagepipe"
    if not description.is_single:
        backbone += ", more than once: which one is meant can't be told"
    if description.base_numbers:
        backbone += f" ({description.base_numbers:,} weights)"
    size = " by ".join(map(str, reversed(description.size))) + " pixels" if description.size else "not in the file"
    top = f"{description.top} outputs" if description.top else "none" if description.base_numbers else "not known"
    rows = {
        "format": description.format,
        "backbone": backbone,
        "image size": size,
        "top": top,
        "all weights": f"{description.numbers:,} in {description.layers} layers",
    }
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())
