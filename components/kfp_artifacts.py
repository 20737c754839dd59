"""Artifacts of kfp's types: the run pages of Kubeflow and Vertex AI show these.

They recognize them by the name of the type alone. A compiled pipeline has kfp's own types in their place, see
``pipeline.kubeflow.compile``, and its entrypoint gives components these again.
"""

from kfp import dsl
from tfx.types import artifact, standard_artifacts


class HTML(standard_artifacts.String):
    """A page.

    Its URI is the file's, not a folder's: the run pages fetch it.
    """

    TYPE_NAME = dsl.HTML.schema_title


class Metrics(artifact.Artifact):
    """Metrics, one per property, under their names.

    Values are numbers, which a run's page shows in a table.
    """

    TYPE_NAME = dsl.Metrics.schema_title


class ClassificationMetrics(artifact.Artifact):
    """A confusion matrix and an ROC curve, in the properties ``confusionMatrix`` and ``confidenceMetrics``."""

    TYPE_NAME = dsl.ClassificationMetrics.schema_title
