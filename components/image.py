"""The one place where the components' image is named. Compiling for a cluster replaces it by `resources.image`."""

IMAGE = "dualipo:latest"
