"""Studies: whole comparisons on real text by one command each, whose reports are kept under docs/studies."""
