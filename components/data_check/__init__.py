"""What is wrong with the data, in words, before anything is trained."""
