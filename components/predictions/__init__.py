"""What candidate and champion say of each image."""
