"""StampWorld: real cut-out pictures on procedural backgrounds with exact ground truth, rendered from a seed."""
