"""What the documents tell to type and to write is what the code takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from pipeline import cli
from pipeline.config import Config

DOCUMENTS = Path(__file__).parents[3] / "docs"
TEXTS = {name: (DOCUMENTS / name).read_text() for name in ("kubeflow.md", "deploy.md")}
COMMANDS = [line for text in TEXTS.values() for line in re.findall(r"^    imagepipe (.*)$", text, re.MULTILINE)]
SNIPPETS = [yaml_ for text in TEXTS.values() for yaml_ in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_document_is_understood(line):
    name, *args = shlex.split(line, comments=True)
    command = typer.main.get_command(cli.app).commands[name]
    command.make_context(name, args)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_configuration_of_the_document_is_valid(snippet):
    Config.model_validate({"name": "flowers", "data": {"path": "/data"}} | yaml.safe_load(snippet))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_there_are_commands_and_configurations_in_the_document(text):
    assert len(re.findall(r"^    imagepipe ", text, re.MULTILINE)) > 8
    assert text.count("```yaml") > 3
