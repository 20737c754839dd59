import ast
import re

import numpy as np
import pytest
from PIL import Image

import imagepipe
from pipeline.runs.summary import Summary
from tests.docs.documents import ROOT, list_blocks

PAGE = ROOT / "docs" / "api.md"


@pytest.mark.parametrize("block", list_blocks("python"), ids=lambda block: block.place)
def test_python_of_the_documents_uses_names_that_exist(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {
                "imagepipe": imagepipe.__all__,
                "summary": Summary.model_fields | Summary.model_computed_fields,
            }.get(node.value.id, [node.attr])
            assert node.attr in names


def test_the_first_example_runs(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    for label in ("daisy", "roses"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(5):
            Image.fromarray(generator.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    exec(list_blocks("python")[0].text, {})  # noqa: S102 (our own page)
    assert capsys.readouterr().out == "10 0\n"


@pytest.mark.parametrize("name", re.findall(r"^::: (\S+)$", PAGE.read_text(), re.MULTILINE))
def test_what_the_page_describes_exists(name):
    module, _, last = name.rpartition(".")
    file = ROOT / f"{name.replace('.', '/')}.py"
    owner = ROOT / f"{module.replace('.', '/')}.py"
    assert file.is_file() or re.search(rf"^(def|class) {last}\b", owner.read_text(), re.MULTILINE)
