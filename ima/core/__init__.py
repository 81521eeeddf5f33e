"""Ground that every room stands on: types, errors, files, cache, time, randomness; no torch at import."""
