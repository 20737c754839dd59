import json
from pathlib import Path

import pytest
from tfx.types import standard_artifacts

from pipeline import execution
from pipeline.local_runner import NodeError


@pytest.mark.parametrize(("content", "reason"), [("", "JSONDecodeError"), ("{}", "TypeError"), (None, "No such file")])
def test_results_that_were_damaged_since_name_the_folder_and_the_remedy(tmp_path, content, reason):
    """As after a power cut: ML Metadata has the execution, the cache takes it, and its file is empty."""
    blessing = standard_artifacts.InfraBlessing()
    blessing.uri = str(tmp_path)
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    outputs = {"ServingCheck": {"blessing": [blessing]}}
    message = rf"ServingCheck failed: its blessing can't be read \(.*{reason}.*Delete {tmp_path}"
    with pytest.raises(NodeError, match=message), execution._read(outputs, "ServingCheck", "blessing") as folder:
        execution.CheckReport(**json.loads((Path(folder) / "report.json").read_text()))
