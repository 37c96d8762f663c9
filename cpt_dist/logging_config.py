"""The schema of what a run says of itself while it trains: metrics.jsonl, the progress display, Weights & Biases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LoggingConfig:
    every_steps: int = 1
    """Steps between lines of metrics.jsonl and of the progress display."""
    wandb: bool = False
    """Also send metrics to Weights & Biases; without an API key they are kept offline in the run directory."""
    wandb_project: str = "cpt_dist"
    """Project of the Weights & Biases run."""
    peak_tflops: float = 0.0
    """Matmul peak of one device for the model FLOPs utilisation; 0: measured at the start."""
