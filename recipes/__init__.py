"""Small experiments that repeat known findings with this project's own trainer, and say whether they did.

Each is one command (docs/recipes.md): python -m recipes.rope, recipes.schedule, recipes.mask. They train models of
about a hundred thousand parameters on the source code of Python's standard library, or on a text of one's choice.
They test the framework's machinery and one's expectations; they are no evidence about large models.
"""
