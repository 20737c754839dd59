"""The command that shows all of it: demo."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from imagepipe.base.console import quote
from pipeline.cli.runs import print_outcome
from pipeline.cli.shared import ERR, OUT, report_errors

app = typer.Typer()


@app.command()
def demo(
    workdir: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
) -> None:
    """From handwritten digits to a served classifier, in a few minutes."""
    with report_errors():
        from pipeline import demo as steps
        from pipeline.run import run

        root = workdir.resolve()
        ERR.print("[bold]1. Images[/]: scikit-learn's handwritten digits, as files")
        images = steps.write_images(root)
        ERR.print(f"[bold]2. Ingest[/]: {quote(images)}")
        ERR.print(escape(str(steps.ingest_images(root))))
        config = steps.write_config(root)
        ERR.print(f"[bold]3. Run[/]: {quote(config)}")
        summary = run(config, console=ERR)
        status = print_outcome(summary)
        if status == 0:
            ERR.print("[bold]4. Predict[/]: the test split, which training and gate have not seen, by the pushed model")
            picture, accuracy, tested = steps.predict_test_split(root, summary)
            table = Table("image", "digit", "predicted", "score")
            for image in tested:
                table.add_row(image.id, image.actual, image.label, f"{image.score:.3f}")
            OUT.print(table)
            OUT.print(quote(f"test accuracy {accuracy:.4f}; picture: {picture}"))
            command = ["imagepipe", "predict", summary.serving_dir, f"{images}/7"]
            OUT.print(quote(f"Ask it yourself: {shlex.join(command)}"))
    raise typer.Exit(status)
