"""pathfm: from a folder of whole-slide images and a table of labels to a slide-level model that can be questioned."""
