"""Training and export in plain Keras and TensorFlow: nothing in here knows TFX.

The files in the order in which a training walks through them: run_fn (TFX's entry; tuner_fn is the Tuner's), config,
devices, checkpoint (the state that survives a kill), data, tasks, inputs, network (with backbones, own_backbone,
pretrained and weights/), schedule, steps, augmentation; at the end pictures, export/ and trained, which reads it back.
"""
