"""Runtimes: open an engine on a device, time it, and measure frames per second and mIoU of those very bytes."""
