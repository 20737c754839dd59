"""Training and export in plain Keras and TensorFlow: nothing in here knows TFX.

The files in the order in which a training walks through them: run_fn (TFX's entry; tuner_fn is the Tuner's), config,
devices, checkpoint (the state that survives a kill), data, tasks, inputs, network (with backbones and pretrained),
schedule, steps, augmentation; at the end pictures and export/.

The configuration and the command line import backbones, config, search_space and pretrained, which therefore import
neither TensorFlow nor Keras.
"""
