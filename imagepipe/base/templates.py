"""Templates of our pages."""

from pathlib import Path

import jinja2


def load_templates(folder: Path) -> jinja2.Environment:
    """Returns the templates in a folder.

    Pages show names of classes, files and callers, which come from strangers, so whatever is put into a template is
    escaped. A value that a template asks for and doesn't get is an error, instead of a page with a gap.

    Args:
        folder: its files are found by their names.

    Returns:
        An environment to which filters and globals may be added before the first template is taken from it. Lines that
        hold a tag alone leave no blank line in the page.

    Example:
        >>> load_templates(Path("pages")).get_template("page.html").render(title="<b>")
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
