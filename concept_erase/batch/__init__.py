"""Erasing lists: `runner` plans and drives, `units` are the work, `engines` the workers, `index` is what is left."""
