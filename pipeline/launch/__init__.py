"""Where the processes of a stage run."""
