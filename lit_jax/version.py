"""The version of this package, for its front door and for the records of its jobs."""

VERSION = "0.1.0"
