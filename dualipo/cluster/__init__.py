"""Kubernetes: what is deployed there, whether it is sound and answers; trainings as Kubeflow Trainer's TrainJobs."""
