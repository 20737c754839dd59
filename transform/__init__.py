"""The one preprocessing: decode, resize, vocabularies. Training, evaluation and serving all run this graph."""
