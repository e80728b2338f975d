"""What runs inside the pipeline's tasks, and what talks to the pipeline's server. components/ and pipelines/ draw the
graph; these modules are all that they call."""
