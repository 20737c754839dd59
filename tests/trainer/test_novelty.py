"""Novelty of clusters of points that stand for embeddings."""

from contextlib import suppress

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from trainer.export.calibration import NO_CALIBRATION
from trainer.export.novelty import fit_novelty, load_novelty, save_novelty

CENTERS = np.eye(3, 20, dtype=np.float32) * 5


def draw(count: int, seed: int, centers: np.ndarray = CENTERS, noise: float = 0.3) -> dict[str, np.ndarray]:
    """Embeddings around centers, and logits that are high for the center that is near, as a network gives them."""
    rng = np.random.default_rng(seed)
    embedding = centers[rng.integers(0, len(centers), count)] + rng.normal(0, noise, (count, 20)).astype(np.float32)
    return {"embedding": embedding.astype(np.float32), "logits": (embedding @ CENTERS.T / 5).astype(np.float32)}


def ask(novelty, outputs: dict[str, np.ndarray]) -> np.ndarray:
    return novelty({name: tf.constant(array) for name, array in outputs.items()}).numpy()


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_it_is_the_share_of_images_not_trained_on_that_are_less_novel(task):
    novelty = fit_novelty(task, draw(300, 0)["embedding"], draw(1000, 1))
    usual = ask(novelty, draw(1000, 2))
    for share in (0.1, 0.5, 0.75, 0.9, 0.99):
        assert np.quantile(usual, share) == pytest.approx(share, abs=0.04)
    assert usual.dtype == np.float32
    other = ask(novelty, draw(200, 3, centers=np.roll(CENTERS, 10, axis=1)))
    assert other.min() > 0.99


def test_it_rises_on_beyond_all_images_that_were_seen():
    novelty = fit_novelty("regression", draw(300, 0)["embedding"], draw(50, 1))
    shares = np.linspace(0, 1, 9)[:, None]
    start = draw(1, 2, CENTERS[:1])["embedding"]
    away = {"embedding": ((1 - shares) * start + shares * np.eye(20)[15] * 5).astype(np.float32)}
    values = ask(novelty, away | {"logits": np.zeros((9, 1), np.float32)})
    assert (np.diff(values) >= 0).all()
    assert values[-1] > 0.999
    assert values.max() <= 1


def test_in_a_classification_it_sees_what_looks_known_and_is_none_of_the_classes():
    train, held_out = draw(300, 0), draw(200, 1)
    between = draw(100, 2)
    between["logits"] = np.zeros_like(between["logits"])  # its features are usual, and speak for no class
    by_both, by_distance = (
        fit_novelty(task, train["embedding"], held_out) for task in ("classification", "multilabel")
    )
    assert np.median(ask(by_both, between)) > 0.99
    assert np.median(ask(by_distance, between)) < 0.8


def test_features_that_are_large_in_all_images_do_not_decide_alone():
    def draw_with_large(count: int, seed: int, centers: np.ndarray = CENTERS) -> dict[str, np.ndarray]:
        large = np.random.default_rng(seed).normal(20, 4, (count, 10)).astype(np.float32)
        embedding = draw(count, seed, centers, noise=0.02)["embedding"]
        return {"embedding": np.hstack([large, embedding]), "logits": np.zeros((count, 1), np.float32)}

    novelty = fit_novelty("regression", draw_with_large(300, 0)["embedding"], draw_with_large(200, 1))
    assert np.median(ask(novelty, draw_with_large(100, 2))) < 0.7
    assert np.median(ask(novelty, draw_with_large(100, 3, centers=np.roll(CENTERS, 10, axis=1)))) > 0.99


def test_another_network_that_saw_all_images_is_scaled_by_the_one_that_did_not():
    train, held_out, usual = draw(300, 0), draw(1000, 1), draw(1000, 2)
    turn = np.roll(np.eye(20, dtype=np.float32), 7, axis=1)  # what a training from another start makes of the same

    def turned(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return outputs | {"embedding": outputs["embedding"] @ turn}

    novelty = fit_novelty("classification", turned(train)["embedding"], held_out, train["embedding"])
    assert np.quantile(ask(novelty, turned(usual)), 0.9) == pytest.approx(0.9, abs=0.04)
    assert np.quantile(ask(novelty, usual), 0.02) > 0.99


def test_what_lies_between_the_images_that_were_seen_is_novel_as_what_lies_outside_of_them_is():
    """After fine-tuning, images of something else lie within the directions of the known ones as well."""
    novelty = fit_novelty("regression", draw(300, 0)["embedding"], draw(300, 1))
    between = draw(100, 2, centers=CENTERS.mean(axis=0, keepdims=True))
    outside = draw(100, 3, centers=CENTERS + np.eye(20, dtype=np.float32)[10] * 5)
    assert np.median(ask(novelty, between)) > 0.95
    assert np.median(ask(novelty, outside)) > 0.99


def test_features_that_are_all_alike_give_no_division_by_zero():
    alike = {"embedding": np.zeros((20, 8), np.float32), "logits": np.zeros((20, 3), np.float32)}
    novelty = fit_novelty("classification", alike["embedding"], alike)
    assert np.isfinite(ask(novelty, alike)).all()


def test_of_long_embeddings_it_takes_16_mb_of_the_model_at_most():
    random = np.random.default_rng(0)
    references = random.random((300, 25_088), np.float32)
    held_out = {"embedding": references[:30] + np.float32(0.1), "logits": np.zeros((30, 2), np.float32)}
    novelty = tf.function(fit_novelty("classification", references, held_out))
    specs = {name: tf.TensorSpec([None, array.shape[1]]) for name, array in held_out.items()}
    assert 12e6 < novelty.get_concrete_function(specs).graph.as_graph_def().ByteSize() < 16.1e6
    assert np.isfinite(ask(novelty, held_out)).all()


def test_what_an_earlier_version_wrote_is_refused_in_words(tmp_path):
    file = tmp_path / "novelty.npz"
    save_novelty(fit_novelty("classification", draw(300, 0)["embedding"], draw(50, 1)), NO_CALIBRATION, file)
    load_novelty(file)
    with np.load(file) as arrays:
        np.savez(file, **{name: arrays[name] for name in arrays if name != "inside"})
    with pytest.raises(TrainingError, match=r"novelty\.npz lacks inside: an earlier version"):
        load_novelty(file)
    save_novelty(fit_novelty("classification", draw(300, 0)["embedding"], draw(50, 1)), NO_CALIBRATION, file)
    with np.load(file) as arrays:
        np.savez(file, **{name: arrays[name] for name in arrays if name != "offsets"})
    with pytest.raises(TrainingError, match=r"novelty\.npz lacks offsets: an earlier version"):
        load_novelty(file)


def test_any_bytes_that_are_damaged_are_refused_in_words(tmp_path):
    file = tmp_path / "novelty.npz"
    save_novelty(fit_novelty("regression", draw(5, 0)["embedding"], draw(5, 1)), NO_CALIBRATION, file)
    content = file.read_bytes()
    headers = len(content) - 2_000  # the directory at its end, whose fields raise errors of many kinds
    for position in range(headers, len(content)):
        file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with suppress(TrainingError):  # some bits mean nothing
            load_novelty(file)
    np.save(file.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(TrainingError, match=r"novelty\.npy can't be loaded"):
        load_novelty(file.with_suffix(".npy"))
