"""The compiled pipeline: KFP's IR and the settings of Kubernetes, and what is refused."""

import json
from collections import Counter

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

from imagepipe.base.beam_options import SERVER_RUNNER
from imagepipe.base.errors import ConfigError
from pipeline import demo
from pipeline.config_file import read_config
from pipeline.kubeflow.compilation_check import check_and_compile
from pipeline.kubeflow.component_settings import find_settings
from pipeline.kubeflow_config import KubeflowConfig
from pipeline.runs.provenance import to_yaml
from tests.weight_files import write_weights

KUBEFLOW = """\
deploy: {path: /data/serving}
kubeflow:
  image: registry.example/imagepipe:1
  description: Digits, to a gated classifier.
  gpu: {count: 2}
  resources: {default: {cpu: 500m, memory: 4Gi}, Trainer: {cpu: 8, memory: 32Gi}}
  volumes: [{claim: data, path: /data}]
  secrets: [{name: store, env: {STORE_KEY: key}}]
  tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]
  node_selector: {pool: training}
  labels: {team: vision}
"""

TOLERATION = {"key": "gpu", "operator": "Equal"}
VERTEX = ("kubeflow.pipeline_root=gs://bucket/runs", "data.path=gs://bucket/data", "deploy.path=gs://bucket/serving")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Reads the demo's configuration, for a cluster."""
    root = tmp_path_factory.mktemp("compile")
    demo.write_config(root)
    path = root / "pipeline.yaml"
    path.write_text(path.read_text() + KUBEFLOW)
    return lambda *overrides: read_config(path, overrides)


@pytest.fixture(scope="module")
def compiled(config) -> str:
    return check_and_compile(config(), "kubeflow")


@pytest.fixture(scope="module")
def documents(compiled) -> list[dict]:
    return list(yaml.safe_load_all(compiled))


def containers(spec: dict) -> dict[str, dict]:
    return {name: executor["container"] for name, executor in spec["deploymentSpec"]["executors"].items()}


def test_kubeflow_loads_the_compiled_pipeline(compiled, tmp_path):
    (tmp_path / "compiled.yaml").write_text(compiled)
    component = components.load_component_from_file(str(tmp_path / "compiled.yaml"))
    assert component.pipeline_spec.schema_version == "2.1.0"
    assert component.pipeline_spec.pipeline_info.description == "Digits, to a gated classifier."
    assert "kubernetes" in component.platform_spec.platforms


def test_the_same_configuration_gives_the_same_text(config, compiled):
    assert check_and_compile(config(), "kubeflow") == compiled


def test_there_is_no_node_that_open_source_kubeflow_can_not_run(documents):
    executors = documents[0]["deploymentSpec"]["executors"]
    assert len(executors) == 16
    assert all(set(executor) == {"container"} for executor in executors.values())
    modules = Counter(c["command"][2] for c in containers(documents[0]).values())
    assert modules == {"pipeline.kubeflow.entrypoint": 14, "pipeline.kubeflow.look": 2}
    assert not any("lifecycle" in c for c in containers(documents[0]).values())


def test_the_reports_outputs_have_the_types_that_a_page_shows_and_others_tfxs(documents):
    components = documents[0]["components"]
    report = components["comp-model-report"]["outputDefinitions"]["artifacts"]
    assert {key: output["artifactType"] for key, output in report.items()} == {
        "report": {"schemaTitle": "system.HTML", "schemaVersion": "0.0.1"},
        "metrics": {"schemaTitle": "system.Metrics", "schemaVersion": "0.0.1"},
        "classification_metrics": {"schemaTitle": "system.ClassificationMetrics", "schemaVersion": "0.0.1"},
    }
    model = components["comp-trainer"]["outputDefinitions"]["artifacts"]["model"]
    assert "tfx.Model" in model["artifactType"]["instanceSchema"]


def test_nothing_is_trained_before_the_data_has_passed(documents):
    tasks = documents[0]["root"]["dag"]["tasks"]
    assert "data-gate" in tasks["transform"]["dependentTasks"]
    assert "transform" in tasks["trainer"]["dependentTasks"]


def test_with_pretrained_weights_the_data_is_looked_at_through_them_before_training(config, tmp_path):
    weights = write_weights(tmp_path / "mobilenet.h5", "mobilenet_v2")
    compiled = check_and_compile(config(f"trainer.weights={weights}", "trainer.backbone=mobilenet_v2"), "kubeflow")
    spec = next(yaml.safe_load_all(compiled))
    tasks = spec["root"]["dag"]["tasks"]
    assert {"data-gate", "feature-gate"} <= tasks.keys()
    assert tasks["feature-gate"]["dependentTasks"] == ["feature-check"]
    assert "feature-gate" in tasks["trainer"]["dependentTasks"]
    findings = tasks["model-report"]["inputs"]["artifacts"]["findings"]["taskOutputArtifact"]
    assert findings == {"producerTask": "feature-check", "outputArtifactKey": "checked"}
    assert containers(spec)["exec-features"]["resources"]["accelerator"]["count"] == "2"


def test_the_trainer_alone_has_the_gpu_and_each_component_what_it_may_use(documents):
    resources = {name: container["resources"] for name, container in containers(documents[0]).items()}
    trainer = resources.pop("exec-trainer")
    assert trainer["accelerator"] == {
        "type": "nvidia.com/gpu",
        "count": "2",
        "resourceType": "nvidia.com/gpu",
        "resourceCount": "2",
    }
    assert (trainer["resourceCpuLimit"], trainer["resourceMemoryRequest"]) == ("8", "32Gi")
    assert trainer["memoryLimit"] == pytest.approx(32 * 2**30 / 1e9)
    assert {json.dumps(other, sort_keys=True) for other in resources.values()} == {
        json.dumps(
            {
                "cpuLimit": 0.5,
                "cpuRequest": 0.5,
                "memoryLimit": 4.294967296,
                "memoryRequest": 4.294967296,
                "resourceCpuLimit": "500m",
                "resourceCpuRequest": "500m",
                "resourceMemoryLimit": "4Gi",
                "resourceMemoryRequest": "4Gi",
            },
            sort_keys=True,
        )
    }


def test_parameters_are_at_the_root_with_the_configurations_values(documents, config):
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert {name: p["defaultValue"] for name, p in parameters.items()} == {
        "data_path": config().data.path,
        "epochs": 10,
        "batch_size": 64,
        "threshold_accuracy": 0.95,
    }
    assert {p["parameterType"] for p in parameters.values()} == {"STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE"}


def test_what_the_cache_can_not_see_is_not_cached(documents, config):
    def cached(spec):
        return {name for name, task in spec["root"]["dag"]["tasks"].items() if "cachingOptions" in task}

    tasks = set(documents[0]["root"]["dag"]["tasks"])
    assert tasks - cached(documents[0]) == {"data-lookup", "target-lookup", "pusher"}
    vertex = yaml.safe_load(check_and_compile(config(*VERTEX), "vertex"))
    assert set(vertex["root"]["dag"]["tasks"]) - cached(vertex) == {"data-lookup", "target-lookup", "pusher"}
    assert cached(yaml.safe_load_all(check_and_compile(config("kubeflow.cache=false"), "kubeflow")).__next__()) == set()


def test_what_the_cache_can_not_see_is_looked_up_for_those_who_depend_on_it(config, tmp_path, documents):
    def list_takers(spec):
        tasks = spec["root"]["dag"]["tasks"]
        inputs = [(name, p) for name, t in tasks.items() for p in t["inputs"].get("parameters", {}).items()]
        return {(name, key) for name, (key, value) in inputs if "taskOutputParameter" in value}

    live = {("champion", "live_models"), ("data-check", "live_statistics"), ("data-check", "decisions_hash")}
    assert list_takers(documents[0]) == {("import-example-gen", "data_hash"), *live}
    weights = write_weights(tmp_path / "mobilenet.h5", "mobilenet_v2")
    files = ("data.curated_schema=schema.pbtxt", f"trainer.weights={weights}", "trainer.backbone=mobilenet_v2")
    spec = next(yaml.safe_load_all(check_and_compile(config(*files), "kubeflow")))
    taken = list_takers(spec) - list_takers(documents[0])
    assert taken == {("import-schema-gen", "schema_hash"), ("features", "weights_hash"), ("trainer", "weights_hash")}
    vertex = config(*VERTEX, "data.curated_schema=gs://bucket/schema.pbtxt")
    spec = yaml.safe_load(check_and_compile(vertex, "vertex"))
    assert list_takers(spec) == {("import-schema-gen", "schema_hash"), *live}


def test_not_this_machine_but_the_image_stands_for_the_code(config, compiled, documents, monkeypatch):
    monkeypatch.setattr("pipeline.code_key.hash_code", lambda *args: "another machine")
    assert check_and_compile(config(), "kubeflow") == compiled
    assert {container["image"] for container in containers(documents[0]).values()} == {"registry.example/imagepipe:1"}
    tasks = documents[0]["root"]["dag"]["tasks"].values()
    assert not any("code" in task["inputs"].get("parameters", {}) for task in tasks)


@pytest.mark.parametrize(
    ("image", "is_mutable"),
    [
        ("example/imagepipe", True),
        ("registry.example:5000/team/imagepipe", True),
        ("registry.example:5000/team/imagepipe:latest", True),
        ("registry.example:5000/team/imagepipe:7", False),
        ("example/imagepipe@sha256:0123", False),
        ("example/imagepipe:latest@sha256:0123", False),
        (None, False),
    ],
)
def test_an_image_without_a_tag_of_its_own_may_change_under_its_name(image, is_mutable):
    assert KubeflowConfig(image=image).has_mutable_image is is_mutable


def test_kubernetes_gives_every_component_volumes_secrets_and_nodes(documents):
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(containers(documents[0]))
    trainer = executors["exec-trainer"]
    assert trainer["nodeSelector"] == {"labels": {"pool": "training"}}
    assert trainer["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert trainer["podMetadata"] == {"labels": {"team": "vision"}}
    (volume,) = trainer["pvcMount"]
    assert (volume["constant"], volume["mountPath"]) == ("data", "/data")
    (secret,) = trainer["secretAsEnv"]
    assert (secret["secretName"], secret["keyToEnv"]) == ("store", [{"secretKey": "key", "envVar": "STORE_KEY"}])


def test_a_path_that_no_volume_holds_is_warned_of(config, monkeypatch, caplog):
    monkeypatch.setattr("pipeline.kubeflow.compile.compile_pipeline", lambda *_: "compiled")
    check_and_compile(config("deploy.path=gs://bucket/serving"), "kubeflow")
    assert not any("deploy.path" in message for message in caplog.messages)
    check_and_compile(config("deploy.path=/data/../home/serving"), "kubeflow")
    assert any("deploy.path: /home/serving is on none of kubeflow.volumes" in message for message in caplog.messages)


def test_the_configuration_that_a_run_leaves_gives_components_the_same_settings(config, tmp_path):
    written = config(
        "kubeflow.resources={default: {memory: 64Gi}, Trainer: {cpu: 8}, Pusher: {gpu: null}}", "kubeflow.gpu.count=2"
    )
    (tmp_path / "config.yaml").write_text(to_yaml(written.model_dump(mode="json")))
    again = read_config(tmp_path / "config.yaml")
    for component in ("Trainer", "Pusher", "Evaluator"):
        settings = find_settings(written.kubeflow, component)
        assert settings == find_settings(again.kubeflow, component)
        assert settings.memory == "64Gi"


def test_the_trainer_alone_can_go_to_other_nodes_and_each_task_be_tried_again(config):
    trainer = "{memory: 32Gi, node_selector: {pool: gpu}, tolerations: [{key: gpu}], retries: 1}"
    resources = f"kubeflow.resources={{default: {{cpu: 1, retries: 0}}, Pusher: {{retries: 3}}, Trainer: {trainer}}}"
    settings = config(resources, "kubeflow.node_selector={}", "kubeflow.tolerations=[]", "kubeflow.pull_secrets=[r]")
    spec, platform = yaml.safe_load_all(check_and_compile(settings, "kubeflow"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    chosen = executors.pop("exec-trainer")
    assert (chosen["nodeSelector"], chosen["tolerations"]) == ({"labels": {"pool": "gpu"}}, [TOLERATION])
    assert len(executors) == 15
    assert not any("nodeSelector" in other or "tolerations" in other for other in executors.values())
    assert all(executor["imagePullSecret"] == [{"secretName": "r"}] for executor in (chosen, *executors.values()))
    resources = containers(spec)["exec-trainer"]["resources"]
    assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == ("1", "32Gi")  # of default, of its own
    tasks = spec["root"]["dag"]["tasks"]
    retries = {name: task["retryPolicy"]["maxRetryCount"] for name, task in tasks.items() if task.get("retryPolicy")}
    assert retries == {"trainer": 1, "pusher": 3}


def test_what_asks_others_is_tried_again_and_a_refusal_of_the_data_is_not(documents):
    tasks = documents[0]["root"]["dag"]["tasks"]
    assert {name for name, task in tasks.items() if task.get("retryPolicy")} == {
        *("data-lookup", "target-lookup", "champion", "pusher")
    }


def test_names_of_claims_and_secrets_are_where_kubeflow_2_3_looks_for_them_and_it_refuses_what_it_does_not_know(
    documents,
):
    for executor in documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        assert executor["pvcMount"] == [{"constant": "data", "mountPath": "/data"}]
        assert [secret.keys() for secret in executor["secretAsEnv"]] == [{"secretName", "keyToEnv"}]


def test_vertex_ai_has_the_driver_of_example_gen_and_no_kubernetes(config):
    text = check_and_compile(config(*VERTEX, "kubeflow.gpu.type=NVIDIA_TESLA_T4"), "vertex")
    (spec,) = yaml.safe_load_all(text)
    assert spec["defaultPipelineRoot"] == "gs://bucket/runs"
    assert "preCacheCheck" in containers(spec)["exec-import-example-gen"]["lifecycle"]
    assert containers(spec)["exec-trainer"]["resources"]["accelerator"]["type"] == "NVIDIA_TESLA_T4"


def test_numbers_get_names_on_a_cluster_too(config, tmp_path):
    (tmp_path / "names.txt").write_text("daisy\nrose\n")
    spec = next(
        yaml.safe_load_all(check_and_compile(config(f"data.features.label_map={tmp_path}/names.txt"), "kubeflow"))
    )
    assert "components.example_gen.executor.Executor" in containers(spec)["exec-import-example-gen"]["args"]
    parameters = spec["root"]["dag"]["tasks"]["import-example-gen"]["inputs"]["parameters"]
    assert "rose" in json.dumps(parameters["custom_config"])


def test_beams_runner_and_options_go_to_every_component(config):
    beam = "beam={runner: portable, options: {job_endpoint: 'jobs:8099', experiments: [a, b]}}"
    spec = next(yaml.safe_load_all(check_and_compile(config(beam, VERTEX[0]), "kubeflow")))
    wanted = {f"--runner={SERVER_RUNNER}", "--job_endpoint=jobs:8099", "--experiments=a", "--experiments=b"}
    on_beam = {"import-example-gen", "statistics-gen", "transform", "evaluator"}
    assert {name for name, c in containers(spec).items() if wanted <= set(c["args"])} >= {f"exec-{n}" for n in on_beam}


@pytest.fixture(scope="module")
def monitor(config) -> list[dict]:
    """The pipeline that monitors."""
    changes = ("monitoring.capture=s3://bucket/traffic", "monitoring.since=2d")
    return list(yaml.safe_load_all(check_and_compile(config(*changes), "kubeflow", monitor=True)))


def test_the_pipeline_that_monitors_is_of_its_own_never_cached_and_shows_its_page(monitor):
    spec, platform = monitor
    assert spec["pipelineInfo"]["name"] == "digits-monitor"
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == {"serving-monitor", "monitor-gate"}
    assert not any(task.get("cachingOptions", {}).get("enableCache") for task in tasks.values())
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert {name: p["defaultValue"] for name, p in parameters.items()} == {
        "capture": "s3://bucket/traffic",
        "since": "2d",
        "feedback": "",
        "max_divergence": 0.02,
        "max_share": 0.05,
    }
    outputs = spec["components"]["comp-serving-monitor"]["outputDefinitions"]["artifacts"]
    types = {key: output["artifactType"].get("schemaTitle") for key, output in outputs.items()}
    assert types == {"page": "system.HTML", "metrics": "system.Metrics", "figures": None}
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == {"exec-serving-monitor", "exec-monitor-gate"}  # with volumes and secrets


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ("null", r"monitoring\.capture: has to be given"),
        ("minio://bucket/traffic", r"monitoring\.capture: .* components read no minio://"),
    ],
)
def test_the_pipeline_that_monitors_needs_traffic_that_components_can_read(config, capture, message):
    with pytest.raises(ConfigError, match=message):
        check_and_compile(config(f"monitoring.capture={capture}"), "kubeflow", monitor=True)


@pytest.mark.parametrize("pipeline", ["documents", "monitor"])
def test_each_task_takes_what_its_component_declares(pipeline, request):
    spec = pipeline_spec_pb2.PipelineSpec()
    json_format.ParseDict(request.getfixturevalue(pipeline)[0], spec)
    for task in spec.root.dag.tasks.values():
        component = spec.components[task.component_ref.name]
        assert set(task.inputs.artifacts) == set(component.input_definitions.artifacts)
        assert set(task.inputs.parameters) == set(component.input_definitions.parameters)
        assert component.executor_label in spec.deployment_spec["executors"]
        for artifact in task.inputs.artifacts.values():
            producer = spec.root.dag.tasks[artifact.task_output_artifact.producer_task]
            produced = spec.components[producer.component_ref.name].output_definitions.artifacts
            assert artifact.task_output_artifact.output_artifact_key in produced
        for parameter in task.inputs.parameters.values():
            if parameter.HasField("task_output_parameter"):
                producer = spec.root.dag.tasks[parameter.task_output_parameter.producer_task]
                produced = spec.components[producer.component_ref.name].output_definitions.parameters
                assert parameter.task_output_parameter.output_parameter_key in produced


@pytest.mark.parametrize(
    ("override", "cluster", "message"),
    [
        ("kubeflow.image=null", "kubeflow", r"kubeflow\.image: has to be given"),
        ("deploy.path=null", "kubeflow", r"deploy\.path: has to be given"),
        ("data.curated_schema=s3://bucket/x", "kubeflow", r"data\.curated_schema: .* components read no s3://"),
        ("deploy.path=minio://bucket/serving", "kubeflow", r"deploy\.path: .* components read no minio://"),
        ("kubeflow.pipeline_root=gs://bucket/runs", "vertex", r"data\.path: .* it has to be in Cloud Storage"),
        ("deploy.sign=gs://bucket/key.pem", "kubeflow", r"deploy\.sign: .* from a volume only"),
        (
            "kubeflow.resources.Trainor={cpu: 1}",
            "kubeflow",
            "no component Trainor; known are default, ImportExampleGen",
        ),
        ("name=my_digits", "kubeflow", "no underscores"),
        ("name=digits", "vertex", r"kubeflow\.pipeline_root: has to be given for Vertex AI"),
    ],
)
def test_what_can_not_run_there_is_refused_by_key(config, override, cluster, message):
    with pytest.raises(ConfigError, match=message):
        check_and_compile(config(override), cluster)


PORTABLE = "beam={runner: portable, options: {job_endpoint: 'jobs:8099'}}"
DATAFLOW = "beam={runner: dataflow, options: {project: p, region: r, temp_location: gs://b/t, sdk_container_image: i}}"


@pytest.mark.parametrize(
    ("beam", "root", "data", "message"),
    [
        (PORTABLE, None, "/data/set", r"beam\.runner: portable: .* Give kubeflow\.pipeline_root"),
        (PORTABLE, "gs://b/runs", "s3://b/set", r"data\.path: s3://b/set: .* in gs://, or on a volume that they mount"),
        (DATAFLOW, "gs://b/runs", "s3://b/set", r"data\.path: s3://b/set: .* in gs://$"),
        (DATAFLOW, "gs://b/runs", "/data/set", r"data\.path: /data/set: .* in gs://$"),
    ],
)
def test_what_beams_workers_can_not_open_is_refused_by_key(config, beam, root, data, message):
    changes = (beam, f"kubeflow.pipeline_root={root or 'null'}", f"data.path={data}")
    with pytest.raises(ConfigError, match=message):
        check_and_compile(config(*changes), "kubeflow")


def test_the_pipeline_that_monitors_has_no_work_for_beam_and_runs_whatever_its_workers_reach(config):
    changes = (DATAFLOW, "monitoring.capture=s3://b/traffic")
    spec = next(yaml.safe_load_all(check_and_compile(config(*changes), "kubeflow", monitor=True)))
    assert not any("--runner" in argument for c in containers(spec).values() for argument in c["args"])


def test_it_is_said_that_runs_there_are_not_recorded_in_mlflow(config, monkeypatch, caplog):
    monkeypatch.setattr("pipeline.kubeflow.compile.compile_pipeline", lambda *_: "compiled")
    message = "tracking.mlflow: only runs on this machine are recorded there; those of a cluster are not"
    check_and_compile(config(), "kubeflow")
    assert message not in caplog.messages
    check_and_compile(config("tracking.mlflow=http://mlflow"), "kubeflow")
    assert message in caplog.messages
