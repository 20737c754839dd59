"""Each component's cache key: the code that it uses and the packages below, nothing else, and no words."""

import ast
import json
import shutil
from pathlib import Path

import grimp
import pytest

from imagepipe.base import code_closure
from imagepipe.base.code_closure import PACKAGES, SOURCES, find_closure
from imagepipe.base.decisions import OVERRIDES, Decision, append_decision
from imagepipe.base.names import DECISIONS_HASH
from imagepipe.base.syntax import Syntax, read_syntax
from pipeline.code_key import CODE, compute_code_key, list_modules
from pipeline.config import Config
from pipeline.dag import create_pipeline
from pipeline.source import Source

TRAINING = {"Trainer", "Tuner"}
NETWORK = {*TRAINING, "Features"}
DATA = {"DataCheck", "FeatureCheck"}
TARGETS = {"DataCheck", "Champion", "Pusher"}  # which ask or change what is live
IMAGES = {*DATA, "ServingCheck", "ModelReport"}  # which decode images in Python

USERS_OF_FILES = {
    "components/schema_gen/executor.py": {"ImageSchemaGen"},
    "components/data_check/label_errors.py": DATA,
    "components/data_gate/component.py": {"DataGate", "FeatureGate"},
    "components/feature_check/neighbours.py": {"FeatureCheck"},
    "trainer/linear_probe.py": {"FeatureCheck", *TRAINING},
    "transform/preprocessing.py": {"Transform"},
    "transform/images.py": {"Transform"},
    "trainer/network.py": NETWORK,
    "trainer/tuner_fn.py": {"Tuner"},
    "trainer/export/optimize.py": TRAINING,
    "components/champion/executor.py": {"Champion"},
    "components/predictions/row_writer.py": {"Predictions"},
    "imagepipe/monitoring/reference_rows.py": {"Predictions"},
    "imagepipe/monitoring/comparison.py": set(),
    "components/evaluator/tfma_metrics.py": {"Evaluator", "ModelReport"},
    "components/evaluator/tfma_paired_tests.py": {"Evaluator"},
    "components/evaluator/significance.py": {"Evaluator"},
    "components/serving_check/expectations.py": {"ServingCheck"},
    "imagepipe/serving/server.py": {"ServingCheck"},
    "imagepipe/serving/page.html": {"ServingCheck"},
    "imagepipe/base/images.py": IMAGES,
    "imagepipe/deploy/kserve.py": TARGETS,
    "components/pusher/executor.py": {"Pusher"},
    "components/model_report/page.html": {"ModelReport"},
    "components/model_report/style.css": {"ModelReport"},
    "components/model_report/script.js": {"ModelReport"},
    "components/data_check/component.py": set(),  # what it passes on is in the parameters
    "imagepipe/ingest/steps.py": set(),
    "pipeline/dag.py": set(),
    "pipeline/cli/runs.py": set(),
}

TFDV = {"StatisticsGen", "ImageSchemaGen", "ExampleValidator", "DataCheck", "Transform"}
USERS_OF_PACKAGES = {
    ("tensorflow", "tensorflow"): {
        *("ImportExampleGen", "Transform", *NETWORK, "Predictions", "Evaluator", "ServingCheck"),
        "ModelReport",
    },
    ("keras", "keras"): {*NETWORK, "ModelReport"},
    ("tensorflow-model-analysis", "tensorflow_model_analysis"): {"Evaluator", "ModelReport"},
    ("tensorflow-data-validation", "tensorflow_data_validation"): TFDV,
    ("pillow", "PIL"): IMAGES,
    ("scipy", "scipy"): {*DATA, *TRAINING, "Evaluator", "ModelReport"},
    ("kubernetes", "kubernetes"): TARGETS,
    ("fastapi", "fastapi"): {"ServingCheck"},
    ("fsspec", "fsspec"): {
        *(
            *DATA,
            "DataGate",
            "FeatureGate",
            "Transform",
            *NETWORK,
            "Champion",
            "Predictions",
            "Evaluator",
            "ServingCheck",
        ),
        *("Pusher", "ModelReport"),
    },
    ("rich", "rich"): set(),
}


@pytest.fixture(scope="module")
def components():
    """The components of a pipeline with all of them."""
    tuner = {"space": {"learning_rate": {"min": 1e-4, "max": 1e-2}}}
    config = Config(name="keys", data={"path": "/data"}, tuner=tuner)
    return build(config)


def test_decisions_are_in_data_checks_key_and_in_no_other(tmp_path):
    def list_properties() -> dict[str, dict]:
        config = Config(name="keys", data={"path": str(tmp_path)})
        return {component.id: dict(component.exec_properties) for component in build(config)}

    def decide(label: str | None, **more) -> dict[str, dict]:
        append_decision(tmp_path / OVERRIDES, Decision("0" * 64, label, **more))
        return list_properties()

    none, one = list_properties(), decide("a")
    assert {name for name in none if none[name] != one[name]} == {"DataCheck"}
    assert {key for key in one["DataCheck"] if none["DataCheck"][key] != one["DataCheck"][key]} == {DECISIONS_HASH}
    assert decide("a", by="somebody else", at="later") == one
    assert decide("b") not in (none, one)
    assert decide(None) == none


@pytest.mark.parametrize(
    ("changed", "tuner", "is_searched_again"),
    [
        ({"calibration": "none"}, {}, False),
        ({"label_thresholds": {"rain": 0.3}}, {}, False),
        ({"refit": True}, {}, False),
        ({"epochs": 7}, {"epochs": 3}, False),
        ({"epochs": 7}, {}, True),
        ({"batch_size": 7}, {}, True),
        ({"validation": 0.2}, {}, True),
        ({"augmentation": {"rotation": 3}}, {}, True),
    ],
    ids=str,
)
def test_a_search_runs_again_for_what_its_trials_depend_on_alone(changed, tuner, is_searched_again):
    def list_properties(trainer: dict) -> dict[str, dict]:
        space = {"learning_rate": {"min": 1e-4, "max": 1e-2}}
        config = Config(
            name="keys", task="multilabel", data={"path": "/data"}, trainer=trainer, tuner={"space": space} | tuner
        )
        return {component.id: dict(component.exec_properties) for component in build(config)}

    one, other = list_properties({}), list_properties(changed)
    assert one["Trainer"] != other["Trainer"]
    assert (one["Tuner"] != other["Tuner"]) == is_searched_again


def build(config: Config):
    source = Source("/data", {split: f"{split}/*" for split in ("train", "eval")})
    return create_pipeline(config, source, "/artifacts", "/state", config.make_deployment("/serving"), []).components


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of our packages."""
    folder = tmp_path_factory.mktemp("sources")
    for name in PACKAGES:
        shutil.copytree(SOURCES / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def by_content() -> dict[tuple[bytes, bool], Syntax]:
    """Sources that were read, for all tests: most of their time would be parsing."""
    return {}


@pytest.fixture
def compute_keys(components, sources, by_content, monkeypatch):
    """Returns a function that computes the keys as a new process would, by component."""

    def read(file: Path, package: str, with_functions: bool = True) -> Syntax:
        content = file.read_bytes(), with_functions
        if content not in by_content:
            by_content[content] = read_syntax.__wrapped__(file, package, with_functions)
        return by_content[content]

    monkeypatch.setattr(code_closure, "read_syntax", read)

    def compute() -> dict[str, str]:
        code_closure._hash_file.cache_clear()
        return {component.id: compute_code_key(component, sources) for component in components}

    return compute


def find_changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one if one[name] != other[name]}


def test_every_component_has_its_code_in_its_key(components):
    keys = {component.id: component.exec_properties[CODE] for component in components}
    assert keys == {component.id: compute_code_key(component) for component in components}
    used = set().union(*USERS_OF_FILES.values(), *USERS_OF_PACKAGES.values())
    assert used == set(keys)  # so the tables below have a line for each


def test_changed_code_changes_the_keys_of_the_components_that_use_it(compute_keys, sources):
    original = compute_keys()
    for name, users in USERS_OF_FILES.items():
        file = sources / name
        text = file.read_text()
        file.write_text(text + ("\nCHANGED = 1\n" if file.suffix == ".py" else "\n"))
        assert (name, find_changed(original, compute_keys())) == (name, users)
        file.write_text(text)
    assert compute_keys() == original


def test_words_change_no_key(compute_keys, sources):
    original = compute_keys()
    for name in PACKAGES:
        for file in (sources / name).rglob("*.py"):
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                match node:
                    case ast.Expr(value=ast.Constant(value=str())):
                        node.value.value = "Other words."
            file.write_text(f"# Without the comments, and in another layout.\n{ast.unparse(tree)}\n")
    assert compute_keys() == original


def test_another_version_of_a_package_changes_the_keys_of_the_components_that_use_it(
    compute_keys, tmp_path, monkeypatch
):
    original = compute_keys()
    for (name, module), users in USERS_OF_PACKAGES.items():
        folder = tmp_path / name
        info = folder / f"{module}-0.0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
        (info / "RECORD").write_text(f"{module}/__init__.py,,\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            assert (name, find_changed(original, compute_keys())) == (name, users)


def test_all_that_is_imported_by_another_reading_of_the_sources_is_in_the_keys(components):
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    for component in components:
        names = list_modules(component)
        roots = {name for name in names | {name.rpartition(".")[0] for name in names} if name in graph.modules}
        imported = roots.union(*(graph.find_upstream_modules(name) for name in roots))
        assert imported <= {name.removesuffix(" on the way") for name in find_closure(names).digests}


def test_a_curated_schema_has_its_content_and_the_code_of_what_imports_it_in_its_key(tmp_path):
    schema = tmp_path / "schema.pbtxt"
    config = Config(name="keys", data={"path": "/data", "curated_schema": str(schema)})

    def list_keys(text: str) -> dict[str, str]:
        schema.write_text(text)
        return {component.id: component.exec_properties[CODE] for component in build(config)}

    one, other = list_keys("min_images.train=10"), list_keys("min_images.train=500")
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {"ImportSchemaGen", "ModelReport"}  # the report has the configuration, and so the name
    assert list_keys("min_images.train=10") == one
    assert len(one["ImportSchemaGen"]) > len(one["ExampleValidator"])


def test_a_change_of_a_backbone_of_ones_own_changes_the_keys_of_the_nodes_that_use_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "own_networks.py"
    constants = 'SIZE = (64, 64)\nMIN_SIDE = 32\nSCALING = "0 to 1"\nUNFREEZE_AFTER = "first"\n'
    config = {"name": "keys", "data": {"path": "/data"}}
    trainer = {"backbone": "own_networks:build", "weights": "/weights.h5"}

    def compute() -> dict[str, str]:
        for cached in (read_syntax, code_closure._locate):
            cached.cache_clear()
        built = build(Config(**config, trainer=trainer))
        return {component.id: component.spec.exec_properties[CODE] for component in built}

    module.write_text(f"{constants}def build(size): return 1")
    original = compute()
    module.write_text(f"{constants}def build(size): return 2")
    assert find_changed(original, compute()) == {"Features", "Trainer", "ModelReport"}


@pytest.mark.parametrize("name", ["wéights.h5", 'a "quoted" one.weights.json', "saved model"])
def test_other_weights_under_the_same_path_change_the_keys_of_the_nodes_that_start_from_them(tmp_path, name):
    path = tmp_path / name
    trainer = {"backbone": "mobilenet_v2", "weights": str(path)}
    file = path
    if name.endswith(".json"):
        path.write_text(json.dumps({"metadata": {}, "weight_map": {"/layer": ["part_0.weights.h5"]}}))
        file = tmp_path / "part_0.weights.h5"
    elif "." not in name:
        file = path / "variables" / "variables.index"
        file.parent.mkdir(parents=True)

    def compute(content: str) -> dict[str, str]:
        file.write_text(content)
        built = build(Config(name="keys", data={"path": "/data"}, trainer=trainer))
        return {component.id: component.spec.exec_properties[CODE] for component in built}

    original = compute("one")
    assert find_changed(original, compute("another")) == {"Features", "Trainer", "ModelReport"}
    assert not find_changed(original, compute("one"))
