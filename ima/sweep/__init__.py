"""A sweep: a grid of trainings or evaluations, one process each, that survives and ends in one table and one page."""
