"""The expectation–maximisation engine behind every refinement job."""
