"""The workflows: actions pinned, nothing published unaudited, a bill of materials of what is locked."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_of_others_are_pinned_by_hash_with_their_version(workflow):
    uses = re.findall(r"uses: *(.+)", workflow.read_text())
    assert uses
    assert [line for line in uses if not line.startswith("./") and not PINNED.fullmatch(line)] == []


def test_a_release_passes_the_gate_and_the_audit_and_carries_its_bill_of_materials():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    build = [step.get("run") for step in jobs["build"]["steps"]]
    assert jobs["build"]["needs"] == "gate"
    assert jobs["publish"]["needs"] == "build"
    assert build.index("make audit") < build.index("make dist")


def test_the_bill_of_materials_lists_the_locked_versions(tmp_path):
    if not (ROOT / ".uv" / "bin" / "uv").exists():
        pytest.skip("no .uv/: this environment was not made by make")
    (command,) = re.findall(r"\t(\.uv/bin/uv export .*cyclonedx.*\\\n.*)", (ROOT / "Makefile").read_text())
    command = command.replace("\\\n", "").replace("dist/", f"{tmp_path}/").split()
    subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603
    materials = json.loads((tmp_path / "imagepipe-tfx.cdx.json").read_text())
    assert materials["bomFormat"] == "CycloneDX"
    listed = {(part["name"], part["version"]) for part in materials["components"]}
    locked = set(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert locked
    assert locked <= listed
