import pytest

from imagepipe.base.errors import ConfigError
from imagepipe.ingest import command as ingest
from pipeline import init
from pipeline.config_file import read_config
from pipeline.source import find_examples
from trainer.config import TrainerConfig


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
    assert config.trainer.epochs == TrainerConfig(weights=weights).epochs
    assert bool(notes) != reachable
    assert config.data.features.numeric == ("price",)
    assert config.data.features.categorical == ("camera",)
    assert set(find_examples(config).patterns) == {"train", "eval", "test"}


def test_columns_that_no_model_can_take_as_inputs_are_left_out_with_a_note(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(init, "is_imagenet_available", lambda: True)
    rows = sorted(digits_folder.glob("*/*.png"))[:60]
    lines = ["path,label,hidden,class,patient age,Hidden", *(f"{row},{row.parent.name},1.5,b,40,1" for row in rows)]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    ingest.ingest(str(tmp_path / "all.csv"), str(tmp_path / "dataset"))
    notes = init.write_config(tmp_path / "dataset", tmp_path / "pipeline.yaml")
    assert read_config(tmp_path / "pipeline.yaml").data.features.make_features().side == ("Hidden",)
    assert [note.partition(": ")[2].partition(":")[0] for note in notes] == ["class", "hidden", "patient age"]
    assert all("ename the column" in note for note in notes)


def test_a_demand_on_a_metric_that_would_always_be_1_is_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(init, "is_imagenet_available", lambda: True)
    init.write_config(dataset, tmp_path / "pipeline.yaml")
    rules = "evaluation.rules=[{metric: top_k_accuracy, min: 0.9}]"
    for demand in (rules, "evaluation.thresholds={top_k_accuracy: 0.9}"):
        with pytest.raises(ConfigError, match=r"evaluation\.top_k: 40, but .* classes to train on.*always be 1"):
            find_examples(read_config(tmp_path / "pipeline.yaml", [demand, "evaluation.top_k=40"]))
    find_examples(read_config(tmp_path / "pipeline.yaml", ["evaluation.top_k=40"]))


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


@pytest.mark.parametrize(
    ("splits", "missing"), [({"fold1": 50, "fold2": 50}, "train"), ({"train": 50, "test": 50}, "eval")]
)
def test_a_dataset_without_a_split_that_a_run_needs_is_refused(digits_folder, tmp_path, splits, missing):
    ingest.ingest(str(digits_folder), str(tmp_path / "dataset"), splits=splits)
    with pytest.raises(ConfigError, match=f"has the splits {', '.join(splits)}, and none called {missing}"):
        init.write_config(tmp_path / "dataset", tmp_path / "pipeline.yaml")
    assert not (tmp_path / "pipeline.yaml").exists()


def test_a_configuration_is_never_overwritten(dataset, tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        init.write_config(dataset, path)
    assert path.read_text() == "mine"
