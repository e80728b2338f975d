"""The one place where the components' image comes from: `resources.image`, whose default this is. A pipeline that is
compiled replaces it by its configuration's."""

from dualipo.config import Resources

IMAGE = Resources().image
