"""What `import ima` gives: finished runs and models as Python values. Names are listed in `ima/__init__`."""
