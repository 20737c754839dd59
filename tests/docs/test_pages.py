import re
import tomllib
from pathlib import Path

import pytest
import yaml

import imagepipe
from pipeline.config import Config
from tests.docs.documents import DOCUMENTS, PAGES, ROOT, strip_blocks
from tools.check_style import check_file
from tools.config_reference import list_sections

_TREE = (
    "benchmarks",
    "components",
    "docs",
    "imagepipe",
    "kubeflow",
    "pipeline",
    "tests",
    "tools",
    "trainer",
    "transform",
)


def test_the_readme_has_at_most_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    prose = strip_blocks(document.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", prose)
    for target in filter(None, (one or other for one, other in targets)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        page = (document.parent / path) if path else document
        assert page.exists(), f"{document.name}: {target}"
        if anchor:
            assert anchor in _list_anchors(page.read_text()), f"{document.name}: {target}"


def _list_anchors(text):
    headings = re.findall(r"^#+ (.*)$", strip_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_mentioned_exist(document):
    # Of the changelog, names that are no more are the matter.
    if document.name == "CHANGELOG.md":
        return
    for text in re.findall(r"`([^`\n]+)`", strip_blocks(document.read_text())):
        path = text.strip("/")
        is_path = re.fullmatch(r"[\w./-]+", path) and path.split("/")[0] in _TREE and "/" in text
        if is_path and "NAME" not in path:
            assert (ROOT / path).exists(), f"{document.name}: {text}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_and_keys_that_are_mentioned_exist(document):
    if document.name == "CHANGELOG.md":
        return
    keys = {f"{path}.{key}".lstrip(".") for path, model in list_sections("", Config) for key in model.model_fields}
    for name in re.findall(r"`(\w+(?:\.\w+)+)`", strip_blocks(document.read_text())):
        top, _, last = name.partition(".")[0], *name.rpartition(".")[1:]
        if top not in {*Config.model_fields, *_TREE, "imagepipe"} or last in ("NAME", "KEY", "yaml", "json", "io"):
            continue
        path = ROOT / name.replace(".", "/")
        is_module = path.with_suffix(".py").is_file() or path.is_dir()
        is_in_module = re.search(rf"^(def|class) {last}\b", _read_module(path.parent), re.MULTILINE)
        is_in_face = top == "imagepipe" and last in imagepipe.__all__
        is_key = name in keys or re.fullmatch(r"kubeflow\.resources\.\w+\.(cpu|memory)", name)
        assert is_module or is_in_module or is_in_face or is_key, f"{document.name}: {name}"


def _read_module(path):
    file = path.with_suffix(".py")
    return file.read_text() if file.is_file() else ""


def test_every_page_is_in_the_navigation():
    navigation = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == [page.name for page in PAGES]


def test_the_built_pages_fetch_nothing():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    assert "repo_url" not in config  # of a repository on GitHub the theme would fetch the number of its stars
    assert "offline" not in config["plugins"]  # it has every page load a script from unpkg.com
    for file in [*config["extra_css"], *config["extra_javascript"]]:
        assert (ROOT / "docs" / file).is_file()


def test_the_readme_says_why_each_dependency_is_there():
    table = (ROOT / "README.md").read_text().partition("## Dependencies")[2].partition("## License")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *(name for group in groups.values() for name in group)]
    names = {re.match(r"[\w-]+", entry)[0] for entry in wanted}
    missing = {name for name in names if not name.startswith("types-") and not re.search(rf"\b{name}\b", table)}
    assert not missing
    rows = re.findall(r"^\| ([\w, -]+) \|", table, re.MULTILINE)
    listed = {name for row in rows for name in row.split(", ")} - {"package", "---", "extra or group"}
    assert not listed - names
    assert all(f"`{extra}`" in table for extra in project["project"]["optional-dependencies"])


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.name != "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_the_documents_speak_the_glossary(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert not list(check_file(document.relative_to(ROOT)))


def test_text_in_the_encoding_of_the_machine_is_a_lapse_of_style(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("tools/save.py")
    file.parent.mkdir()
    file.write_text("page.write_text(text)\npage.read_text()\nfilesystem.read_text(uri)\n" + "\n" * 30)
    assert [line.split(": ")[0] for line in check_file(file)] == ["tools/save.py:1", "tools/save.py:2"]
    file.write_text(file.read_text().replace("text)", "text, encoding='utf-8')").replace("t()", "t(encoding='utf-8')"))
    assert not list(check_file(file))
