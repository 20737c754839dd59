"""A dataset on an object store: configured, and copied to this machine for what TensorFlow opens."""

import glob
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from imagepipe.ingest import dataset
from imagepipe.ingest.command import ingest
from pipeline.config_file import read_config
from pipeline.init import write_config
from pipeline.kubeflow.entrypoint import stage_input
from pipeline.source import Source, compute_fingerprint, find_examples
from pipeline.staging import open_splits, stage_examples
from tests.conftest import encode_image
from tests.stores import memory, s3, s3_server, store  # noqa: F401 (fixtures)


def add_images(store, first: int, count: int) -> None:  # noqa: F811
    for number in range(first, first + count):
        image = Image.new("RGB", (8, 8), (number * 7 % 256, number * 11 % 256, 0))
        store.put(f"photos/{'ab'[number % 2]}/{number}.png", encode_image(image, "PNG"))


def list_copies(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def test_a_dataset_on_a_store_is_configured_and_copied_for_a_run_as_far_as_it_changed(store, tmp_path):  # noqa: F811
    add_images(store, 0, 20)
    uri = f"{store.uri}/dataset"
    ingest(f"{store.uri}/photos", uri)
    write_config(f"{uri}/", tmp_path / "pipeline.yaml")
    assert yaml.safe_load((tmp_path / "pipeline.yaml").read_text())["data"]["path"] == uri
    config = read_config(tmp_path / "pipeline.yaml")
    source = find_examples(config)
    copies = tmp_path / "work" / ".data"

    staged = stage_examples(source, copies)
    assert staged.base == glob.escape(str(copies))
    assert staged.patterns == source.patterns
    shards = {file: data for name in source.patterns for file, data in store.content("dataset").items() if name in file}
    shards = {file: data for file, data in shards.items() if ".tfrecord" in file}
    assert {file: (copies / file).read_bytes() for file in list_copies(copies)} == shards

    (copies / "train" / f"{filesystem.PARTIAL}x").write_bytes(b"of a run that was killed")
    present = list_copies(copies)
    stage_examples(source, copies)
    assert list_copies(copies).items() < present.items()
    assert present.keys() - list_copies(copies).keys() == {f"train/{filesystem.PARTIAL}x"}
    fingerprint = compute_fingerprint(uri, source).fingerprint

    add_images(store, 20, 4)
    ingest(f"{store.uri}/photos", uri)
    stage_examples(find_examples(config), copies)
    assert set(list_copies(copies)) == {
        shard.file for split in dataset.load(uri).splits.values() for shard in split.shards
    }
    assert compute_fingerprint(uri, source).fingerprint != fingerprint


def test_splits_of_a_dataset_are_opened_where_they_are_or_as_a_copy_that_goes(memory, tmp_path):  # noqa: F811
    for name in ("train/1.tfrecord", "train/2.tfrecord", "eval/1.tfrecord"):
        memory.put(f"set/{name}", name.encode())
    with open_splits(f"{memory.uri}/set", ["train"]) as folder:
        assert sorted(path.name for path in folder.rglob("*.tfrecord")) == ["1.tfrecord", "2.tfrecord"]
        assert (folder / "train" / "2.tfrecord").read_bytes() == b"train/2.tfrecord"
    assert not folder.exists()
    with open_splits(str(tmp_path), ["train"]) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize("base", ["/data/set", "gs://bucket/set"])
def test_what_tensorflow_opens_is_not_copied(base, tmp_path):
    source = Source(base, {"train": "train/*"})
    assert stage_examples(source, tmp_path / "copies") is source
    assert not (tmp_path / "copies").exists()


def test_no_name_leads_out_of_the_folder_of_the_copies(memory, tmp_path, monkeypatch):  # noqa: F811
    source = Source(memory.uri, {}, "*")
    paths = [("", f"{memory.uri}/../x", "../x")]
    monkeypatch.setattr("pipeline.staging.list_examples", lambda _: iter(paths))
    with pytest.raises(ConfigError, match=r"data\.path: memory://.*can't be copied"):
        stage_examples(source, tmp_path / "copies")


def test_in_a_container_import_example_gen_gets_copies_and_others_what_they_got(memory, tmp_path):  # noqa: F811
    memory.put("set/train/1.tfrecord", b"1")
    splits = json.dumps({"splits": [{"name": "train", "pattern": "train/*.tfrecord*"}]})
    given = {"inputs": {"parameterValues": {"input_base": f"{memory.uri}/set", "input_config": splits}}}
    staged = stage_input(given, tmp_path / "copies")["inputs"]["parameterValues"]
    assert staged == {"input_base": str(tmp_path / "copies"), "input_config": splits}
    assert (tmp_path / "copies" / "train" / "1.tfrecord").read_bytes() == b"1"
    other = {"inputs": {"parameterValues": {"epochs": 3}}}
    assert stage_input(other, tmp_path) == other


def test_a_second_run_of_unchanged_data_in_a_store_takes_the_examples_from_the_cache(memory, tmp_path):  # noqa: F811
    from tfx.orchestration.metadata import sqlite_metadata_connection_config

    from pipeline.dag import create_pipeline
    from pipeline.local_runner import NodeError, run_nodes

    def run_first_node(run_id: str) -> bool:
        """Whether ImportExampleGen was taken from the cache; all else is as in `imagepipe run`."""

        def stop(node) -> None:  # if it is cached, so is all that depends on it alone
            cached.append(node.cached)
            raise NodeError(node.id, "enough")

        cached: list[bool] = []
        config = read_config(tmp_path / "pipeline.yaml")
        pipeline = create_pipeline(
            config,
            stage_examples(find_examples(config), tmp_path / "work" / ".data"),
            pipeline_root=str(tmp_path / "work"),
            state_dir=str(tmp_path / "work" / ".training"),
            deploy=config.make_deployment(str(tmp_path / "serving")),
            beam_args=config.beam.make_arguments(),
            metadata=sqlite_metadata_connection_config(str(tmp_path / "metadata.db")),
        )
        with pytest.raises(NodeError, match="enough"):
            run_nodes(pipeline, run_id, (), lambda _: None, stop)
        return cached == [True]

    add_images(memory, 0, 20)
    ingest(f"{memory.uri}/photos", f"{memory.uri}/dataset")
    write_config(f"{memory.uri}/dataset", tmp_path / "pipeline.yaml")
    assert not run_first_node("first")
    assert run_first_node("second")
