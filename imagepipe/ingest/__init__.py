"""From folders and manifests of labelled images to sharded TFRecords, on Apache Beam.

``command.run`` does it, ``dataset.load`` reads the result. Neither imports TensorFlow; only ``run`` imports Beam, once
it has work for it.
"""
