import ast
import re

import pytest

from tests.docs.documents import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize(
    ("heading", "test", "name", "most"),
    [
        ("From a folder to TFRecords", "tests/ingest/test_walk.py", "WALK", 10),
        ("From a raw Example to a trained model", "tests/trainer/test_walk.py", "FILES", 12),
    ],
)
def test_a_walk_of_the_page_is_the_walk_that_its_test_measures(heading, test, name, most):
    section = PAGE.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    listed = re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)
    # Read, not imported: that would take TensorFlow.
    assignments = [node for node in ast.parse((ROOT / test).read_text()).body if isinstance(node, ast.Assign)]
    (files,) = [ast.literal_eval(node.value) for node in assignments if ast.unparse(node.targets[0]) == name]
    assert listed == files
    assert 0 < len(listed) <= most
    assert PAGE.count(test) == 1
