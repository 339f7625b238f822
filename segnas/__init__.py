"""Search, export and measure real-time semantic-segmentation networks under a latency budget of the target device."""

__version__ = "0.1.0"
