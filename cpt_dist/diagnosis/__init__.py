"""Whether continued pretraining is the right thing to do, measured before it is paid for."""
