import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from trainer.augmentation import make_augmentation
from trainer.config import AugmentationConfig, TrainerConfig
from trainer.pictures import draw_preview

OFF = AugmentationConfig(horizontal_flip=False, rotation=0, zoom=0, shift=0, brightness=0, contrast=0)
EVERYTHING = AugmentationConfig(vertical_flip=True, blur_sigma=1, rand_augment=0.7, mixup=0.4, cutmix=1)
N, HEIGHT, WIDTH = 40, 20, 24


def only(**options: float) -> AugmentationConfig:
    return OFF.model_copy(update=options)


def apply(config: AugmentationConfig, images: np.ndarray, target: np.ndarray | None = None, seed=(1, 2)):
    target = np.eye(len(images), dtype=np.float32) if target is None else target
    changed, targets = make_augmentation(config)(tf.constant(images), tf.constant(target), tf.constant(seed))
    return changed.numpy(), targets.numpy()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (N, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def scenes():
    """Smooth images, as photographs are, all different."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 6
    phases = np.linspace(0, 6, N * 3).reshape(N, 1, 1, 3)
    return (128 + 80 * np.sin(x[..., None] + phases) * np.cos(y[..., None] - phases)).astype(np.uint8)


def test_with_nothing_on_images_and_targets_are_those_that_came(images):
    assert not OFF.is_on
    assert AugmentationConfig().is_on
    changed, targets = apply(OFF, images)
    assert np.array_equal(changed, images)
    assert np.array_equal(targets, np.eye(N))


def test_the_same_seed_gives_the_same_images_whatever_the_parallelism_and_another_seed_others(images):
    target = np.eye(N, dtype=np.float32)

    def epoch(parallel_calls: int, first: int) -> list[np.ndarray]:
        augment = make_augmentation(EVERYTHING)
        dataset = tf.data.Dataset.from_tensor_slices((images, target)).batch(16).enumerate()
        dataset = dataset.map(
            lambda number, batch: augment(*batch, tf.stack([first, tf.cast(number, tf.int32)])),
            num_parallel_calls=parallel_calls,
            deterministic=True,
        )
        return [np.concatenate(parts) for parts in zip(*dataset.as_numpy_iterator(), strict=True)]

    once, again, other = epoch(1, 7), epoch(4, 7), epoch(4, 8)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not np.array_equal(once[0], other[0])
    assert not np.array_equal(once[1], other[1])


@pytest.mark.parametrize("config", [AugmentationConfig(), EVERYTHING], ids=["default", "everything"])
def test_shapes_and_types_stay_and_no_image_is_left_as_it_was(images, config):
    changed, targets = apply(config, images)
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    assert (targets.shape, targets.dtype) == ((N, N), np.float32)
    assert not any(np.array_equal(a, b) for a, b in zip(changed, images, strict=True))


@pytest.mark.parametrize(("option", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
def test_a_flip_mirrors_about_half_of_the_images_exactly(images, option, axis):
    changed, _ = apply(only(**{option: True}), images)
    same = [np.array_equal(a, b) for a, b in zip(changed, images, strict=True)]
    mirrored = [np.array_equal(a, np.flip(b, axis)) for a, b in zip(changed, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert N / 4 < sum(mirrored) < 3 * N / 4


def test_rotation_is_about_the_centre_by_any_angle_up_to_the_one_given():
    images = np.zeros((N, 41, 41, 3), np.uint8)
    images[:, 19:22, 20:35] = 255  # a bar from the centre to the right
    changed, _ = apply(only(rotation=90), images)
    y, x = np.mgrid[:41, :41] - 20
    light = changed[..., 0] * (np.hypot(x, y) < 20)  # in the corners there may be a mirror image of the bar
    light = light / light.sum(axis=(1, 2), keepdims=True)
    tip = np.stack([(light * x).sum(axis=(1, 2)), (light * y).sum(axis=(1, 2))])
    assert np.hypot(*tip) == pytest.approx(7, abs=0.2)  # the bar's middle stays as far from the centre
    angles = np.degrees(np.arctan2(tip[1], tip[0]))
    assert np.abs(angles).max() < 91
    assert angles.min() < -45 < 45 < angles.max()


def test_zoom_makes_things_larger_and_smaller_within_its_bounds():
    images = np.zeros((N, 41, 41, 3), np.uint8)
    images[:, 10:31, 10:31] = 255
    changed, _ = apply(only(zoom=0.3), images)
    side = np.sqrt((changed[..., 0] / 255).sum(axis=(1, 2))) / 21
    assert 0.65 < side.min() < 0.85
    assert 1.15 < side.max() < 1.35


def test_a_shift_moves_things_up_to_its_share_and_no_black_border_comes_in():
    images = np.full((N, 40, 40, 3), 200, np.uint8)
    images[:, 20, 20] = 0
    changed, _ = apply(only(shift=0.25), images)
    dark = (200 - changed[..., 0].astype(float)) / 200
    y, x = np.mgrid[:40, :40] - 20
    for moved in ((dark * x).sum(axis=(1, 2)), (dark * y).sum(axis=(1, 2))):
        assert 7 < np.abs(moved).max() < 10.1
    assert changed[:, (0, -1)].min() == changed[:, :, (0, -1)].min() == 200


def test_brightness_moves_the_mean_each_way_by_no_more_than_its_share():
    changed, _ = apply(only(brightness=0.2), np.full((N, 8, 8, 3), 128, np.uint8))
    moved = changed.mean(axis=(1, 2, 3)) - 128
    assert -51.5 < moved.min() < -25
    assert 25 < moved.max() < 51.5


def test_contrast_stretches_levels_about_a_mean_that_stays(scenes):
    changed, _ = apply(only(contrast=0.4), scenes)
    ratio = changed.std(axis=(1, 2, 3)) / scenes.std(axis=(1, 2, 3))
    assert 0.59 < ratio.min() < 0.8
    assert 1.2 < ratio.max() < 1.41
    assert changed.mean(axis=(1, 2, 3)) == pytest.approx(scenes.mean(axis=(1, 2, 3)), abs=0.6)


def test_blur_smooths_each_image_by_its_own_sigma_and_keeps_its_mean():
    images = np.zeros((N, 33, 33, 3), np.uint8)
    images[:, :, 16] = 255  # a line: across it the result is the kernel
    changed, _ = apply(only(blur_sigma=2), images)
    kernel = changed[:, 16, :, 0] / 255
    assert kernel.sum(axis=1) == pytest.approx(1, abs=0.03)
    sigma = np.sqrt((kernel * (np.arange(33) - 16) ** 2).sum(axis=1))
    assert sigma.min() < 0.5
    assert 1.5 < sigma.max() < 2.1


def test_a_blur_too_small_to_see_leaves_the_pixels(images):
    assert np.array_equal(apply(only(blur_sigma=0.01), images)[0], images)


def test_rand_augment_changes_images_in_different_ways_and_more_with_its_magnitude(scenes):
    def distance(magnitude: float) -> np.ndarray:
        changed, targets = apply(only(rand_augment=magnitude), scenes)
        assert np.array_equal(targets, np.eye(N))
        return np.abs(changed.astype(float) - scenes).mean(axis=(1, 2, 3))

    weak, strong = distance(0.1), distance(0.9)
    assert weak.mean() < strong.mean()
    assert len(np.unique(strong.round(3))) > N / 2


def test_rand_augments_operations_are_those_of_pillow(scenes):
    from PIL import Image, ImageEnhance, ImageOps

    from trainer import augmentation

    with_pillow = {
        "_stretch_levels": ImageOps.autocontrast,
        "_solarize": lambda image: ImageOps.solarize(image, 128),
        "_posterize": lambda image: ImageOps.posterize(image, 8 - 2),
    }
    ours = {name: getattr(augmentation, name) for name in with_pillow}
    enhancers = ("Color", "Contrast", "Brightness", "Sharpness")
    for name, enhance in zip(enhancers, augmentation._RECOLOURING[-len(enhancers) :], strict=True):
        ours[name] = enhance
        with_pillow[name] = lambda image, name=name: getattr(ImageEnhance, name)(image).enhance(1.45)
    for name, function in ours.items():
        mine = function(tf.constant(scenes, tf.float32), tf.fill([N, 1, 1, 1], 0.5)).numpy()
        for image, result in zip(scenes[:4], mine, strict=False):
            expected = np.asarray(with_pillow[name](Image.fromarray(image)), float)
            inner = (slice(1, -1), slice(1, -1))  # Pillow doesn't smooth the outermost pixels
            assert np.abs(result - expected)[inner].max() <= 2, name


def test_equalizing_uses_all_levels_equally_in_each_image_by_itself():
    from trainer.augmentation import _equalize

    levels = np.random.default_rng(0).integers(50, 90, (3, 64, 64, 3)).astype(np.float32)
    levels[1] += 100
    levels[2] = 77
    equal = _equalize(tf.constant(levels), tf.zeros([3, 1, 1, 1])).numpy()
    assert np.histogram(equal[0], 4, (0, 256))[0] == pytest.approx(64 * 64 * 3 / 4, rel=0.1)
    assert np.abs(equal[0].mean() - equal[1].mean()) < 3


def test_mixup_blends_pixels_and_targets_in_one_share():
    images = np.zeros((N, 8, 8, 3), np.uint8)
    images[: N // 2] = 250  # each image's partner comes from the other half
    target = np.eye(2, dtype=np.float32)[[0] * (N // 2) + [1] * (N // 2)]
    changed, targets = apply(only(mixup=0.4), images, target)
    assert targets.sum(axis=1) == pytest.approx(1)
    assert changed.reshape(N, -1) == pytest.approx(np.repeat(250 * targets[:, :1], 192, axis=1), abs=0.51)
    assert len(np.unique(targets[:, 0])) > N / 2


@pytest.mark.parametrize("alpha", [0.02, 0.2, 5])
def test_the_shares_of_mixup_are_spread_as_the_beta_distribution(alpha):
    target = np.zeros((4000, 1), np.float32)
    target[2000:] = 1
    _, targets = apply(only(mixup=alpha), np.zeros((4000, 1, 1, 3), np.uint8), target)
    share = np.abs(targets - target)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cutmix_pastes_a_box_and_the_targets_share_is_its_area():
    images = np.zeros((N, 20, 30, 3), np.uint8)
    images[: N // 2] = 250
    target = np.eye(2, dtype=np.float32)[[0] * (N // 2) + [1] * (N // 2)]
    changed, targets = apply(only(cutmix=1), images, target)
    assert targets.sum(axis=1) == pytest.approx(1)
    pasted = (changed != images).any(axis=-1)
    assert np.where(target.argmax(axis=1), targets[:, 0], targets[:, 1]) == pytest.approx(pasted.mean(axis=(1, 2)))
    for mask in pasted:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        assert np.array_equal(mask, rows[:, None] & columns)
        assert np.abs(np.diff(rows.astype(int))).sum() <= 2  # in one piece
    assert 0.1 < pasted.mean() < 0.5


def test_mixup_and_cutmix_take_turns():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[:2] = 250
    blended = set()
    for number in range(12):
        changed, targets = apply(only(mixup=5, cutmix=1), images, np.ones((4, 1), np.float32), (0, number))
        assert targets == pytest.approx(1)
        blended.add(bool(((changed > 0) & (changed < 250)).any()))
    assert blended == {True, False}


@pytest.mark.parametrize(
    "options",
    [{"rotation": 91}, {"zoom": 1}, {"shift": -0.1}, {"contrast": 2}, {"blur_sigma": -1}, {"mixup": -1}, {"hue": 0.1}],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_bounds_and_unknown_ones_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        TrainerConfig(augmentation=options)


def test_the_preview_is_a_picture_of_every_image(images, tmp_path):
    augmented = np.stack([apply(AugmentationConfig(), images[:3], seed=(0, i))[0] for i in range(2)], axis=1)
    draw_preview(images[:3], augmented, tmp_path / "augmentation.png")
    assert (tmp_path / "augmentation.png").read_bytes().startswith(b"\x89PNG")
