"""ImageSchemaGen: the schema of image Examples."""
