"""The downstream probe: the same fine-tuning from base and from adapted, scored on the same frozen items."""
