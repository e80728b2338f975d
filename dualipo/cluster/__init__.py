"""Training on a cluster: Kubeflow Trainer's TrainJobs, made, watched and cleared away."""
