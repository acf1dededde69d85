"""The run of a plan: the runner, its journal, Slurm jobs, and the machines that work on one run."""
