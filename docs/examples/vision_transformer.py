"""A small Vision Transformer as a backbone: ``trainer.backbone: vision_transformer:build``.

Dosovitskiy, A. et al. (2021): An image is worth 16x16 words: transformers for image recognition at scale. ICLR.
Without a class token: the head takes the average of the tokens.
"""

import keras

SIZE = (160, 160)  # of the images that it is trained on: height and width in pixels
MIN_SIDE = 32
SCALING = "-1 to 1"
UNFREEZE_AFTER = "block_3"  # with weights: fine-tuning starts above

_PATCH, _WIDTH, _HEADS, _BLOCKS = 16, 192, 3, 6


@keras.saving.register_keras_serializable("vision_transformer")
class AddPositions(keras.layers.Layer):
    """Adds what is learned about each position to the token that is there."""

    def build(self, shape):
        """Makes the weights, for tokens ``[n, patches, d]``."""
        self.positions = self.add_weight(shape=(1, *shape[1:]), initializer="random_normal", name="positions")

    def call(self, tokens):
        """Returns tokens ``[n, patches, d]``."""
        return tokens + self.positions


def build(image_size: tuple[int, int]) -> keras.Model:
    """Returns the network: from scaled images ``[n, height, width, 3]`` to tokens ``[n, patches, 192]``."""
    image = keras.Input((*image_size, 3))
    patches = keras.layers.Conv2D(_WIDTH, _PATCH, _PATCH, name="patches")(image)
    tokens = AddPositions(name="add_positions")(keras.layers.Reshape((-1, _WIDTH), name="tokens")(patches))
    for number in range(_BLOCKS):
        tokens = _add_block(tokens, f"block_{number}")
    return keras.Model(image, keras.layers.LayerNormalization(name="norm")(tokens), name="vision_transformer")


def _add_block(tokens: keras.KerasTensor, name: str) -> keras.KerasTensor:
    normed = keras.layers.LayerNormalization(name=f"{name}_norm_1")(tokens)
    attention = keras.layers.MultiHeadAttention(_HEADS, _WIDTH // _HEADS, name=f"{name}_attention")
    tokens = keras.layers.Add(name=f"{name}_add")([tokens, attention(normed, normed)])
    normed = keras.layers.LayerNormalization(name=f"{name}_norm_2")(tokens)
    wide = keras.layers.Dense(4 * _WIDTH, activation="gelu", name=f"{name}_wide")(normed)
    return keras.layers.Add(name=name)([tokens, keras.layers.Dense(_WIDTH, name=f"{name}_narrow")(wide)])
