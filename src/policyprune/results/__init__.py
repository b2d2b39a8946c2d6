"""One record per run; tables and plots read nothing else."""
