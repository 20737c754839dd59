"""Model, input, training and export. Plain Keras and TensorFlow: nothing in here knows TFX."""
