"""What the documents tell to type and to write is what the code takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from pipeline import cli
from pipeline.config import Config

DOCUMENTS = Path(__file__).parents[2] / "docs"
TEXT = (DOCUMENTS / "kubeflow.md").read_text()
COMMANDS = re.findall(r"^    imagepipe (.*)$", TEXT, re.MULTILINE)
SNIPPETS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_document_is_understood(line):
    name, *args = shlex.split(line, comments=True)
    command = typer.main.get_command(cli.app).commands[name]
    command.make_context(name, args)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_configuration_of_the_document_is_valid(snippet):
    Config.model_validate({"name": "flowers", "data": {"path": "/data"}} | yaml.safe_load(snippet))


def test_there_are_commands_and_configurations_in_the_document():
    assert len(COMMANDS) > 8
    assert len(SNIPPETS) > 3
