"""Features: what the pretrained backbone makes of the images, once for all who look at the data through it."""
