"""ModelReport: what the data and the model are, as one page for those who decide whether a model goes live."""
