"""Exports: which forms there are, and what is said of each."""

import importlib.util
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import export
from pipeline.cli import app


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        (["onnx", "float16"], "x.onnx", "ONNX Runtime computes in float32 on CPUs"),
        (["saved_model", "int8"], "x", "serving.precision is what decides"),
        (["openvino", "int8"], "x.onnx", "a file of openvino ends in .xml"),
        (["tflite", "int8"], "nowhere/x.tflite", "there is no folder"),
        (["saved_model"], "", "exists; a SavedModel is a folder that is written new"),
    ],
)
def test_a_form_or_place_that_makes_no_sense_is_refused_before_anything_is_loaded(tmp_path, options, out, message):
    kind, *precision = options
    arguments = ["--format", kind, "--out", str(tmp_path / out), *(["--precision", *precision] if precision else [])]
    result = CliRunner().invoke(app, ["export", str(tmp_path / "model"), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", "onnx"), ("openvino", "xml")])
def test_without_its_extra_a_format_is_refused_with_what_to_install(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = str(tmp_path / f"x.{suffix}")
    result = CliRunner().invoke(app, ["export", str(tmp_path), "--format", kind, "--out", out])
    assert result.exit_code == 2
    assert f"pip install 'imagepipe-tfx[{kind}]'" in result.stderr


def test_the_figures_are_those_of_the_answers():
    expected = np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.2, 0.8]], np.float32)
    actual = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.2, 0.8]], np.float32)
    targets = np.array([0, 1, 0, 0])
    batches = [(actual[rows], expected[rows], targets[rows]) for rows in (slice(0, 3), slice(3, 4))]
    figures = export._compare(lambda pixels: pixels, iter(batches), "classification")
    assert figures["images"] == 4
    assert (figures["same_label"], figures["accuracy"], figures["accuracy_of_the_model"]) == (3, 0.5, 0.75)
    assert figures["largest_difference"] == pytest.approx(0.3)
    assert figures["mean_difference"] == pytest.approx(0.6 / 8)
    assert figures["same_label_interval"] == pytest.approx(
        [0.1941, 0.9937], abs=1e-4
    )  # Clopper and Pearson's, of 3 in 4
    assert set(export._compare(lambda pixels: pixels, iter(batches), "regression")) == {
        "images",
        "largest_difference",
        "mean_difference",
    }
    json.dumps(figures)
