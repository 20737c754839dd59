"""From folders and manifests of labelled images to sharded TFRecords, on Apache Beam.

``ingest.pipeline.run`` does it, ``ingest.dataset.load`` reads what it made, ``ingest.images.normalize`` is the check
and conversion of one image. None of these imports TensorFlow; only ``run`` imports Beam, once it has work for it.
"""
