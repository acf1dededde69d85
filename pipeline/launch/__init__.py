"""Starts and supervises the processes that run a stage: on this machine, on several machines, or as Slurm jobs."""
