import tomllib
from pathlib import Path

import pytest

from imagepipe.base import code_closure, syntax
from imagepipe.base.code_closure import PACKAGES, find_closure, hash_code
from imagepipe.base.distributions import list_versions
from imagepipe.base.errors import ConfigError

RUN_FN = '''"""Trains."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from imagepipe.base import names
from trainer.network import build as build_network

if TYPE_CHECKING:
    from trainer.typing import Batch

__all__ = ["run_fn"]

EPOCHS = 3
"""Number of epochs."""

PAGE = Path(__file__).with_name("page.html")
HEAD = Path(__file__).parent / "parts" / "head.html"
FOOT = f"{Path(__file__).parents[1]}/trainer/parts/foot.html"


class Config:
    epochs: int = Field(3, ge=1, description="Number of epochs.")


def run_fn(batch: "Batch") -> None:
    """Trains the network."""
    # The loop.
    from transform import images

    def scale(x):
        return x / 255

    for _ in range(EPOCHS):
        load_metric("components.metrics.f1"), images.decode(batch)
'''

FILES = {
    "components/__init__.py": "",
    "components/metrics.py": "def f1(): return 1",
    "components/unused.py": "import keras",
    "imagepipe/__init__.py": "import os\ndef run():\n    from pipeline import dag",
    "imagepipe/base/__init__.py": "",
    "imagepipe/base/names.py": "from . import errors\nfrom .. import versions\nNAME = 'trainer.epochs'",
    "imagepipe/base/errors.py": "import google.protobuf.text_format",
    "imagepipe/versions.py": "",
    "pipeline/__init__.py": "",
    "pipeline/dag.py": "import tfx",
    "trainer/__init__.py": "os.environ['KERAS_BACKEND'] = 'tensorflow'",
    "trainer/run_fn.py": RUN_FN,
    "trainer/network.py": "import keras\ndef build():\n    import trainer.layers.dense as dense",
    "trainer/layers/__init__.py": "",
    "trainer/layers/dense.py": "UNITS = 8",
    "trainer/typing.py": "",
    "trainer/page.html": "<link href='styles/page.css'>",
    "trainer/styles/page.css": "a {}",
    "trainer/notes.txt": "To do.",
    "trainer/my_page.html": "",
    "trainer/page": "",
    "trainer/.git/page.html": "",
    "trainer/parts/head.html": "",
    "trainer/parts/foot.html": "",
    "transform/__init__.py": "",
    "transform/images.py": "def decode(image): return image",
}


@pytest.fixture
def sources(tmp_path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def compute_key(sources: Path) -> str:
    """Returns the hash of ``trainer.run_fn`` as a new process would."""
    for cached in (syntax.read_syntax, code_closure._locate, code_closure._find_data, code_closure._hash_file):
        cached.cache_clear()
    return hash_code(["trainer.run_fn"], sources)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_our_packages_are_those_that_have_layers():
    settings = tomllib.loads((code_closure.SOURCES / "pyproject.toml").read_text())
    assert set(PACKAGES) == set(settings["tool"]["importlinter"]["root_packages"])


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("trainer/run_fn.py", '"""Trains."""', '"""Trains a network."""'),
        ("trainer/run_fn.py", '    """Trains the network."""\n', ""),
        ("trainer/run_fn.py", '"""Number of epochs."""', '"""How many epochs."""'),
        ("trainer/run_fn.py", '"Number of epochs."', '"The number of epochs."'),
        ("trainer/run_fn.py", "# The loop.", "# The loop over all epochs."),
        ("trainer/run_fn.py", '["run_fn"]', '["run_fn", "EPOCHS"]'),
        ("trainer/run_fn.py", "x / 255", "(\n            x / 255\n        )"),
        ("trainer/network.py", "import keras\n", "import keras  # the layers\n\n\n"),
    ],
)
def test_words_and_layout_change_nothing(sources, file, old, new):
    original = compute_key(sources)
    edit(sources / file, old, new)
    assert compute_key(sources) == original


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("trainer/run_fn.py", "EPOCHS = 3", "EPOCHS = 4"),
        ("trainer/run_fn.py", "x / 255", "x / 256"),
        ("trainer/run_fn.py", "ge=1", "ge=2"),
        ("trainer/run_fn.py", "epochs: int", "epochs: float"),
        ("trainer/network.py", "def build()", "def build(units=3)"),
        ("trainer/layers/dense.py", "8", "9"),  # imported inside a function
        ("trainer/layers/__init__.py", "", "import os"),  # on the way to it
        ("trainer/__init__.py", "tensorflow", "jax"),
        ("transform/images.py", "return image", "return -image"),
        ("imagepipe/base/names.py", "epochs", "steps"),
        ("imagepipe/base/errors.py", "text_format", "json_format"),  # imported by a relative import
        ("imagepipe/versions.py", "", "VERSION = 1"),
        ("components/metrics.py", "return 1", "return 0"),  # named by a string
        ("trainer/page.html", "page.css'", "page.css' rel='stylesheet'"),
        ("trainer/styles/page.css", "{}", "{color: red}"),  # named by the page
        ("trainer/parts/head.html", "", "<p>"),  # by two strings
        ("trainer/parts/foot.html", "", "<p>"),  # by the end of a path
    ],
)
def test_changed_code_that_it_uses_counts(sources, file, old, new):
    original = compute_key(sources)
    edit(sources / file, old, new)
    assert compute_key(sources) != original


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("components/unused.py", "keras", "numpy"),
        ("pipeline/dag.py", "tfx", "kfp"),
        ("imagepipe/__init__.py", "from pipeline import dag", "import pipeline.dag"),  # in a function nobody calls
        ("trainer/typing.py", "", "Batch = list"),  # for type checkers
        ("trainer/notes.txt", "To do.", "Done."),
        ("trainer/my_page.html", "", "<p>"),  # ends with a name, but not as a path
        ("trainer/page", "", "<p>"),  # is in a name
        ("trainer/.git/page.html", "", "<p>"),
    ],
)
def test_changed_code_elsewhere_does_not_count(sources, file, old, new):
    original = compute_key(sources)
    edit(sources / file, old, new)
    assert compute_key(sources) == original


def test_a_file_that_is_edited_while_the_process_runs_counts_as_it_was(sources):
    original = compute_key(sources)
    edit(sources / "trainer/run_fn.py", "EPOCHS = 3", "EPOCHS = 4")
    assert hash_code(["trainer.run_fn"], sources) == original
    assert compute_key(sources) != original


def test_a_module_that_is_no_python_is_named_with_the_line(sources):
    (sources / "trainer/network.py").write_text("import keras\ndef build(:\n")
    with pytest.raises(ConfigError, match=r"trainer/network\.py is no Python: SyntaxError: .* line 2"):
        compute_key(sources)
    (sources / "trainer/network.py").write_text(f"x = {'-' * 1500}1")
    with pytest.raises(ConfigError, match=r"trainer/network\.py"):
        compute_key(sources)


def test_a_large_file_counts_without_being_read_as_text(sources):
    page = sources / "trainer" / "page.html"
    page.write_bytes(b" ".join([b"notes.txt", bytes(2 << 20)]))
    original = compute_key(sources)
    edit(sources / "trainer" / "notes.txt", "To do.", "Done.")
    assert compute_key(sources) == original
    page.write_bytes(b" ".join([b"notes.txt", bytes((2 << 20) + 1)]))
    assert compute_key(sources) != original


def test_of_modules_from_elsewhere_their_imports_count(sources):
    assert {"ast", "json.decoder.JSONDecoder"} <= find_closure(["ast", "json"], sources).imports
    assert find_closure(["trainer.run_fn"], sources).imports == {
        *("os", "pathlib.Path", "typing.TYPE_CHECKING", "keras", "google.protobuf.text_format")
    }


def install(folder: Path, name: str, version: str, *files: str, record: str = "RECORD") -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / record).write_text("\n".join(files))


def test_the_version_is_that_of_the_distribution_that_has_the_module(tmp_path, monkeypatch):
    install(tmp_path, "pillow-x", "1.0", "PILX/__init__.py,sha256=a,9", "PILX/Image.py,,")
    install(tmp_path, "shared-one", "1.1", "sharedx/one/__init__.py,,", "sharedx/one/part.py,,")
    install(tmp_path, "shared-two", "1.2", "sharedx/two.py,,")
    install(tmp_path, "single-x", "1.3", "singlex.py,,")
    install(tmp_path, "old-x", "1.4", "oldx", record="top_level.txt")
    monkeypatch.syspath_prepend(tmp_path)
    assert list_versions(["PILX.Image.open", "os.path", "json"]) == {"pillow-x": "1.0"}
    assert list_versions(["sharedx.one.part.function"]) == {"shared-one": "1.1"}
    assert list_versions(["sharedx.two.function"]) == {"shared-two": "1.2"}
    assert list_versions(["sharedx"]) == {"shared-one": "1.1", "shared-two": "1.2"}
    assert list_versions(["singlex", "oldx.y"]) == {"single-x": "1.3", "old-x": "1.4"}
    assert list_versions(["nowherex.y"]) == {"nowherex": ""}


def test_a_module_counts_as_code_though_another_of_its_name_was_installed_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "mainx.py").write_text("import ownx")
    (tmp_path / "ownx.py").write_text("UNITS = 8")
    for folder, counts in ((tmp_path / "elsewhere", True), (tmp_path, False)):
        install(folder, "own-x", "1.0", "ownx.py,,")
        monkeypatch.syspath_prepend(folder)
        assert ("ownx" in find_closure(["mainx"], tmp_path, ("mainx",), with_others=True).digests) is counts


def test_of_two_versions_the_one_that_python_imports_counts(tmp_path, monkeypatch):
    installed = list_versions(["keras.layers"])
    assert set(installed) == {"keras"}
    install(tmp_path, "keras", "99.0", "keras/__init__.py,,")
    monkeypatch.syspath_prepend(tmp_path)
    assert list_versions(["keras.layers"]) == {"keras": "99.0"}


def test_tensorflow_counts_where_a_library_above_it_is_imported():
    assert {"tensorflow", "tfx-bsl"} < set(list_versions(["tensorflow_model_analysis.metrics"]))
