"""A run among the machines of a cluster: ranks, signals, Slurm jobs, the health of nodes.

It hangs off the configuration alone and imports no torch, so that submitting a job takes no time and a batch script
can ask it what to do next. What needs a process group (agreement of ranks, collectives) is in `cpt_dist.training`.
"""
