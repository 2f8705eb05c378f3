"""File formats: STAR, MRC and particle stacks."""
