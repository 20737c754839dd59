"""The networks that can stand below the head: Keras applications, as data. Imports neither Keras nor TensorFlow."""

from dataclasses import dataclass

DEFAULT = "inception_v3"


@dataclass(frozen=True)
class Scaling:
    """What a network was trained on: ``scale`` times pixels (0 to 255) plus ``offset``, red, green, blue each.

    Attributes:
        scale: a factor a channel.
        offset: added then.
        bgr: whether the network takes blue, green, red.
    """

    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    bgr: bool = False


# The constants are those of keras.applications.imagenet_utils.preprocess_input, in its modes "tf", "torch" and "caffe".
_MINUS_1_TO_1 = Scaling((1 / 127.5,) * 3, (-1.0,) * 3)
_STANDARDIZED = Scaling(
    (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)), (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225)
)
_CENTERED_BGR = Scaling((1.0,) * 3, (-123.68, -116.779, -103.939), bgr=True)
_INSIDE = None


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Attributes:
        application: its name in ``keras.applications``.
        scaling: of its input; None if it scales inside, and then it takes ``include_preprocessing=False`` as well.
        size: (height, width) in pixels of its own training.
        least: height and width in pixels must be this or more (Keras refuses less).
        unfreeze_after: the layer before its last stage, which is the part worth fine-tuning on few images.
    """

    application: str
    scaling: Scaling | None
    size: tuple[int, int]
    least: int
    unfreeze_after: str


def _row(application: str, scaling: Scaling | None, side: int, unfreeze_after: str, least: int = 32) -> Backbone:
    return Backbone(application, scaling, (side, side), least, unfreeze_after)


BACKBONES = {
    "inception_v3": _row("InceptionV3", _MINUS_1_TO_1, 299, "mixed8", least=75),
    "inception_resnet_v2": _row("InceptionResNetV2", _MINUS_1_TO_1, 299, "mixed_7a", least=75),
    "xception": _row("Xception", _MINUS_1_TO_1, 299, "block12_sepconv3_bn", least=71),
    "resnet50": _row("ResNet50", _CENTERED_BGR, 224, "conv4_block6_out"),
    "resnet50v2": _row("ResNet50V2", _MINUS_1_TO_1, 224, "conv4_block6_out"),
    "resnet101v2": _row("ResNet101V2", _MINUS_1_TO_1, 224, "conv4_block23_out"),
    "resnet152v2": _row("ResNet152V2", _MINUS_1_TO_1, 224, "conv4_block36_out"),
    "densenet121": _row("DenseNet121", _STANDARDIZED, 224, "pool4_pool"),
    "mobilenet_v2": _row("MobileNetV2", _MINUS_1_TO_1, 224, "block_12_add"),
    "mobilenet_v3_small": _row("MobileNetV3Small", _INSIDE, 224, "expanded_conv_7_add"),
    "mobilenet_v3_large": _row("MobileNetV3Large", _INSIDE, 224, "expanded_conv_11_add"),
    "efficientnet_v2_b0": _row("EfficientNetV2B0", _INSIDE, 224, "block5e_add"),
    "efficientnet_v2_b1": _row("EfficientNetV2B1", _INSIDE, 240, "block5f_add"),
    "efficientnet_v2_b2": _row("EfficientNetV2B2", _INSIDE, 260, "block5f_add"),
    "efficientnet_v2_b3": _row("EfficientNetV2B3", _INSIDE, 300, "block5g_add"),
    "efficientnet_v2_s": _row("EfficientNetV2S", _INSIDE, 384, "block5i_add"),
    "efficientnet_v2_m": _row("EfficientNetV2M", _INSIDE, 480, "block5n_add"),
    "efficientnet_v2_l": _row("EfficientNetV2L", _INSIDE, 480, "block5s_add"),
    "convnext_tiny": _row("ConvNeXtTiny", _INSIDE, 224, "convnext_tiny_downsampling_block_2"),
    "convnext_small": _row("ConvNeXtSmall", _INSIDE, 224, "convnext_small_downsampling_block_2"),
    "convnext_base": _row("ConvNeXtBase", _INSIDE, 224, "convnext_base_downsampling_block_2"),
    "convnext_large": _row("ConvNeXtLarge", _INSIDE, 224, "convnext_large_downsampling_block_2"),
}
"""By name in the configuration.

EfficientNet's first version is not among them: it can't do without its own scaling, so ``trainer.normalization:
featurewise`` would mean something else for it.
"""
