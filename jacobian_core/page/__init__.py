"""The report to look at: one HTML file with its figures inside, made from a few small tables of a lake."""
