"""The steps of a run: assemble, prepare, train, measure, record."""
