"""Template roots: how the trees that sandboxes are made of come to be."""
