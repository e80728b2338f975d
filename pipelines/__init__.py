"""The experiment as a KFP pipeline: a round, the rounds unrolled, what each task asks of the cluster, compilation."""
