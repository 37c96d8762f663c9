"""cpt_dist: continued pretraining of Hugging Face causal language models on domain text."""

__version__ = "0.1.0"
