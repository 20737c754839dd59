"""Where models go: folders of versions, and the targets that serve them. Pushing is not serving."""
