"""Names of files in artifacts, for who reads those without TFX, whose import takes seconds and 300 MiB."""

FINDINGS, STATISTICS, SCHEMA = "findings.json", "statistics.json", "schema.pbtxt"
"""In what DataCheck writes."""

ROWS, NAMES = "predictions.parquet", "names.json"
"""In what Predictions writes: a row an image, and the names of the models' outputs."""

SERVING_REPORT = "report.json"
"""In what ServingCheck writes: a ``serving.report.Report``."""
