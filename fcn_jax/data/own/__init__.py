"""One's own pictures: a folder as people and annotation tools leave it, read as a dataset."""
