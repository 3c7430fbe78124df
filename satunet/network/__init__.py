"""The text-prompted network; torch is the only heavy library that this package imports."""

from satunet.network.config import NetworkConfig

__all__ = ["NetworkConfig"]
