"""Images as people have them: to Examples and a configuration; and from there to a prediction, as a user gets one."""

import io
import json
import shlex
import tarfile
import zipfile
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from imagepipe.ingest.command import ingest
from pipeline.config import FeaturesConfig
from pipeline.config_file import read_config
from pipeline.init import write_config
from pipeline.source import find_examples
from tests.conftest import make_digit_images
from tests.e2e.test_train import QUICK, imagepipe

CLASSES = ["even", "odd"]


@pytest.fixture(scope="module")
def digits():
    """Name, class and PNG of 210 digits."""
    return [(f"{n:04}.png", CLASSES[int(label) % 2], png) for n, (label, png) in enumerate(make_digit_images(210))]


def write_folders(digits, folder):
    """As most public sets have them: train/ and val/ above the class folders."""
    for number, (name, label, png) in enumerate(digits):
        path = folder / "set" / ("val" if number % 5 == 0 else "train") / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    return folder / "set"


def write_zip(digits, folder):
    with zipfile.ZipFile(folder / "digits.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, label, png in digits:
            archive.writestr(f"digits/{label}/{name}", png)
    return folder / "digits.zip"


def write_parquet(digits, folder):
    """As Hugging Face's datasets write it."""
    (folder / "set/data").mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, rows in (("train", digits[40:]), ("validation", digits[:40])):
        images = pa.array([{"bytes": png, "path": name} for name, _, png in rows], kind)
        table = pa.table({"image": images, "label": [CLASSES.index(label) for _, label, _ in rows]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"set/data/{split}-00000-of-00001.parquet")
    return folder / "set"


def write_samples(digits, folder):
    """As WebDataset has them."""
    with tarfile.open(folder / "digits-0000.tar", "w") as archive:
        for name, label, png in digits:
            for member, data in ((name, png), (name.replace(".png", ".cls"), label.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder / "digits-{0000..0000}.tar"


def write_tasks(digits, folder):
    """As Label Studio exports them."""
    (folder / "photos").mkdir()
    tasks = []
    for name, label, png in digits:
        (folder / "photos" / name).write_bytes(png)
        result = [{"type": "choices", "value": {"choices": [label]}}]
        tasks.append({"data": {"image": f"/data/local-files/?d=photos/{name}"}, "annotations": [{"result": result}]})
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


SOURCES = [write_folders, write_zip, write_parquet, write_samples, write_tasks]


def list_labels(dataset) -> set[tuple[bytes, bytes]]:
    """Label of each image, by the hash of its file."""
    features = [
        tf.train.Example.FromString(record).features.feature
        for file in sorted(dataset.glob("*/*.tfrecord"))
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    ]
    return {(feature["sha256"].bytes_list.value[0], feature["label"].bytes_list.value[0]) for feature in features}


@pytest.mark.slow
@pytest.mark.parametrize("write", SOURCES)
def test_each_source_gives_the_same_examples_and_configuration(write, digits, tmp_path):
    """Nothing that comes after knows more of the source, so that one of them is trained below for all."""
    dataset = tmp_path / "out" / "dataset"
    assert ingest(str(write(digits, tmp_path)), str(dataset)).written == len(digits)
    assert list_labels(dataset) == {(sha256(png).hexdigest().encode(), label.encode()) for _, label, png in digits}
    write_config(dataset, config := tmp_path / "out" / "pipeline.yaml")
    settings = read_config(config)
    assert settings.data.features == FeaturesConfig()  # no column of a container enters the network
    assert set(find_examples(settings).patterns) >= {"train", "eval"}


@pytest.mark.slow
def test_each_source_leads_to_predictions(digits, tmp_path):
    """One is trained on, see above; all are asked about."""
    sources = {}
    for write in SOURCES:
        (folder := tmp_path / write.__name__).mkdir()
        sources[write] = write(digits, folder)
    sets = [argument for override in QUICK for argument in ("--set", override)]
    done = imagepipe("train", sources[write_parquet], "--out", tmp_path / "out", *sets)
    assert done.exit_code == 0, done.stderr
    assert "210 records in = 210 written" in done.stdout
    ask = next(line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("Ask it"))
    (tmp_path / "photo.png").write_bytes(digits[0][2])
    answer = imagepipe(*shlex.split(ask)[1:-1], tmp_path / "photo.png", "--json")
    assert json.loads(answer.stdout)["label"] in CLASSES, answer.stderr

    model = shlex.split(ask)[2]
    sources[write_parquet] = f"{sources[write_parquet]}/data/*.parquet"  # in a folder of images they may be results
    sources[write_tasks] = sources[write_tasks].parent / "photos"  # an export answers the question
    for write, source in sources.items():
        asked = imagepipe("batch-predict", model, source, "--out", tmp_path / "results" / write.__name__, "--json")
        assert asked.exit_code == 0, (write, asked.stderr)
        assert (json.loads(asked.stdout)["predicted"], json.loads(asked.stdout)["quarantined"]) == (210, 0), write
