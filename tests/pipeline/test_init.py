import pytest

from imagepipe.base.errors import ConfigError
from imagepipe.ingest import command as ingest
from pipeline import init
from pipeline.config_file import read_config
from pipeline.source import find_examples


@pytest.fixture(scope="module")
def dataset(digits_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("Two Words")
    rows = sorted(digits_folder.glob("*/*.png"))[:60]
    lines = ["path,label,price,camera", *(f"{row},{row.parent.name},{i / 2},cam{i % 2}" for i, row in enumerate(rows))]
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    ingest.ingest(str(folder / "all.csv"), str(folder / "dataset"))
    return folder / "dataset"


@pytest.mark.parametrize(("reachable", "weights"), [(True, "imagenet"), (False, "none")])
def test_the_configuration_written_is_complete_and_says_where_weights_come_from(
    dataset, tmp_path, monkeypatch, reachable, weights
):
    monkeypatch.setattr(init, "is_imagenet_available", lambda: reachable)
    path = tmp_path / "My Flowers!" / "pipeline.yaml"
    notes = init.write_config(dataset, path)
    config = read_config(path)
    assert config.name == "my-flowers"
    assert config.trainer.weights == weights
    assert bool(notes) != reachable
    assert config.data.features.numeric == ("price",)
    assert config.data.features.categorical == ("camera",)
    assert set(find_examples(config).patterns) == {"train", "eval", "test"}


@pytest.mark.parametrize(("task", "label"), [("multilabel", "a|b"), ("regression", "1.5")])
def test_any_task_gets_a_configuration_that_can_be_run(digits_folder, tmp_path, monkeypatch, task, label):
    monkeypatch.setattr(init, "is_imagenet_available", lambda: True)
    rows = sorted(digits_folder.glob("*/*.png"))[:60]
    (tmp_path / "all.csv").write_text("\n".join(["path,label", *(f"{row},{label}" for row in rows)]) + "\n")
    ingest.ingest(str(tmp_path / "all.csv"), str(tmp_path / "dataset"), task=task)
    init.write_config(tmp_path / "dataset", tmp_path / "pipeline.yaml")
    config = read_config(tmp_path / "pipeline.yaml")
    assert config.task == task
    assert config.evaluation.thresholds == {}
    assert set(find_examples(config).patterns) == {"train", "eval", "test"}
    with pytest.raises(ConfigError, match=f"was ingested for {task}"):
        find_examples(config.model_copy(update={"task": "classification"}))


def test_a_configuration_is_never_overwritten(dataset, tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        init.write_config(dataset, path)
    assert path.read_text() == "mine"
