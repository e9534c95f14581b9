"""``erw prepare``: from images to a dataset that training streams. Each image is read, cropped and encoded once."""
