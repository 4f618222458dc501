"""Language models on one transformer trunk: masked and autoregressive, compared fairly."""

__version__ = "0.1.0"
