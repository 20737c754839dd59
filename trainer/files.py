"""Names of what lies beside a SavedModel that was trained here."""

TRAINING_FOLDER = "training"
"""A folder: curves.png, history.json, augmentation.png, config.json, summary.txt, model.keras, base.weights.h5 and what
optimising for serving did."""

OPTIMIZED = "optimized.json"
"""In it: what optimising for serving did."""
