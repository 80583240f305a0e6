"""The report that ends `reproduce`: claims with their verdicts, tables, figures, the slider, the reference.

page.write makes it; tables reads a run's tables, claims judges them, reference compares them, notebooks knows
how long each notebook took.
"""
