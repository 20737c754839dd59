"""ImportExampleGen: reads TFRecords made elsewhere, with named labels and images that the Transform graph decodes."""
