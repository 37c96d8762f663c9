"""Context parallelism: several ranks take one row (sequence) through the model together.

`split.py` says which tokens are whose, `parallel.py` gives a rank its part of a batch, `attention.py` and `ring.py`
attend across the ranks. Everything outside attention works on single tokens and notices nothing.
"""
