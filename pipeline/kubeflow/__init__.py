"""The same pipeline on Kubeflow Pipelines and on Vertex AI: compiled, submitted, and run in containers."""
