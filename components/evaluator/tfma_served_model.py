"""TFMA's handles of models, by which it loads them as a server of ours computes them.

TFMA asks the object that is loaded for its ``signatures``, so a version's form for OpenVINO takes the place of its
SavedModel without changes to what is extracted and measured.
"""

from functools import partial
from typing import Any

import tensorflow_model_analysis as tfma

from components.evaluator.evaluation import CHAMPION
from components.served_model import OpenVinoSignatures, has_form
from imagepipe.deploy.openvino_form import FOLDER
from imagepipe.deploy.storage import fetch_folder

_TAGS = ["serve"]


def share_as_served(eval_saved_model_path: str, **options: Any) -> Any:
    """Returns the handle of a version; TFX calls it with what ``tfma.default_eval_shared_model`` takes.

    Args:
        eval_saved_model_path: path or URI of the SavedModel.
        options: the model's name, TFMA's configuration, and further arguments of the same function.
    """
    if has_form(eval_saved_model_path):
        loader = tfma.types.ModelLoader(partial(_load_form, eval_saved_model_path), tags=_TAGS)
        options |= {"tags": _TAGS, "custom_model_loader": loader}
    return tfma.default_eval_shared_model(eval_saved_model_path=eval_saved_model_path, **options)


def share_candidate_as_served(eval_saved_model_path: str, **options: Any) -> Any:
    """Returns the same handle of the candidate; of the champion that of its SavedModel, see ``find_form_problem``."""
    share = tfma.default_eval_shared_model if options["model_name"] == CHAMPION else share_as_served
    return share(eval_saved_model_path=eval_saved_model_path, **options)


def _load_form(model: str) -> OpenVinoSignatures:
    return OpenVinoSignatures(fetch_folder(f"{model}/{FOLDER}"))
