"""The DAG: from raw Examples to a pushed model. It reads top to bottom."""

import glob
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tfx import components as tfx
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import example_gen_pb2, trainer_pb2, transform_pb2

from components.champion.component import Champion
from components.data_check.component import DataCheck
from components.data_gate.component import DataGate
from components.evaluator.component import Evaluator
from components.example_gen.component import ImportExampleGen
from components.example_gen.executor import SPLIT_KEY
from components.feature_check.component import FeatureCheck
from components.features.component import Features
from components.model_report.component import ModelReport
from components.predictions.component import Predictions
from components.pusher.component import Pusher
from components.schema_gen.component import ImageSchemaGen
from components.serving_check.component import ServingCheck
from components.tfdv import tfdv
from components.trainer.component import Trainer, Tuner
from imagepipe.base.decisions import hash_given_labels
from imagepipe.deploy.config import DeployConfig
from pipeline.code_key import add_code_keys
from pipeline.config import MACHINE_SECTIONS, Config
from pipeline.demands import list_demands
from pipeline.eval_config import build_eval_config, list_slice_columns
from pipeline.source import SPLITS, Source
from trainer.config import EXPORT_SETTINGS, NO_WEIGHTS

NEVER_CACHED = ("Pusher",)
"""Nodes that have to run each time."""

# Columns that ingest adds and that are worth statistics, next to the label and the side features.
_IMAGE_COLUMNS = ("width", "height", "format", "aspect", "bytes", "brightness", "contrast")


def _keep_value(name: str, value: Any) -> Any:
    return value


def create_pipeline(
    config: Config,
    source: Source,
    pipeline_root: str,
    state_dir: str,
    deploy: DeployConfig,
    beam_args: list[str],
    enable_cache: bool = True,
    is_compiled: bool = False,
    metadata: Any = None,
    parameter: Callable[[str, Any], Any] = _keep_value,
) -> Pipeline:
    """Builds the pipeline.

    Args:
        config: the configuration.
        source: the TFRecords to read.
        pipeline_root: folder for artifacts.
        state_dir: local folder in which a killed training finds its state again.
        deploy: where blessed models go, with name and path.
        beam_args: Beam's runner and its options.
        enable_cache: whether unchanged results are taken from earlier runs.
        is_compiled: whether it will run in containers. Then their image stands for the code, in the cluster's own cache
            keys; else the code of this machine is in the keys.
        metadata: ``ConnectionConfig`` of ML Metadata, for runners that don't bring their own.
        parameter: turns a name and a value into a parameter of the runs: in a compiled pipeline a ``RuntimeParameter``
            with the value as its default.

    Returns:
        The pipeline, for any TFX runner.
    """
    features = config.data.features.make_features()

    # Reads the splits as they were ingested. Of TFRecords made elsewhere it names labels and converts images that the
    # Transform graph does not decode, and splits them if there is only one set.
    reading = {"input_base": parameter("data_path", source.base), **_make_split_config(config, source)}
    if source.is_foreign:
        names = {"input": features.input, "label": features.label, "metadata": features.metadata}
        names["group"] = config.data.features.group or ""
        example_gen = ImportExampleGen(names=names, label_names=source.label_names, **reading)
    else:
        example_gen = tfx.ImportExampleGen(**reading)

    # Statistics of everything but pixels: over encoded images they would cost much and say nothing.
    statistics_gen = tfx.StatisticsGen(
        examples=example_gen.outputs["examples"],
        stats_options=tfdv.StatsOptions(feature_allowlist=[features.label, *features.side, *_IMAGE_COLUMNS]),
    )

    # The schema that a person has curated, if there is one; else the one that follows from the statistics.
    if config.data.curated_schema:
        schema_gen = ImportSchemaGen(schema_file=config.data.curated_schema)
    else:
        schema_gen = ImageSchemaGen(
            statistics=statistics_gen.outputs["statistics"],
            image_feature=features.input,
            varying_feature=features.label if config.task == "multilabel" else "",
        )

    example_validator = tfx.ExampleValidator(
        statistics=statistics_gen.outputs["statistics"], schema=schema_gen.outputs["schema"]
    )

    # The same as text, and what a schema can't express: copies across splits, labels that are likely to be wrong, how
    # far the data has drifted since the live model was trained. What a person has decided on is not listed again.
    data_check = DataCheck(
        examples=example_gen.outputs["examples"],
        statistics=statistics_gen.outputs["statistics"],
        schema=schema_gen.outputs["schema"],
        anomalies=example_validator.outputs["anomalies"],
        task=config.task,
        features=json.dumps(asdict(features)),
        validation=config.data.validation.model_dump_json(),
        slices=json.dumps(list_slice_columns(config.evaluation, features)),
        demands=json.dumps(list_demands(config)),
        deploy=deploy.dump_for_readers(),
        dataset=parameter("data_path", source.base) if is_compiled else glob.escape(config.data.path),
        decisions_hash=None if is_compiled else hash_given_labels(config.data.path),
    )

    # Stops a run whose data can't be trained on. A node of its own, so that the findings can be looked at then.
    data_gate = DataGate(findings=data_check.outputs["findings"])

    # Decode, resize and vocabularies as a graph. Nothing is materialized: pixels never leave a process.
    common = {"task": config.task, "features": asdict(features), "image_size": list(config.image.size)}
    transform_component = tfx.Transform(
        examples=example_gen.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        preprocessing_fn="transform.preprocessing.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train"]),
        materialize=False,
        disable_statistics=True,
        custom_config=common,
    )
    transform_component.add_upstream_node(data_gate)

    # Where a training starts from pretrained weights: the images as these see them, and a second look at the data
    # through that, for wrong labels and copies that colours and hashes don't show.
    second_look: list[Any] = []
    findings = data_check.outputs["findings"]
    if config.trainer.weights != NO_WEIGHTS:
        image_features = Features(
            examples=example_gen.outputs["examples"],
            transform_graph=transform_component.outputs["transform_graph"],
            names=json.dumps(asdict(features)),
            trainer=json.dumps(config.trainer.model_dump(mode="json", include={"backbone", "weights"})),
            image_size=json.dumps(list(config.image.size)),
        )
        feature_check = FeatureCheck(
            examples=example_gen.outputs["examples"],
            features=image_features.outputs["features"],
            findings=findings,
            task=config.task,
            names=json.dumps(asdict(features)),
            validation=config.data.validation.model_dump_json(),
        )
        findings = feature_check.outputs["checked"]
        feature_gate = DataGate(findings=findings).with_id("FeatureGate")
        second_look = [image_features, feature_check, feature_gate]

    # Raw Examples through that graph into a network: what Tuner and Trainer have in common.
    training: dict[str, Any] = {
        "examples": example_gen.outputs["examples"],
        "transform_graph": transform_component.outputs["transform_graph"],
        "schema": schema_gen.outputs["schema"],
        "train_args": trainer_pb2.TrainArgs(splits=["train"]),
        "eval_args": trainer_pb2.EvalArgs(splits=["eval"]),
        "epochs": parameter("epochs", config.trainer.epochs),
        "batch_size": parameter("batch_size", config.trainer.batch_size),
    }
    training_config = common | {
        "trainer": config.trainer.model_dump(mode="json"),
        "state_dir": state_dir,
    }

    # If a space is given, the best settings in it; they override those of the configuration. A search takes hours: its
    # cache key has no settings that no trial depends on.
    tuner = config.tuner and Tuner(
        tuner_fn="trainer.tuner_fn.tuner_fn",
        custom_config=training_config
        | {
            "trainer": config.trainer.model_dump(mode="json", exclude=EXPORT_SETTINGS | {"refit", "epochs"}),
            "tuner": config.tuner.model_dump(mode="json"),
        },
        **training | {"epochs": config.tuner.epochs or training["epochs"]},
    )

    # The network, and the graph that will serve it, optimized for serving.
    trainer_component = Trainer(
        run_fn="trainer.run_fn.run_fn",
        statistics=statistics_gen.outputs["statistics"],
        hyperparameters=tuner and tuner.outputs["best_hyperparameters"],
        custom_config=training_config | {"serving": config.dump_export_settings()},
        **training,
    )

    if second_look:
        trainer_component.add_upstream_node(second_look[-1])  # its gate
    if second_look and tuner:
        tuner.add_upstream_node(second_look[-1])

    # The live model as the baseline; an empty model if there is none.
    champion = Champion(model=trainer_component.outputs["model"], deploy=deploy.dump_for_readers())

    # The predictions of both for each image, for the report and for comparisons; and, of the candidate's, what traffic
    # to it is compared with in service.
    predictions = Predictions(
        examples=example_gen.outputs["examples"],
        model=trainer_component.outputs["model"],
        champion=champion.outputs["champion"],
        features=json.dumps(asdict(features)),
    )

    # The gate: on the SavedModel that will serve, from raw bytes.
    evaluator = Evaluator(
        examples=example_gen.outputs["examples"],
        model=trainer_component.outputs["model"],
        baseline_model=champion.outputs["champion"],
        example_splits=["eval"],
        eval_config=build_eval_config(config.task, config.evaluation, features),
        thresholds={name: parameter(f"threshold_{name}", v) for name, v in config.evaluation.thresholds.items()},
    )

    # The other gate: a server in a fresh process gives the same answers, in every format, and fast enough.
    serving_check = ServingCheck(
        model=trainer_component.outputs["model"],
        examples=example_gen.outputs["examples"],
        features=json.dumps(asdict(features)),
        latency_budget_ms=config.serving.latency_budget_ms,
    )
    serving_check.add_upstream_node(evaluator)  # of a bad model, its verdict tells more

    # Only a model that passes both gates goes live. Never cached: the target is asked whether the model is still there.
    pusher = Pusher(
        deploy=deploy.model_dump(mode="json"),
        model=trainer_component.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=serving_check.outputs["blessing"],
        reference=predictions.outputs["reference"],
    )

    # All of this on a page, for the people who decide. After the push, so that a failing page blocks none.
    model_report = ModelReport(
        name=config.name,
        config=json.dumps(config.model_dump(mode="json", exclude={*MACHINE_SECTIONS})),
        features=json.dumps(asdict(features)),
        examples=example_gen.outputs["examples"],
        model=trainer_component.outputs["model"],
        evaluation=evaluator.outputs["evaluation"],
        serving_blessing=serving_check.outputs["blessing"],
        predictions=predictions.outputs["predictions"],
        findings=findings,
    )
    model_report.add_upstream_node(pusher)

    components = [
        example_gen,
        statistics_gen,
        schema_gen,
        example_validator,
        data_check,
        data_gate,
        transform_component,
        *second_look,
        *([tuner] if tuner else []),
        trainer_component,
        champion,
        predictions,
        evaluator,
        serving_check,
        pusher,
        model_report,
    ]
    if not is_compiled:
        add_code_keys(components, config.trainer.model_dump(), config.data.curated_schema)
    return Pipeline(
        pipeline_name=config.name,
        pipeline_root=pipeline_root,
        components=components,
        enable_cache=enable_cache,
        metadata_connection_config=metadata,
        beam_pipeline_args=beam_args,
    )


def _make_split_config(config: Config, source: Source) -> dict[str, Any]:
    if source.patterns:
        splits = [example_gen_pb2.Input.Split(name=name, pattern=source.patterns[name]) for name in source.patterns]
        return {"input_config": example_gen_pb2.Input(splits=splits)}
    buckets = [
        example_gen_pb2.SplitConfig.Split(name=name, hash_buckets=config.data.split[name])
        for name in SPLITS
        if name in config.data.split
    ]
    split_config = example_gen_pb2.SplitConfig(splits=buckets, partition_feature_name=SPLIT_KEY)
    return {
        "input_config": example_gen_pb2.Input(splits=[example_gen_pb2.Input.Split(name="all", pattern=source.all)]),
        "output_config": example_gen_pb2.Output(split_config=split_config),
    }
