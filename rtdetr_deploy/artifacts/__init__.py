"""What travels with a model: metadata, class names, and the file that holds its weights."""
