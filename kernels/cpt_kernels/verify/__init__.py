"""Checks of the kernels that need no GPU, and the trial on a GPU before the first use."""
