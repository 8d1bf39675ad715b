"""Arrays, images and layers in files."""
