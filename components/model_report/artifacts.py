"""Artifacts that the pages of Kubeflow and Vertex AI show as what they are: they know them by kfp's names of types."""

from kfp import dsl
from tfx.types import artifact, standard_artifacts


class HTML(standard_artifacts.String):
    """A page. Its URI is the file's, not a folder's: that is what they fetch."""

    TYPE_NAME = dsl.HTML.schema_title


class Metrics(artifact.Artifact):
    """Figures: each property is one, by its name."""

    TYPE_NAME = dsl.Metrics.schema_title


class ClassificationMetrics(artifact.Artifact):
    """A confusion matrix and an ROC curve, in the properties ``confusionMatrix`` and ``confidenceMetrics``."""

    TYPE_NAME = dsl.ClassificationMetrics.schema_title
