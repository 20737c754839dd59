"""The base of all other packages: images, records, file systems, names, metrics, errors, progress, charts."""
