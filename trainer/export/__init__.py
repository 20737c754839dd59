"""Export of a trained network: optimize and rewrites for serving, signatures of the SavedModel, lite for devices."""
