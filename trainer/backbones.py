"""The networks available below the head: a table of Keras applications."""

from dataclasses import dataclass

from pydantic import FiniteFloat

DEFAULT = "inception_v3"


@dataclass(frozen=True)
class Scaling:
    """The input that a network was trained on: ``scale`` times pixels (0 to 255) plus ``offset``, per channel.

    Attributes:
        scale: factor for red, green and blue.
        offset: added after scaling.
        bgr: whether the network expects blue, green, red.
    """

    scale: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    offset: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    bgr: bool = False


# The constants are those of keras.applications.imagenet_utils.preprocess_input, in its modes "tf", "torch" and "caffe".
_MINUS_1_TO_1 = Scaling((1 / 127.5,) * 3, (-1.0,) * 3)
_STANDARDIZED = Scaling(
    (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)), (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225)
)
_CENTERED_BGR = Scaling((1.0,) * 3, (-123.68, -116.779, -103.939), bgr=True)
_BUILT_IN = None  # the network scales by itself


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Attributes:
        application: name in ``keras.applications``; "" of one's own, see ``trainer.own_backbone``.
        scaling: of its input; None if the network scales by itself, in which case it takes
            ``include_preprocessing=False`` as well.
        size: (height, width) in pixels of the images that it was trained on.
        min_side: minimum height and width in pixels (Keras refuses less).
        unfreeze_after: layer before its last stage, which is the part worth fine-tuning on few images.
        is_depthwise: whether most of its convolutions are depthwise, each channel by itself: they suffer in bfloat16,
            and gain nothing from it.
    """

    application: str
    scaling: Scaling | None
    size: tuple[int, int]
    min_side: int
    unfreeze_after: str
    is_depthwise: bool = False


def _make_row(
    application: str, scaling: Scaling | None, side: int, unfreeze_after: str, min_side: int = 32
) -> Backbone:
    is_depthwise = application.startswith(("Xception", "MobileNet", "EfficientNet", "ConvNeXt"))
    return Backbone(application, scaling, (side, side), min_side, unfreeze_after, is_depthwise)


BACKBONES = {
    "inception_v3": _make_row("InceptionV3", _MINUS_1_TO_1, 299, "mixed8", min_side=75),
    "inception_resnet_v2": _make_row("InceptionResNetV2", _MINUS_1_TO_1, 299, "mixed_7a", min_side=75),
    "xception": _make_row("Xception", _MINUS_1_TO_1, 299, "block12_sepconv3_bn", min_side=71),
    "resnet50": _make_row("ResNet50", _CENTERED_BGR, 224, "conv4_block6_out"),
    "resnet50v2": _make_row("ResNet50V2", _MINUS_1_TO_1, 224, "conv4_block6_out"),
    "resnet101v2": _make_row("ResNet101V2", _MINUS_1_TO_1, 224, "conv4_block23_out"),
    "resnet152v2": _make_row("ResNet152V2", _MINUS_1_TO_1, 224, "conv4_block36_out"),
    "densenet121": _make_row("DenseNet121", _STANDARDIZED, 224, "pool4_pool"),
    "mobilenet_v2": _make_row("MobileNetV2", _MINUS_1_TO_1, 224, "block_12_add"),
    "mobilenet_v3_small": _make_row("MobileNetV3Small", _BUILT_IN, 224, "expanded_conv_7_add"),
    "mobilenet_v3_large": _make_row("MobileNetV3Large", _BUILT_IN, 224, "expanded_conv_11_add"),
    "efficientnet_v2_b0": _make_row("EfficientNetV2B0", _BUILT_IN, 224, "block5e_add"),
    "efficientnet_v2_b1": _make_row("EfficientNetV2B1", _BUILT_IN, 240, "block5f_add"),
    "efficientnet_v2_b2": _make_row("EfficientNetV2B2", _BUILT_IN, 260, "block5f_add"),
    "efficientnet_v2_b3": _make_row("EfficientNetV2B3", _BUILT_IN, 300, "block5g_add"),
    "efficientnet_v2_s": _make_row("EfficientNetV2S", _BUILT_IN, 384, "block5i_add"),
    "efficientnet_v2_m": _make_row("EfficientNetV2M", _BUILT_IN, 480, "block5n_add"),
    "efficientnet_v2_l": _make_row("EfficientNetV2L", _BUILT_IN, 480, "block5s_add"),
    "convnext_tiny": _make_row("ConvNeXtTiny", _BUILT_IN, 224, "convnext_tiny_downsampling_block_2"),
    "convnext_small": _make_row("ConvNeXtSmall", _BUILT_IN, 224, "convnext_small_downsampling_block_2"),
    "convnext_base": _make_row("ConvNeXtBase", _BUILT_IN, 224, "convnext_base_downsampling_block_2"),
    "convnext_large": _make_row("ConvNeXtLarge", _BUILT_IN, 224, "convnext_large_downsampling_block_2"),
}
"""Backbones by name in the configuration.

EfficientNet's first version is not among them: its own scaling can't be removed, so ``trainer.normalization:
featurewise`` would mean something else for it.
"""
