"""Apache Beam, imported in less than half its usual time: it is most of what a small ingest takes."""

import gc
import logging

from imagepipe.base.process import hide_modules
from imagepipe.ingest.workers import shared

# Beam asks IPython, with its modules and again when steps are added to a pipeline, whether it runs in a notebook, and
# has converters for pandas and sources for MongoDB. Ingest uses none, and they cost 0.7, 0.2 and 0.1 s of 2.4 s here.
# Google's clients cost 0.3 s more, and where there are worker processes, all is local but for images, and those read
# them. What an import makes lives as long as the process: looking for garbage in it, and once more at exit unless it is
# frozen, costs 0.5 s.
_collects = gc.isenabled()
_silenced = logging.root.manager.disable
gc.disable()
logging.disable(logging.WARNING)  # it complains of what is missing
try:
    with hide_modules("IPython", "pandas", "bson", "pymongo", *(["google.cloud", "apitools"] if shared() else [])):
        import apache_beam as beam
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
finally:
    logging.disable(_silenced)
    gc.freeze()
    if _collects:
        gc.enable()

__all__ = ["CompressionTypes", "FileSystems", "PipelineOptions", "StandardOptions", "beam"]
