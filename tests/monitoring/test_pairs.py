"""`imagepipe compare`: two versions on the same captured images, figures by hand."""

import csv
import json
import math
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest
from scipy import stats
from typer.testing import CliRunner

from imagepipe.base.errors import ModelError
from imagepipe.capture.files import list_parts, write_rows
from imagepipe.deploy.deployment import Version
from imagepipe.monitoring.pairs import compare_versions, find_shadow
from imagepipe.monitoring.traffic import read_traffic
from pipeline.cli import app

NOW = datetime.now(UTC)


def make_row(image, version, label, score=0.5, seconds=0, **values):
    times = {"time": NOW + timedelta(seconds=seconds), "milliseconds": 10.0 if version == "1" else 20.0}
    ids = {"sha256": f"hash-{image}", "metadata": f"id-{image}".encode()}
    return times | ids | {"version": version, "label": label, "score": score} | values


def write_truth(path, truths, key="metadata"):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([(key, "label"), *truths])
    return str(path)


@pytest.fixture
def capture(tmp_path):
    """100 images of cats: version 1 is right of 80, version 2 of the same and of 15 more; each has one of its own."""
    first = [make_row(n, "1", "cat" if n < 80 else "dog") for n in range(101)]
    second = [make_row(n, "2", "cat" if n < 95 else "dog", 0.75) for n in [*range(100), 200]]
    write_rows(str(tmp_path / "traffic"), [*first, *second], "a")
    return str(tmp_path / "traffic")


def test_where_truth_is_known_the_better_version_is_named_by_a_paired_test(capture, tmp_path):
    truth = write_truth(tmp_path / "truth.csv", [(f"id-{n}", "cat") for n in range(100)])
    pairs = compare_versions(capture, ("1", "2"), "classification", truth)
    assert (pairs.images, pairs.alone, pairs.same, pairs.milliseconds) == (100, (1, 1), 85, (10.0, 20.0))
    assert pairs.mean_difference == pytest.approx(0.25)
    judged = pairs.judgement
    assert (judged.images, judged.values, judged.difference) == (100, (0.8, 0.95), pytest.approx(0.15))
    assert judged.p == pytest.approx(2 * 0.5**15)  # McNemar's, exact: 15 of 15 changes go one way
    up, down = 16 / 102, 1 / 102  # Bonett and Price
    half = stats.norm.ppf(0.975) * math.sqrt((up + down - (up - down) ** 2) / 102)
    assert judged.interval == pytest.approx((up - down - half, up - down + half))
    shown = CliRunner().invoke(app, ["compare", capture, "1", "2", "--feedback", truth]).stdout
    assert "share of right answers over 100 images: 1 0.8000, 2 0.9500" in shown
    assert "version 2 is better: the difference is +0.1500" in shown
    turned = CliRunner().invoke(app, ["compare", capture, "2", "1", "--feedback", truth]).stdout
    assert "version 2 is better: the difference is -0.1500" in turned


def test_where_it_is_not_known_agreement_and_time_are_said_and_no_verdict(capture):
    result = CliRunner().invoke(app, ["compare", capture, "1", "2"])
    assert result.exit_code == 0
    assert "the same answer: 0.8500 (0.7672 to 0.9069)" in result.stdout  # Wilson's interval of 85 in 100
    assert "mean time of an answer: 1 10.0 ms, 2 20.0 ms" in result.stdout
    assert "which is better: not known" in result.stdout
    figures = json.loads(CliRunner().invoke(app, ["compare", capture, "1", "2", "--json"]).stdout)
    assert (figures["same"], figures["judgement"]) == (85, None)


def test_few_images_show_no_difference(capture, tmp_path):
    truth = write_truth(tmp_path / "truth.csv", [(f"id-{n}", "cat") for n in range(78, 83)])  # three of them changed
    assert compare_versions(capture, ("1", "2"), "classification", truth).judgement.p == 0.25
    shown = CliRunner().invoke(app, ["compare", capture, "1", "2", "--feedback", truth]).stdout
    assert "no difference could be shown: the difference is +0.6000" in shown


def test_the_last_answer_counts_and_a_request_with_several_images_says_nothing_of_one(tmp_path):
    folder = str(tmp_path / "traffic")
    rows = [
        make_row(0, "1", "dog", request_id="a"),
        make_row(0, "1", "cat", seconds=5, request_id="a"),
        make_row(1, "1", "cat", request_id="b"),
        make_row(2, "1", "cat", request_id="b"),
        *(make_row(n, "2", "cat") for n in range(3)),
    ]
    write_rows(folder, rows, "a")
    truth = write_truth(tmp_path / "truth.csv", [("a", "cat"), ("b", "cat")], "request_id")
    pairs = compare_versions(folder, ("1", "2"), "classification", truth)
    assert (pairs.images, pairs.same, pairs.judgement.images) == (3, 3, 1)


def test_an_image_is_judged_if_one_of_its_ids_has_a_true_label_and_no_other_image(tmp_path):
    folder = str(tmp_path / "traffic")
    rows = [
        *(make_row(0, "1", "cat", seconds=n, metadata=name) for n, name in enumerate([b"known", b"other"])),
        make_row(0, "2", "cat", metadata=b"third"),
        make_row(1, "1", "cat", metadata=b"photo.jpg"),
        make_row(1, "2", "cat", metadata=b"unknown"),
        make_row(2, "2", "cat", metadata=b"photo.jpg"),
    ]
    write_rows(folder, rows, "a")
    truth = write_truth(tmp_path / "truth.csv", [("known", "cat"), ("photo.jpg", "dog")])
    judged = compare_versions(folder, ("1", "2"), "classification", truth).judgement
    assert (judged.images, judged.values) == (1, (1, 1))


def test_a_regression_is_judged_by_its_errors(tmp_path):
    folder = str(tmp_path / "traffic")
    first = [make_row(n, "1", "", n + 1.0) for n in range(20)]
    second = [make_row(n, "2", "", n + 0.1 * (n % 3)) for n in range(20)]
    write_rows(folder, [*first, *second], "a")
    truth = write_truth(tmp_path / "truth.csv", [(f"id-{n}", n) for n in range(20)])
    pairs = compare_versions(folder, ("1", "2"), "regression", truth)
    assert pairs.same is None
    assert pairs.judgement.values == pytest.approx((1.0, 0.095), abs=1e-5)
    assert pairs.judgement.p < 1e-6
    shown = CliRunner().invoke(app, ["compare", folder, "1", "2", "--feedback", truth, "--task", "regression"]).stdout
    assert "mean absolute error over 20 images" in shown
    assert "version 2 is better" in shown


def test_a_regression_that_is_worse_by_the_same_everywhere_is_worse(tmp_path):
    folder = str(tmp_path / "traffic")
    changes = {"1": 0.0, "2": 5.0, "3": 5.0}
    write_rows(folder, [make_row(n, name, "", n + by) for name, by in changes.items() for n in range(9)], "a")
    truth = write_truth(tmp_path / "truth.csv", [(f"id-{n}", n) for n in range(9)])
    judgement = compare_versions(folder, ("1", "2"), "regression", truth).judgement
    assert (judgement.difference, judgement.p) == (5, 0)
    same = compare_versions(folder, ("2", "3"), "regression", truth).judgement
    assert (same.difference, same.p) == (0, 1)


def test_versions_without_a_common_image_are_refused_with_what_gives_one(capture):
    with pytest.raises(ModelError, match=r"1 \(101 images\) and 3 \(0 images\).*no image in common.*batch-predict"):
        compare_versions(capture, ("1", "3"), "classification")


def test_a_shadow_is_compared_with_the_live_version_on_the_images_of_both(tmp_path):
    folder = str(tmp_path / "traffic")
    live = [make_row(n, "1", "cat", request_id=f"r{n}") for n in range(10)]
    shadow = [
        make_row(n, "2", "cat" if n < 9 else "dog", seconds=1, request_id=f"r{n}", shadow=True) for n in range(10)
    ]
    write_rows(folder, [*live, *shadow], "a")
    assert find_shadow(folder) == ("1", "2")
    shown = CliRunner().invoke(app, ["compare", folder]).stdout
    assert "10 images that both were asked about" in shown
    assert "the same answer: 0.9000" in shown
    assert "2 answered 10 images in shadow: its time is that of the lowest priority" in shown
    assert [str(part) for part in read_traffic(folder)] == [f"{NOW:%Y-%m-%d}, version 1"]  # what callers got


def test_without_a_shadow_two_versions_have_to_be_named(capture):
    with pytest.raises(ModelError, match=r"no version answered there in the shadow.*Give the two versions"):
        find_shadow(capture)
    assert CliRunner().invoke(app, ["compare", capture, "1"]).exit_code == 2


def test_captures_of_servers_without_shadows_can_be_read(capture):
    for part in list_parts(capture):
        pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["shadow"]), part)
    assert compare_versions(capture, ("1", "2"), "classification").in_shadow == (0, 0)


class Target:
    """A target that splits requests: version 2, the newest, is a canary."""

    def __init__(self, *traffic, in_shadow=False):
        shares = zip((2, 1), traffic, strict=True)
        self.versions = [Version(str(n), f"/models/{n}", share, in_shadow=in_shadow and n == 2) for n, share in shares]
        self.done = []

    def status(self, config):
        return self.versions

    def deploy(self, uri, config, traffic):
        self.done.append((uri, traffic))
        return Version(uri[-1], uri, traffic)

    def rollback(self, config):
        self.done.append("rollback")
        return self.versions[1]


@pytest.fixture
def act(capture, tmp_path, monkeypatch):
    """Calls a command on a target; returns the exit status, what was printed, and what was done."""

    def call(target, command, images, label="cat", deploy="{target: kserve, path: /models}"):
        (tmp_path / "pipeline.yaml").write_text(f"name: cats\ndata: {{path: data}}\ndeploy: {deploy}\n")
        monkeypatch.setattr("pipeline.cli.deployments.load_deploy_target", lambda deployment: target)
        truth = write_truth(tmp_path / "truth.csv", [(f"id-{n}", label) for n in images])
        option = {"promote": "--if-better", "rollback": "--if-worse"}[command]
        config = ["--config", str(tmp_path / "pipeline.yaml")]
        result = CliRunner().invoke(app, [command, option, capture, "--feedback", truth, *config])
        return result.exit_code, result.output, target.done

    return call


def test_a_canary_is_promoted_if_it_is_better_and_else_left_alone(act):
    status, output, done = act(Target(10, 90), "promote", range(100))
    assert (status, done) == (0, [("/models/2", 100)])
    assert "version 2 is better: the difference is +0.1500" in output
    assert "Version 2 gets 100% of the requests: /models/2" in output
    status, output, done = act(Target(10, 90), "promote", range(78, 83))  # too few to tell
    assert (status, done) == (3, [])
    assert "no difference could be shown" in output
    assert "Version 2 still gets 10% of the requests" in output
    assert act(Target(10, 90), "promote", range(100), label="dog")[::2] == (3, [])  # it is worse
    status, output, done = act(Target(100, 0), "promote", range(100))
    assert (status, done) == (2, [])
    assert "no two versions to compare" in output


def test_a_version_in_shadow_is_promoted_if_it_is_better_and_never_rolled_back(act):
    assert act(Target(0, 100, in_shadow=True), "promote", range(100))[::2] == (0, [("/models/2", 100)])
    status, output, done = act(Target(0, 100, in_shadow=True), "promote", range(78, 83))
    assert (status, done) == (3, [])
    assert "Version 2 stays in shadow" in output
    assert act(Target(0, 100, in_shadow=True), "rollback", range(100), label="dog")[::2] == (2, [])


def test_a_version_is_rolled_back_if_it_is_worse_and_else_stays(act):
    status, output, done = act(Target(100, 0), "rollback", range(100), label="dog")
    assert (status, done) == (0, ["rollback"])
    assert "version 1 is better" in output
    assert "Version 1 is live" in output
    status, output, done = act(Target(100, 0), "rollback", range(100))
    assert (status, done) == (3, [])
    assert "Version 2 stays" in output


def test_what_one_image_cant_tell_is_null_in_json(tmp_path):
    folder = str(tmp_path / "traffic")
    write_rows(folder, [make_row(0, "1", "", 1.0), make_row(0, "2", "", 2.0)], "a")
    truth = write_truth(tmp_path / "truth.csv", [("id-0", 1)])
    arguments = ["compare", folder, "1", "2", "--feedback", truth, "--task", "regression", "--json"]
    judged = json.loads(CliRunner().invoke(app, arguments).stdout, parse_constant=pytest.fail)["judgement"]
    assert (judged["images"], judged["interval"]) == (1, [None, None])
