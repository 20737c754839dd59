"""FeatureCheck: a second look at the data, through the features of the pretrained backbone."""
