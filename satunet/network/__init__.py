"""The text-prompted network; importing it needs torch and nothing else."""

from satunet.network.config import NetworkConfig

__all__ = ["NetworkConfig"]
