import pytest
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems

from imagepipe.base.errors import ConfigError
from imagepipe.ingest import dataset
from pipeline.config import Config
from pipeline.source import Source, find_examples
from tests.conftest import make_example


def config(path, **features) -> Config:
    return Config.model_validate({"name": "x", "data": {"path": str(path), "features": features}})


def write(path, *examples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for one in examples:
            writer.write(one.SerializeToString())


def test_tfrecords_made_elsewhere_keep_their_splits(tmp_path):
    for split in ("train", "eval"):
        write(tmp_path / split / "0.tfrecord", make_example(b"image", "a"))
    patterns = {"train": "train/[!._]*", "eval": "eval/[!._]*"}
    assert find_examples(config(tmp_path)) == Source(str(tmp_path), patterns, is_foreign=True)


@pytest.mark.parametrize(
    ("path", "pattern"), [("", "[!._]*"), ("/part-*", "part-*"), ("/part-0.tfrecord", "part-0.tfrecord")]
)
def test_one_set_of_tfrecords_is_left_to_be_split(tmp_path, path, pattern):
    write(tmp_path / "part-0.tfrecord", make_example(b"image", "a"))
    assert find_examples(config(f"{tmp_path}{path}")) == Source(str(tmp_path), {}, pattern, is_foreign=True)


def test_the_group_of_tfrecords_made_elsewhere_has_to_be_there_as_text_or_number(tmp_path):
    write(tmp_path / "0.tfrecord", make_example(b"image", "a", patient="p1", age=30))
    assert find_examples(config(tmp_path, group="patient"))
    for name in ("age", "burst"):
        with pytest.raises(
            ConfigError, match=f"data.features.group: no record .* has a feature '{name}' of type bytes"
        ):
            find_examples(config(tmp_path, group=name))


@pytest.mark.parametrize("name", ["a [1] b", "a*", "what?", "[!x]"])
def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder_and_no_other(tmp_path, name):
    for folder in (name, "a 1 b", "ab", "whatx", "y"):
        for split in ("train", "eval"):
            write(tmp_path / folder / split / "0.tfrecord", make_example(b"image", folder))
    source = find_examples(config(tmp_path / name))
    for split in ("train", "eval"):
        pattern = f"{source.base}/{source.patterns[split]}"
        matches = [m.path for match in FileSystems.match([pattern]) for m in match.metadata_list]
        assert matches == tf.io.gfile.glob(pattern) == [str(tmp_path / name / split / "0.tfrecord")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file_and_no_other(tmp_path):
    for name in ("part[1].tfrecord", "part1.tfrecord"):
        write(tmp_path / "x [y]" / name, make_example(b"image", "a"))
    source = find_examples(config(tmp_path / "x [y]" / "part[1].tfrecord"))
    assert tf.io.gfile.glob(f"{source.base}/{source.all}") == [str(tmp_path / "x [y]" / "part[1].tfrecord")]


def test_a_pattern_of_folders_is_a_pattern(tmp_path):
    for day in ("1", "2"):
        write(tmp_path / f"day-{day}" / "0.tfrecord", make_example(b"image", "a"))
    assert find_examples(config(f"{tmp_path}/day-*/*.tfrecord")) == Source(
        f"{tmp_path}/day-*", {}, "*.tfrecord", is_foreign=True
    )


def test_shards_without_records_are_none_to_judge_by(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tfrecord").write_bytes(b"")
    write(tmp_path / "train" / "1.tfrecord", make_example(b"image", "a"))
    write(tmp_path / "val" / "0.tfrecord", make_example(b"image", "a"))
    assert find_examples(config(tmp_path)).patterns == {"train": "train/[!._]*", "eval": "val/[!._]*"}
    (tmp_path / "train" / "1.tfrecord").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no record at the start of .*there are no features at all"):
        find_examples(config(tmp_path))


def make_numbered(label: int) -> tf.train.Example:
    record = make_example(b"image")
    record.features.feature["label"].int64_list.value.append(label)
    return record


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"garbage", r"val/0\.tfrecord is not a TFRecord file"),
        (b"", r"no record at the start of .*val/0\.tfrecord has a feature 'input'.*there are no features at all"),
        ([make_example(b"image")], r"no record at the start of .*val/0\.tfrecord has a feature 'label'"),
        (
            [make_numbered(1)],
            r"val/0\.tfrecord has a feature 'label' of type bytes, as in .*train/0\.tfrecord; .*int64",
        ),
        ([make_example(b"image", "a", age="old")], r"val/0\.tfrecord has a feature 'age' of type float, as in .*train"),
    ],
)
def test_each_split_is_read_before_the_run(tmp_path, records, message):
    write(tmp_path / "train" / "0.tfrecord", make_example(b"image", "a", age=30))
    write(tmp_path / "val" / "0.tfrecord", make_example(b"image", "a"))  # where a side feature may be rare
    write(tmp_path / "test" / "0.tfrecord", make_example(b"image"))
    assert find_examples(config(tmp_path, numeric=["age"]))
    if isinstance(records, bytes):
        (tmp_path / "val" / "0.tfrecord").write_bytes(records)
    else:
        write(tmp_path / "val" / "0.tfrecord", *records)
    with pytest.raises(ConfigError, match=message):
        find_examples(config(tmp_path, numeric=["age"]))


@pytest.mark.parametrize("count", [0, 2])
def test_a_record_has_one_image(tmp_path, count):
    record = make_example(b"image", "a")
    record.features.feature["input"].bytes_list.value[:] = [b"image"] * count
    write(tmp_path / "0.tfrecord", record)
    with pytest.raises(ConfigError, match=rf"data\.features\.input: in .*0\.tfrecord a record has {count} values"):
        find_examples(config(tmp_path))


def test_a_label_map_is_for_labels_that_are_whole_numbers(tmp_path):
    (tmp_path / "names.txt").write_text("daisy\nrose\n")
    write(tmp_path / "text" / "0.tfrecord", make_example(b"image", "a"))
    record = make_example(b"image")
    record.features.feature["label"].int64_list.value.append(1)
    write(tmp_path / "numbers" / "0.tfrecord", record)
    names = {"label_map": str(tmp_path / "names.txt")}
    assert find_examples(config(tmp_path / "numbers", **names)).label_names == {0: "daisy", 1: "rose"}
    with pytest.raises(ConfigError, match=r"data\.features\.label: .*'label' of type int64 \(task"):
        find_examples(config(tmp_path / "text", **names))
    with pytest.raises(ConfigError, match=r"No such file\. If that is a feature with the names, it is the label"):
        find_examples(config(tmp_path / "numbers", label_map="image/class/text"))


@pytest.mark.parametrize("further", [
    {"trainer": {"class_weights": {"tulip": 2}}},
    {"evaluation": {"rules": [{"metric": "accuracy", "slice": {"label": "tulip"}, "min": 0.5}]}},
])  # fmt: skip
def test_a_rule_or_weight_of_a_class_that_the_label_map_lacks_is_refused_at_once(tmp_path, further):
    (tmp_path / "names.txt").write_text("daisy\ntulips\n")
    record = make_example(b"image")
    record.features.feature["label"].int64_list.value.append(1)
    write(tmp_path / "set" / "0.tfrecord", record)
    data = {"path": str(tmp_path / "set"), "features": {"label_map": str(tmp_path / "names.txt")}}
    with pytest.raises(
        ConfigError, match=r"tulip: not among the names of .*label_map, of which the nearest are tulips"
    ):
        find_examples(Config.model_validate({"name": "x", "data": data, **further}))


def test_features_by_other_names_are_taken_as_the_configuration_says(tmp_path):
    record = tf.train.Example()
    record.features.feature["image/encoded"].bytes_list.value.append(b"image")
    record.features.feature["image/class/label"].int64_list.value.append(3)
    write(tmp_path / "0.tfrecord", record)
    names = {"input": "image/encoded", "label": "image/class/label"}
    assert find_examples(config(tmp_path, **names)).all == "[!._]*"
    with pytest.raises(ConfigError, match=r"data\.features\.input: .*image/class/label \(int64\), image/encoded"):
        find_examples(config(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.features\.label: .*feature 'klass' of type bytes or int64"):
        find_examples(config(tmp_path, **names | {"label": "klass"}))


def test_labels_that_are_not_the_tasks_are_refused_with_the_reason(tmp_path):
    write(tmp_path / "words" / "0.tfrecord", make_example(b"image", "a"))
    several = make_example(b"image", "a")
    several.features.feature["label"].bytes_list.value.append(b"b")
    write(tmp_path / "several" / "0.tfrecord", several, make_example(b"unlabelled"))
    with pytest.raises(ConfigError, match=r"of type float or int64 \(task: regression\); there are .*label \(bytes\)"):
        find_examples(config(tmp_path / "words").model_copy(update={"task": "regression"}))
    with pytest.raises(ConfigError, match=r"task: classification, but in .* has 2 values of 'label'.*multilabel"):
        find_examples(config(tmp_path / "several"))
    assert find_examples(config(tmp_path / "several").model_copy(update={"task": "multilabel"})).all == "[!._]*"


def test_what_is_no_dataset_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ConfigError, match="imagepipe ingest"):
        find_examples(config(tmp_path / "missing"))
    (tmp_path / "notes.txt").write_text("these are not records")
    with pytest.raises(ConfigError, match=r"notes\.txt is not a TFRecord file"):
        find_examples(config(tmp_path))


@pytest.mark.parametrize("content", ['{"name": "flowers"}', '{"version": "1.0.0"}', "[]"])
def test_a_dataset_json_of_another_program_is_to_be_moved_away(tmp_path, content):
    write(tmp_path / "0.tfrecord", make_example(b"image", "a"))
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ConfigError, match=r"dataset\.json describes no dataset of imagepipe's: .*move it out of the"):
        find_examples(config(tmp_path))


def describe(folder, labels, task="classification") -> None:
    """Writes the description of a dataset with these labels by split, and files that are as it says."""
    options = dataset.Options(task, dict.fromkeys(labels, 1), None, 10**8, None)
    splits = {
        name: dataset.Split(
            sum(counts.values()), counts, [dataset.Shard(f"{name}/0.tfrecord", sum(counts.values()), 1)]
        )
        for name, counts in labels.items()
    }
    description = dataset.Dataset(options, dataset.list_features(task), splits)
    (folder / dataset.DESCRIPTION).write_bytes(dataset.encode(description))
    for name in splits:
        (folder / name).mkdir()
        (folder / name / "0.tfrecord").write_bytes(b"x")


def test_a_dataset_whose_labels_are_ids_is_refused(tmp_path):
    labels = {
        "train": {f"image {number:03}": 1 for number in range(100)},
        "eval": {f"image {number:03}": 1 for number in range(100, 200)},
    }
    describe(tmp_path, labels)
    with pytest.raises(ConfigError, match=r"label of .* has 200 different values for 200 images.*look like ids"):
        find_examples(config(tmp_path))


@pytest.mark.parametrize(
    ("task", "section", "message"),
    [
        (
            "classification",
            {"trainer": {"class_weights": {"7": 2, "no": 1, "007": 1}}},
            r"trainer\.class_weights: 7: not among the labels of the split train, of which the nearest are 007",
        ),
        (
            "multilabel",
            {"trainer": {"label_thresholds": {"NO": 0.3}}},
            r"trainer\.label_thresholds: NO: .* the nearest are no$",
        ),
        (
            "classification",
            {"evaluation": {"rules": [{"metric": "accuracy", "min": 0.5, "slice": {"label": "false"}}]}},
            r"evaluation\.rules\.0\.slice: false: not among the labels of the split eval, which are 007, no$",
        ),
        (
            "multilabel",
            {"evaluation": {"rules": [{"metric": "macro_f1", "min": 0.5, "slice": {"label": "only in train"}}]}},
            r"evaluation\.rules\.0\.slice: only in train: not among the labels of the split eval",
        ),
    ],
)
def test_what_is_demanded_of_a_class_that_is_not_there_is_refused(tmp_path, task, section, message):
    describe(tmp_path, {"train": {"007": 9, "no": 9, "only in train": 9}, "eval": {"007": 9, "no": 9}}, task)
    values = {"name": "x", "task": task, "data": {"path": str(tmp_path)}}
    with pytest.raises(ConfigError, match=message):
        find_examples(Config.model_validate(values | section))


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"slices": ["camra"]}, "evaluation.slices: no record at the start of .* has a feature 'camra'"),
        ({"slices": ["weight"]}, r"evaluation.slices: .* 'weight' of type bytes or int64.*weight \(float\)"),
        (
            {"rules": [{"metric": "accuracy", "min": 0, "slice": {"camra": "old"}}]},
            "evaluation.rules.0.slice: .* 'camra'",
        ),
    ],
)
def test_slices_by_columns_that_are_not_there_are_refused(tmp_path, evaluation, message):
    write(tmp_path / "0.tfrecord", make_example(b"image", "a", camera="old", weight=0.5))
    values = {"name": "x", "data": {"path": str(tmp_path)}}
    allowed = {
        "slices": ["camera"],
        "rules": [{"metric": "accuracy", "min": 0, "slice": {"image_size": "0-31 px", "label": "a"}}],
    }
    assert find_examples(Config.model_validate(values | {"evaluation": allowed}))
    with pytest.raises(ConfigError, match=message):
        find_examples(Config.model_validate(values | {"evaluation": evaluation}))
