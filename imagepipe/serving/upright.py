"""Asks a model's graph whether it turns photos upright; graphs of earlier versions don't."""

import io

from PIL import Image

from imagepipe.base.features import IMAGE
from imagepipe.serving.loaded_model import LoadedModel


def turns_upright(model: LoadedModel) -> bool:
    """Returns whether a model's graph turns photos upright by their EXIF, and by XMP where that alone tells.

    Such a graph gets them unchanged; for another one they are turned, and encoded anew. The graph itself is asked: it
    can be older than the rest of the model, whose training took it from a cache.

    Args:
        model: the model, which is asked about one small image.
    """
    if not hasattr(model.loaded, "preprocess"):
        return False
    half = Image.new("L", (32, 32))
    half.paste(255, (0, 0, 16, 32))  # white on the left, and on the right once it is turned
    encoded = io.BytesIO()
    half.save(encoded, "JPEG", xmp=b'tiff:Orientation="3"')  # graphs that read XMP read EXIF, too
    tensors = model.build_tensors([model.build_trial_request(encoded.getvalue())])
    row = model.loaded.preprocess(**tensors)[IMAGE][0, 0, :, 0].numpy()
    return bool(row[0] < row[-1])
